"""The plan of a run on a machine that is not here, by arithmetic on a configuration: no weight is read.

In: run settings, a machine in words, such as 8x80g@150/1000. Out: passes, memory, disk, time and the commands, as plain
values and as lines. One pass over all batches takes, in seconds,

    (2 n t (1 + above) + 4 h r + 2 T t) / rate  +  (bytes of the sums + 2 bytes of the weights a batch) / bandwidth

with n weights in the layers that each of t tokens is multiplied by, h in the head for r tokens of responses, T scored
ones, `above` the share of n over the lowest of these. Left out: how near a machine comes to its rates; that is measured
where one is (scores/plan.py). Compared with small models measured on a CPU (LOG.md, 2026-11-28: speed), with no GPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from spin_llm.errors import SpinError
from spin_llm.models import LoadedModel, Matrix, editable_matrices
from spin_llm.models.loading import load_empty
from spin_llm.models.structure import decoder_layers
from spin_llm.pipeline.doctor import Report, scored_sets
from spin_llm.pipeline.folder import KEPT_BYTES
from spin_llm.pipeline.score_stage import scoring_of
from spin_llm.scores.importance import accumulators
from spin_llm.scores.passes import Batch, gradient_hook, make_batches, scoring_mode
from spin_llm.scores.plan import DEFAULT_SHARE, fewest_passes, finishing_bytes, in_words, matrix_bytes, parse_bytes
from spin_llm.settings import RunSettings

ASSUMED = ("150", "1000")  # TFLOP/s and GB/s: about half of what an A100's data sheet has (312; 2,039)
GRAMMAR = re.compile(r"(?:(\d+)x)?([^x@/]+)(?:@([0-9.]+)(?:/([0-9.]+))?)?")
# Bytes that torch's operators move for a scored weight and example (scores/accumulate.py): the gradient is written;
# made absolute and added, or added, or widened and added.
BACKWARD = 1.4  # of what a batch keeps, with what the backward pass holds beside it: 1.4 and 1.2 at 135M and 0.5B
WRITTEN, SUMMED = 2, {"absolute": 14, "signed": 10, "squared": 22, "inputs": 0}


@dataclass(frozen=True)
class Machine:
    """`devices` of `memory` bytes; FLOP/s of matrix products and bytes/s of memory of one of them."""

    devices: int
    memory: int
    flops: float
    bandwidth: float

    @classmethod
    def named(cls, text: str) -> Machine:
        """`80g`, `8x80g`, `8x80g@400` or `8x80g@400/3000`: devices x memory @ TFLOP/s / GB/s.

        Raises SpinError on anything else.
        """
        match = GRAMMAR.fullmatch(text.strip().lower())
        try:
            count, memory, *rates = match.groups() if match else ("0", "0", None, None)
            flops, bandwidth = (float(rate or usual) for rate, usual in zip(rates, ASSUMED, strict=True))
            made = cls(int(count or 1), parse_bytes(memory or ""), flops * 1e12, bandwidth * 1e9)
        except (SpinError, ValueError):
            made = cls(0, 0, 0.0, 0.0)
        if min(made.devices, made.flops, made.bandwidth) <= 0:
            raise SpinError(
                f"--as {text!r} names no machine.", change="give devices x memory @ TFLOP/s / GB/s: 8x80g@150/1000."
            )
        return made


@dataclass(frozen=True)
class Work:
    """What scoring a model costs, counted: `weights` that a token is multiplied by (of a mixture all experts), those of
    the `head`, `stored` bytes, and bytes that the largest batch takes."""

    matrices: Sequence[Matrix]
    kinds: Sequence[str]
    batches: Sequence[Batch]
    weights: int
    head: int
    stored: int
    batch: int

    def flops_and_bytes(self, part: Sequence[Matrix]) -> tuple[float, float]:
        """(products, bytes moved) of one pass over all batches in which `part` is scored."""
        padded, tokens, responses, examples = 0, 0, 0, [0, 0]
        for batch in self.batches:
            padded += batch.tokens
            tokens += sum(len(example.input_ids) for example in batch.examples)
            responses += sum(example.response_tokens for example in batch.examples)
            examples[batch.aware] += len(batch.examples)
        scored = sum(matrix.weight.numel() for matrix in part)
        deepest = 1 + max(matrix.layer for matrix in self.matrices)
        above = 1 - (0.5 + min(matrix.layer for matrix in part)) / deepest  # of the lowest layer about half
        moved = sum(SUMMED[kind] for kind in self.kinds) + WRITTEN
        unaware = WRITTEN + SUMMED["signed"]
        sums = scored * (examples[True] * moved + examples[False] * unaware)
        products = 2 * (self.weights * padded * (1 + above) + self.head * responses * 2 + scored * tokens)
        return products, sums + 2 * self.stored * len(self.batches)


def counted(loaded: LoadedModel, batches: Sequence[Batch], matrices: Sequence[Matrix], kinds: Sequence[str]) -> Work:
    """The work of scoring an empty model."""
    head = loaded.model.get_output_embeddings().weight
    inside = sum(p.numel() for p in decoder_layers(loaded.model)[1].parameters() if p.ndim > 1)
    stored = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    batch = kept_bytes(loaded, max(batches, key=lambda batch: batch.tokens), matrices)
    return Work(matrices, kinds, batches, inside, head.numel(), stored, batch)


def kept_bytes(loaded: LoadedModel, batch: Batch, matrices: Sequence[Matrix]) -> int:
    """Bytes that a batch takes: what is kept between forward and backward pass on an empty model, the logits of its
    responses and their gradient, and what comes with them."""
    own = {p.untyped_storage()._cdata for p in (*loaded.model.parameters(), *loaded.model.buffers())}
    kept: dict[int, torch.Tensor] = {}  # holding it, so that no later one gets its name

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (name := tensor.untyped_storage()._cdata) not in own:
            kept[name] = tensor.detach()
        return tensor

    rows, width = len(batch.examples), batch.tokens // len(batch.examples)
    ids = torch.zeros(rows, width, dtype=torch.long, device="meta")
    mask = torch.zeros(rows, 1, width, width, dtype=loaded.dtype, device="meta")  # ready: else ids are looked at
    with scoring_mode(loaded.model), ExitStack() as hooks, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        for matrix in (one for one in matrices if one.part is None):
            hooks.enter_context(gradient_hook(matrix, lambda *_: None))
            hooks.callback(matrix.module.register_forward_pre_hook(lambda _, inputs: (keep(inputs[0]),)).remove)
        keep(loaded.model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False)[0])
    head = loaded.model.get_output_embeddings().weight
    logits = sum(e.response_tokens for e in batch.examples) * head.shape[0] * head.element_size()
    return int(BACKWARD * (sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) + 2 * logits))


def plan_as(settings: RunSettings, text: str) -> Report:
    """What `lines` prints of a run on the machine `text`.

    Raises SpinError when that is none, or the model is too large for it.
    """
    machine = Machine.named(text)
    loaded = load_empty(settings.model, dtype=settings.dtype, trust_remote_code=settings.trust_remote_code)
    matrices = editable_matrices(loaded.model, settings.target)
    settings, sets = scored_sets(settings, loaded)
    how = scoring_of(settings)
    batches = [batch for sides in sets.values() for batch in make_batches(*sides, matrices=matrices)]
    work = counted(loaded, batches, matrices, accumulators(how.statistics))
    finishing = finishing_bytes(matrices, len(how.statistics))
    sizes = {matrix.name: matrix_bytes(matrix, work.kinds) for matrix in matrices}

    def rooms(devices: int) -> int:
        """Bytes for accumulators on each of the devices that the model is spread over."""
        return int((machine.memory - work.stored / devices) * DEFAULT_SHARE) - max(work.batch // devices, finishing)

    spread = 1 if rooms(1) >= max(sizes.values()) else machine.devices
    if (room := rooms(spread)) < max(sizes.values()):
        raise SpinError(
            f"{settings.model} does not fit {text}: its weights take {in_words(work.stored)}, a batch "
            f"{in_words(work.batch)}, the sums of one matrix {in_words(max(sizes.values()))}.",
            change="name more devices or larger ones, or a smaller --max-length.",
        )
    layers = 1 + max(matrix.layer for matrix in matrices)
    places = {matrix.name: matrix.layer * spread // layers for matrix in matrices}
    passes = fewest_passes(matrices, sizes, places, dict.fromkeys(range(spread), room))
    costs = [work.flops_and_bytes(part) for part in passes]
    ranks = machine.devices if spread == 1 else 1  # one device after the other computes where a model is spread
    fullest = max(sum(sizes[matrix.name] for matrix in part) for part in passes)
    return {
        "model": settings.model,
        "machine": text,
        "assumed": {"tflops": machine.flops / 1e12, "gigabytes_a_second": machine.bandwidth / 1e9},
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "spread": spread,
        "ranks": ranks,
        "passes": len(passes),
        "stored": work.stored,
        "accumulators": fullest,
        "batch": max(work.batch, finishing),
        "disk": 2 * fullest,
        "score_files": int(settings.keep * sum(m.weight.numel() for m in matrices)) * KEPT_BYTES * len(sets),
        "examples": sum(len(batch.examples) for batch in batches),
        "flops": sum(flops for flops, _ in costs),
        "bytes": sum(moved for _, moved in costs),
        "seconds": sum(flops / machine.flops + moved / machine.bandwidth for flops, moved in costs) / ranks,
    }


def lines(report: Report) -> list[str]:
    """The plan, a finding a line."""
    return list(_lines(report))


def _lines(found: Report) -> Iterator[str]:
    one, several = found["spread"] == 1, found["passes"] > 1
    yield f"model      {found['model']}: {found['parameters'] / 1e9:,.2f}B parameters, {in_words(found['stored'])}"
    yield (
        f"machine    {found['machine']}: {found['assumed']['tflops']:g} TFLOP/s and "
        f"{found['assumed']['gigabytes_a_second']:g} GB/s a device, as given or assumed; nothing was measured there"
    )
    where = "one device holds it" if one else f"spread over {found['spread']} devices, which compute in turn"
    yield (
        f"memory     {where}: {in_words(found['accumulators'])} accumulators and {in_words(found['batch'])} a batch "
        "beside the weights, in all"
    )
    shared = f" shared by {found['ranks']} processes" if found["ranks"] > 1 else ""
    yield (
        f"plan       {found['passes']} {'passes' if several else 'pass'} over {found['examples']} examples, about "
        f"{found['seconds']:,.0f} s of scoring by arithmetic: {found['flops'] / 1e15:,.2f} PFLOP, "
        f"{found['bytes'] / 1e12:,.2f} TB{shared}"
    )
    yield (
        f"disk       {in_words(found['disk'])} while it scores, {in_words(found['score_files'])} of scores, and "
        f"{in_words(found['stored'])} for each edited checkpoint"
    )
    name = found["model"]
    if found["ranks"] > 1:
        yield (
            f"command    torchrun --nproc-per-node {found['ranks']} -m spin_llm.cli score {name} -o RUN, then "
            f"spin-llm run {name} -o RUN"
        )
    else:
        yield f"command    spin-llm run {name} -o RUN{'' if one else ' --device-map auto'}"
