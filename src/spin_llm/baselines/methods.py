"""What each method trains, the training loop of them all, and what it leaves on disk.

    loss of a step = sum of -log p(token) over the response tokens of its pairs / their number       (nats)

In: a loaded model, encoded examples, settings. Out: the model with the method's parameters asking for gradients, then
trained in place by AdamW on the response tokens' loss, and the loss of each step; afterwards a checkpoint folder (full;
lora and dora merged), a PEFT adapter folder (lora, dora), or a ReFT folder (reft). Every one of them is a MODEL to
`spin-llm eval`. What a step does is a function of the settings, its number and the state before it (the order is drawn
by epoch, the dropout seeded by step), so that a state of parameters and AdamW's moments, kept as safetensors, is all
that a killed training needs to go on to the bit. Left out: transformers' Trainer and TRL on it, which keep optimizer
and generator states as pickles (docs/baselines.md); several devices; gradient checkpointing; adapters of experts' fused
parameters and of biases.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.utils import parametrizations

from spin_llm.data import Example
from spin_llm.errors import SpinError
from spin_llm.models import Checkpoint, LoadedModel, editable_matrices, pick_dtype, reft
from spin_llm.models.adapters import import_peft
from spin_llm.models.losses import length_sorted_batches, response_log_likelihoods
from spin_llm.models.reft import Reft, ReftConfig, attach, save_reft
from spin_llm.models.said import quiet_transformers
from spin_llm.models.structure import decoder_layers
from spin_llm.outputs import scratch, writing
from spin_llm.progress import SILENT, Console
from spin_llm.settings.training import BaselineSettings, layer_numbers, parse_positions

Placing = Callable[[list[str]], None]
ADAPTER = "adapter"
BESIDE_WEIGHTS = (".json", ".jinja", ".model", ".txt", ".py")  # of a checkpoint folder: config, tokenizer, template
MAX_GRADIENT_NORM = 1.0
MOMENTS = ("exp_avg", "exp_avg_sq")
Parameters = Mapping[str, torch.nn.Parameter]


def prepare(loaded: LoadedModel, settings: BaselineSettings) -> Any:
    """Make the method's parameters ask for gradients, new ones seeded; what `save` needs (the PEFT model, the Reft).

    full trains every parameter; the others leave the model's own frozen.
    """
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return {"full": _full, "lora": _lora, "dora": _lora, "reft": _reft}[settings.method](loaded, settings)


def _full(loaded: LoadedModel, settings: BaselineSettings) -> Any:
    for parameter in loaded.model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return loaded.model


def _lora(loaded: LoadedModel, settings: BaselineSettings) -> Any:
    peft = import_peft()
    matrices = editable_matrices(loaded.model, str(settings.target))
    if any(matrix.part is not None for matrix in matrices):
        raise SpinError(
            f"{settings.method} cannot be put on the experts of {settings.model}.",
            cause="they are fused in one parameter, on which PEFT has neither dropout nor DoRA.",
            change="give --target attention.",
        )
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=[matrix.name.removesuffix(".weight") for matrix in matrices],
        use_dora=settings.method == "dora",
        fan_in_fan_out=matrices[0].transposed,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name(settings.model),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT 0.21 asks transformers 5.23 by an old name
        adapted = peft.get_peft_model(loaded.model, config)  # changes loaded.model in place
    adapted.peft_config["default"].base_model_name_or_path = base_name(settings.model)
    return adapted


def _reft(loaded: LoadedModel, settings: BaselineSettings) -> Any:
    prefix, suffix = parse_positions(str(settings.positions))
    layers = layer_numbers(str(settings.layers)) or tuple(range(len(decoder_layers(loaded.model)[1])))
    hidden = loaded.model.config.get_text_config().hidden_size
    assert settings.rank is not None
    config = ReftConfig(
        base_name(settings.model), loaded.checkpoint.identity.weights, hidden, settings.rank, layers, prefix, suffix
    )
    reft = Reft(config)
    for one in reft.interventions.values():
        parametrizations.orthogonal(one, "rotation")
    attach(loaded.model, reft)
    return reft


def base_name(model: str) -> str:
    """How an adapter names its base, in whatever folder it is used later."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


def train(
    loaded: LoadedModel,
    examples: Sequence[Example],
    settings: BaselineSettings,
    state_file: Path,
    console: Console = SILENT,
) -> list[float]:
    """Train the model's parameters that ask for gradients; the loss of each step, in nats per response token.

    Goes on from `state_file` where it exists. Raises SpinError when a loss is not finite.
    """
    parameters = {name: parameter for name, parameter in loaded.model.named_parameters() if parameter.requires_grad}
    optimizer = make_optimizer(parameters, settings)
    losses = load_state(state_file, parameters, optimizer) if state_file.is_file() else []
    if losses:
        console.say(f"going on after step {len(losses)}")
    total = steps_per_epoch(len(examples), settings) * settings.epochs
    with console.bar(f"training, {settings.method}", total) as advance, training_mode(loaded):
        advance(len(losses))
        for step in range(len(losses), total):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * rate_at(step, total, settings.warmup)
            torch.manual_seed((settings.seed << 32) + step)
            losses.append(backward(loaded, [examples[i] for i in batch_of(step, len(examples), settings)], settings))
            if not math.isfinite(losses[-1]):
                raise SpinError(
                    f"The loss of step {step + 1} is not finite.",
                    cause="too large a learning rate, or bfloat16.",
                    change="give a smaller --learning-rate, or --dtype float32.",
                )
            torch.nn.utils.clip_grad_norm_(parameters.values(), MAX_GRADIENT_NORM)
            optimizer.step()
            optimizer.zero_grad()
            advance(1)
            if (step + 1) % settings.checkpoint_steps == 0 and step + 1 < total:
                save_state(state_file, parameters, optimizer, losses)
    return losses


