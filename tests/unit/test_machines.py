"""Plans for machines that are not here: the arithmetic beside a real pass of a tiny model, configurations of large
models without weights, and models that accelerate has spread."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import TinyFolder, TinyModel
from torch.utils.flop_counter import FlopCounterMode

from spin_llm.errors import SpinError
from spin_llm.models import editable_matrices, load
from spin_llm.models.loading import load_empty
from spin_llm.pipeline.machines import Machine, counted, lines, plan_as
from spin_llm.scores import importance, make_batches, passes
from spin_llm.scores.accumulate import by_operators
from spin_llm.scores.importance import new_totals
from spin_llm.scores.passes import scoring
from spin_llm.settings import RunSettings

SIZES = {  # as published: hidden, intermediate, layers, heads, heads of keys, parameters in billions
    "7b": (3584, 18944, 28, 28, 4, 7.62),
    "32b": (5120, 27648, 64, 40, 8, 32.76),
    "70b": (8192, 29568, 80, 64, 8, 72.71),
}


def configured(size: str, tiny_folder: TinyFolder, where: Path) -> str:
    """A folder with the configuration of a large model and a tokenizer, and no weights."""
    hidden, inner, layers, heads, keys, _ = SIZES[size]
    folder = where / size
    folder.mkdir()
    for file in tiny_folder("qwen2", chat=True).iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            shutil.copy(file, folder)
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": 152064,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        **{"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers},
        **{"num_attention_heads": heads, "num_key_value_heads": keys},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("80g", (1, 80 * 2**30, 150e12, 1e12)),
        ("8x80g", (8, 80 * 2**30, 150e12, 1e12)),
        ("2x24GB@60.5", (2, 24 * 2**30, 60.5e12, 1e12)),
        (" 8x141g@400/3000 ", (8, 141 * 2**30, 400e12, 3e12)),
    ],
)
def test_machines_in_words(text: str, made: tuple[float, ...]):
    machine = Machine.named(text)
    assert (machine.devices, machine.memory, machine.flops, machine.bandwidth) == made


@pytest.mark.parametrize("text", ["", "8x", "x80g", "0x80g", "8x80g@", "8x80g@0", "8x80g@1/0", "8x80g@1.2.3", "h100"])
def test_what_is_no_machine(text: str):
    with pytest.raises(SpinError, match="names no machine"):
        Machine.named(text)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("part", [slice(None), slice(4, None)])
def test_products_are_those_of_a_real_pass(
    name: str, part: slice, tiny_model: TinyModel, tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(passes, "accumulation", lambda *_: by_operators)  # by products that torch counts
    loaded, examples = tiny_model(name), tiny.examples(1)
    some = editable_matrices(loaded.model, "mlp")[part]
    totals = {m.name: new_totals(("absolute",), m.weight, transposed=m.transposed) for m in some}
    with FlopCounterMode(display=False) as counter, scoring(loaded, some, totals) as add:
        for batch in make_batches(examples):
            add(batch)
    empty = load_empty(str(tiny_folder(name)), dtype="float32")
    matrices = editable_matrices(empty.model, "mlp")
    work = counted(empty, make_batches(examples), matrices, ("absolute",))
    products, moved = work.flops_and_bytes(matrices[part])
    assert products == pytest.approx(counter.get_total_flops(), rel=0.25)  # attention to tokens is left out
    assert work.stored == sum(p.numel() * 4 for p in loaded.model.parameters())
    assert moved > 16 * sum(m.weight.numel() for m in some) * len(examples)


@pytest.mark.parametrize(
    ("size", "machine", "spread", "command"),
    [
        ("7b", "8x80g", 1, "torchrun --nproc-per-node 8 -m spin_llm.cli score"),
        ("7b", "80g", 1, "spin-llm run"),
        ("32b", "8x80g", 8, "--device-map auto"),
        ("70b", "8x80g", 8, "--device-map auto"),
    ],
)
def test_large_models_without_weights(
    size: str, machine: str, spread: int, command: str, tiny_folder: TinyFolder, tmp_path: Path
):
    settings = RunSettings(configured(size, tiny_folder, tmp_path))
    found = plan_as(settings, machine)
    json.dumps(found, allow_nan=False)
    assert found["parameters"] / 1e9 == pytest.approx(SIZES[size][-1], abs=0.01)
    assert found["stored"] == 2 * found["parameters"]
    assert found["spread"] == spread
    assert found["passes"] >= 1
    each = (found["stored"] + found["accumulators"]) / spread
    assert each < 80 * 2**30
    text = lines(found)
    assert any(line.startswith("command") and command in line for line in text)
    assert any("as given or assumed; nothing was measured there" in line for line in text)
    twice = plan_as(settings, f"{machine}@300/2000")
    assert twice["seconds"] == pytest.approx(found["seconds"] / 2)


def test_less_memory_takes_more_passes_or_is_refused(tiny_folder: TinyFolder, tmp_path: Path):
    settings = RunSettings(configured("7b", tiny_folder, tmp_path))
    passes = [plan_as(settings, f"8x{memory}g")["passes"] for memory in (141, 80, 48)]
    assert passes == sorted(passes)
    assert passes[0] < passes[-1]
    with pytest.raises(SpinError, match=r"does not fit 12g(.|\n)*name more devices"):
        plan_as(settings, "12g")


# Spread by accelerate


PARTS = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", *(f"model.layers.{n}" for n in range(3)))


def test_a_model_that_accelerate_spread_has_the_same_scores(tiny_model: TinyModel):
    from accelerate import dispatch_model

    spread, whole = tiny_model("llama"), tiny_model("llama")
    model: Any = dispatch_model(spread.model, dict.fromkeys(PARTS, "cpu"), force_hooks=True)
    assert hasattr(model.model.layers[2], "_hf_hook")
    ours, plain = (importance(one, tiny.examples(1), editable_matrices(one.model, "mlp")) for one in (spread, whole))
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


def test_a_model_that_would_lie_on_the_disk_is_refused(tiny_folder: TinyFolder):
    with pytest.raises(SpinError, match=r"does not fit the devices(.|\n)*--as 8x80g"):
        load(str(tiny_folder("llama")), device_map={**dict.fromkeys(PARTS, "cpu"), PARTS[-1]: "disk"})
