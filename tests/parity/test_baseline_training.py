"""The training loop against transformers' Trainer (which TRL's SFTTrainer is built on), on the same pairs and order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyFolder, TinyModel
from transformers import Trainer, TrainingArguments

from spin_llm.baselines.methods import prepare, train
from spin_llm.data import Example, Pair, encode_all
from spin_llm.settings.training import BaselineSettings, make

EPOCHS, PAIRS = 4, 6
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def collate(examples: list[Example]) -> dict[str, torch.Tensor]:
    """All pairs padded on the right; tokens without a loss are labelled -100, as transformers wants it."""
    width = max(len(example.input_ids) for example in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        ids[row, :length] = torch.tensor(example.input_ids)
        mask[row, :length] = 1
        labels[row, length - example.response_tokens : length] = ids[row, length - example.response_tokens : length]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def trainers_losses(model: Any, examples: list[Example], settings: BaselineSettings, folder: Path) -> list[float]:
    arguments = TrainingArguments(
        output_dir=str(folder),
        save_strategy="no",
        report_to=[],
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=PAIRS,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        weight_decay=settings.weight_decay,
        optim="adamw_torch",
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=examples, data_collator=collate)  # type: ignore[arg-type]
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_loop_is_the_trainers(method: str, tiny_folder: TinyFolder, tiny_model: TinyModel, tmp_path: Path):
    options = {"data": (("privacy", "starter"),), "batch_size": PAIRS, "epochs": EPOCHS, "warmup": 0.0}
    options |= {"learning_rate": 0.01, "weight_decay": 0.01, "dropout": 0.0 if method == "lora" else None}
    settings = make(method, str(tiny_folder("llama")), dtype="float32", **options)
    mine, other = tiny_model("llama"), tiny_model("llama")
    prepare(mine, settings)
    prepare(other, settings)
    pairs = [Pair(f"question {i}?", f"I say {'very ' * (i % 4)}well") for i in range(PAIRS)]
    examples = encode_all(mine.tokenizer, pairs, template="raw", max_length=512)
    losses = train(mine, examples, settings, tmp_path / "state.safetensors")
    theirs = trainers_losses(other.model, examples, settings, tmp_path / "trainer")
    assert losses[-1] < losses[0] - 0.5
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(theirs), rtol=1e-5, atol=0)
    ours = dict(mine.model.named_parameters())
    for name, parameter in other.model.named_parameters():
        torch.testing.assert_close(ours[name], parameter, rtol=1e-3, atol=1e-5, check_device=False)