def make_optimizer(parameters: Parameters, settings: BaselineSettings) -> torch.optim.Optimizer:
    """AdamW; biases and norms are not decayed, as in transformers' Trainer."""
    groups = [
        {"params": [p for p in parameters.values() if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.learning_rate)


def steps_per_epoch(examples: int, settings: BaselineSettings) -> int:
    return math.ceil(examples / settings.batch_size)


def batch_of(step: int, examples: int, settings: BaselineSettings) -> list[int]:
    """The examples of one step: every epoch takes each once, in an order of its own."""
    epoch, place = divmod(step, steps_per_epoch(examples, settings))
    order = list(range(examples))
    random.Random(f"{settings.seed}, epoch {epoch}").shuffle(order)
    return order[place * settings.batch_size : (place + 1) * settings.batch_size]


def rate_at(step: int, total: int, warmup: float) -> float:
    """The learning rate of a step, as a fraction of the highest: a linear rise, then a linear fall towards 0."""
    rising = math.ceil(warmup * total)
    return (step + 1) / rising if step < rising else (total - step) / max(1, total - rising)


def backward(loaded: LoadedModel, batch: Sequence[Example], settings: BaselineSettings) -> float:
    """Add the gradient of one step's loss to the parameters; the loss. Full fine-tuning keeps float32 weights, whose
    small updates bfloat16 would round away, and computes in the settings' dtype."""
    differs = pick_dtype(settings.dtype, loaded.device) == torch.bfloat16 and loaded.dtype == torch.float32
    tokens = sum(example.response_tokens for example in batch)
    loss = 0.0
    for part in length_sorted_batches(batch, settings.batch_tokens):
        with torch.autocast(loaded.device.type, dtype=torch.bfloat16, enabled=differs):
            log_likelihoods, _ = response_log_likelihoods(loaded, part)
        part_loss = -log_likelihoods.float().sum() / tokens
        part_loss.backward()  # type: ignore[no-untyped-call]
        loss += float(part_loss.detach())
    return loss


@contextmanager
def training_mode(loaded: LoadedModel) -> Iterator[None]:
    """With dropout inside; afterwards without, no parameter asking for a gradient, and torch's generators as before."""
    with torch.random.fork_rng():
        loaded.model.train()
        try:
            yield
        finally:
            loaded.model.eval().requires_grad_(False)


def save_state(path: Path, parameters: Parameters, optimizer: torch.optim.Optimizer, losses: Sequence[float]) -> None:
    """Parameters, AdamW's moments and the losses so far, in one file that is complete or absent."""
    tensors = {f"parameter.{name}": parameter.detach() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        tensors |= {f"{moment}.{name}": optimizer.state[parameter][moment] for moment in MOMENTS}
    with writing(path) as part:
        ready = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        save_file(ready, part, metadata={"losses": json.dumps(losses)})


def load_state(path: Path, parameters: Parameters, optimizer: torch.optim.Optimizer) -> list[float]:
    """Put a saved state into parameters and optimizer; the losses so far, one for each step done."""
    with safe_open(path, "pt") as file, torch.no_grad():
        losses: list[float] = json.loads(file.metadata()["losses"])
        for name, parameter in parameters.items():
            parameter.copy_(file.get_tensor(f"parameter.{name}"))
            moments = {moment: file.get_tensor(f"{moment}.{name}").to(parameter.device) for moment in MOMENTS}
            optimizer.state[parameter] = {"step": torch.tensor(float(len(losses))), **moments}
    return losses


def save(trained: Any, loaded: LoadedModel, settings: BaselineSettings, folder: Path, placing: Placing) -> Path:
    """Write what was trained; the folder of the model or adapter. Merged checkpoints are `save_checkpoint`'s.

    `placing` is told the names of files before the first of them is in the folder itself.
    """
    if settings.method == "full":
        save_checkpoint(loaded.model, loaded.checkpoint, folder, placing)
        return folder
    if settings.method == "reft":
        placing([reft.WEIGHTS, reft.CONFIG])
        save_reft(folder, trained)
        return folder
    trained.save_pretrained(folder / ADAPTER)
    (folder / ADAPTER / "README.md").unlink(missing_ok=True)  # PEFT's model card with nothing filled in
    return folder / ADAPTER


def save_checkpoint(model: Any, base: Checkpoint, folder: Path, placing: Placing) -> None:
    """Write the weights in the dtype of most bytes of the checkpoint `base`, and beside them its config and tokenizer
    files as they are; config.json comes last, so that the folder is no model until it is complete."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()  # the base's own is copied; some cannot be saved by transformers
    sizes = Counter[torch.dtype]()
    for tensor in base.tensors.values():
        sizes[tensor.torch_dtype] += tensor.length
    with scratch(folder) as part:
        with quiet_transformers():
            model.to(sizes.most_common(1)[0][0]).save_pretrained(part)
        for path in base.folder.iterdir():
            if path.is_file() and path.suffix in BESIDE_WEIGHTS and not path.name.endswith(".index.json"):
                shutil.copyfile(path, part / path.name)
        placing(sorted(path.name for path in part.iterdir()))
        for path in sorted(part.iterdir(), key=lambda path: path.name == "config.json"):
            path.replace(folder / path.name)
