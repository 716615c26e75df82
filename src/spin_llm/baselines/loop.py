"""The training loop of every baseline: AdamW on the response tokens' loss, resumable to the bit.

    loss of a step = sum of -log p(token) over the response tokens of its pairs / their number       (nats)

In: a loaded model some of whose parameters ask for gradients, encoded examples, settings. Out: the parameters trained
in place, and the loss of each step. What a step does is a function of the settings, its number and the state before it
(the order is drawn by epoch, the dropout seeded by step), so that a state of parameters and AdamW's moments, kept as
safetensors, is all that a killed training needs. Left out: transformers' Trainer and TRL on it, which keep optimizer
and generator states as pickles (docs/baselines.md); several devices; gradient checkpointing.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from spin_llm.data import Example
from spin_llm.errors import SpinError
from spin_llm.models import LoadedModel, pick_dtype
from spin_llm.models.losses import length_sorted_batches, response_log_likelihoods
from spin_llm.outputs import writing
from spin_llm.progress import SILENT, Console
from spin_llm.settings.training import BaselineSettings

MAX_GRADIENT_NORM = 1.0
MOMENTS = ("exp_avg", "exp_avg_sq")
Parameters = Mapping[str, torch.nn.Parameter]


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
    """Add the gradient of one step's loss to the parameters; the loss."""
    tokens = sum(example.response_tokens for example in batch)
    loss = 0.0
    for part in length_sorted_batches(batch, settings.batch_tokens):
        with mixed_precision(loaded, settings):
            log_likelihoods, _ = response_log_likelihoods(loaded, part)
        part_loss = -log_likelihoods.float().sum() / tokens
        part_loss.backward()  # type: ignore[no-untyped-call]
        loss += float(part_loss.detach())
    return loss


@contextmanager
def mixed_precision(loaded: LoadedModel, settings: BaselineSettings) -> Iterator[None]:
    """Full fine-tuning keeps float32 weights, whose small updates bfloat16 would round away, and computes in the
    settings' dtype."""
    wanted = pick_dtype(settings.dtype, loaded.device)
    differs = wanted == torch.bfloat16 and loaded.dtype == torch.float32
    with torch.autocast(loaded.device.type, dtype=torch.bfloat16, enabled=differs):
        yield


@contextmanager
def training_mode(loaded: LoadedModel) -> Iterator[None]:
    """With dropout inside; afterwards without, with no parameter asking for a gradient, and torch's generators as
    before."""
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
