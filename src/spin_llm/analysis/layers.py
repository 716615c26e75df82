"""Layer by layer: how far two concepts' representations depend on each other, before and after an edit.

In: a loaded model, (prompt, response) pairs of two concepts, a selection. Out: `DependenceRecord`. Which examples make
a pair is said by the pairing; each example is represented, per layer, by the hidden state at the last prompt token and
by the mean over the response tokens. Layer 0 is the embedding, layer l the output of decoder layer l; of most models
transformers gives the last one after the final norm. Per place and layer there are the measures of dependence.py, with
p-values, bands, sensitivity, and the change with a band of its own. Both states have their own median bandwidth, so
that a change of scale alone is no change; the band of the change takes the same half samples of both. Left out: what a
pairing can and cannot show, and wording (docs/information.md).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from spin_llm.analysis import dependence
from spin_llm.analysis.dependence import Floats, Indices, projected_information
from spin_llm.data import Example, Pair, Rendering, encode_all, plain, resolve_template
from spin_llm.errors import SpinError
from spin_llm.models import LoadedModel
from spin_llm.models.losses import length_sorted_batches
from spin_llm.patch.patch import memory_patch
from spin_llm.progress import SILENT, Console
from spin_llm.results.paper import Dependence, DependenceRecord, LayerRecord, Measures, Shift
from spin_llm.selection import Selection
from spin_llm.settings.data import DataSettings
from spin_llm.stats.paired import holm

if TYPE_CHECKING:
    from jaxtyping import Float32

PLACES = ("last_prompt", "mean_response")
FRAMINGS = {
    "fairness": "Think about whether this treats every group of people fairly.\n\n{prompt}",
    "privacy": "Think about whether this respects the privacy of every person.\n\n{prompt}",
}
PAIRINGS = ("shuffled", "framed")
MEASURES = Measures()


@dataclass(frozen=True)
class Representations:
    """Hidden states of n examples, in their order, on the CPU."""

    last_prompt: Float32[torch.Tensor, "layers+1 n d"]
    mean_response: Float32[torch.Tensor, "layers+1 n d"]


@dataclass(frozen=True)
class _State:
    """The numbers of one state of one layer, and the half samples' (count,) HSIC and CKA that bands are made of."""

    numbers: Dependence
    hsic: Floats
    cka: Floats


def information_report(
    loaded: LoadedModel,
    pairs: Mapping[str, Sequence[Pair]],
    selection: Selection | None = None,
    *,
    pairing: str = "shuffled",
    framings: Mapping[str, str] = FRAMINGS,
    template: str | Rendering = "auto",
    measures: Measures = MEASURES,
    console: Console = SILENT,
) -> DependenceRecord:
    """Dependence between two concepts at every layer; with a `selection`, also after it is edited as its recipe says.

    `pairs` by concept, two of them. `pairing`: `shuffled` sets the i-th example of one beside the i-th of the other, as
    the paper does; `framed` sets every prompt of both, in the framing of one concept, beside itself in the framing of
    the other. Raises SpinError for another number of concepts, an unknown pairing, and too few pairs.
    """
    sides = _sides(pairs, pairing, framings, measures.seed)
    if (n := len(sides[0])) < (least := dependence.LEAST):
        raise SpinError(f"{n} pairs are too few to measure dependence.", change=f"give {least} or more.")
    length = DataSettings.max_length
    examples = [encode_all(loaded.tokenizer, side, template=template, max_length=length) for side in sides]
    edit = memory_patch(loaded, selection) if selection else None
    states = []
    for name in ("base", "edited") if edit else ("base",):
        view = edit.applied(loaded) if edit and name == "edited" else nullcontext(loaded)
        with view, console.bar(f"hidden states, {name}", 2 * n) as advance:
            states.append([representations(loaded, side, progress=advance) for side in examples])
    layers, _, dimensions = states[0][0].last_prompt.shape
    halves = dependence.half_samples(n, measures.halves, measures.seed)
    places = {}
    with console.bar("dependence", len(PLACES) * layers) as advance:
        for place in PLACES:
            found: list[list[_State]] = [[] for _ in states]
            for layer in range(layers):
                for state, sides_of in zip(found, states, strict=True):
                    x, y = (getattr(side, place)[layer].double().numpy() for side in sides_of)
                    state.append(_state(x, y, measures, halves))
                advance(1)
            places[place] = _rows(*found)
    return DependenceRecord(
        concepts=list(pairs),
        pairing=pairing,
        framings={concept: framings[concept] for concept in pairs} if pairing == "framed" else None,
        template=resolve_template(loaded.tokenizer, template),
        pairs=n,
        dimensions=dimensions,
        edited_weights=selection.weights if selection else 0,
        scale=selection.recipe.scale if selection else 0.0,
        measures=measures,
        places=places,
    )


def _sides(
    pairs: Mapping[str, Sequence[Pair]], pairing: str, framings: Mapping[str, str], seed: int
) -> tuple[list[Pair], list[Pair]]:
    if len(pairs) != 2:
        raise SpinError(f"Dependence is between two concepts, and {len(pairs)} were given.")
    if pairing not in PAIRINGS:
        raise SpinError(f"Unknown pairing {pairing!r}.", change=f"give {' or '.join(PAIRINGS)}.")
    first, second = pairs.values()
    if pairing == "shuffled":
        return shuffled_pairs(first, second, seed=seed)
    return framed_pairs([*first, *second], list(pairs), framings=framings)


def shuffled_pairs(first: Sequence[Pair], second: Sequence[Pair], *, seed: int = 0) -> tuple[list[Pair], list[Pair]]:
    """The paper's comparison: the i-th example of one concept with the i-th of the other, each shuffled by `seed` and
    cut to the shorter. These pairs are independent by construction, whatever the model is."""
    draw = random.Random(seed)
    n = min(len(first), len(second))
    return draw.sample(list(first), len(first))[:n], draw.sample(list(second), len(second))[:n]


def framed_pairs(
    pairs: Sequence[Pair], concepts: Sequence[str], *, framings: Mapping[str, str] = FRAMINGS
) -> tuple[list[Pair], list[Pair]]:
    """The same prompt and response under both concepts: each prompt put into the framing of one, and of the other.

    Raises SpinError for a concept without a framing, and for a framing without `{prompt}`.
    """
    for concept in concepts:
        if "{prompt}" not in framings.get(concept, ""):
            raise SpinError(
                f"There is no framing of the concept {concept!r}.",
                cause="only fairness and privacy have one of their own; a framing is a text that holds {prompt}.",
                change="give framings for both concepts.",
            )
    first, second = ([_framed(pair, framings[concept]) for pair in pairs] for concept in concepts)
    return first, second


def _framed(pair: Pair, framing: str) -> Pair:
    """The pair with its prompt in a framing; of a conversation the last turn of the user."""
    if not pair.turns:
        return replace(pair, prompt=framing.replace("{prompt}", pair.prompt))
    last = max(place for place, turn in enumerate(pair.turns) if turn.role == "user")
    said = pair.turns[last]._replace(content=framing.replace("{prompt}", pair.turns[last].content))
    turns = (*pair.turns[:last], said, *pair.turns[last + 1 :])
    return replace(pair, prompt=plain(turns), turns=turns)


def representations(
    loaded: LoadedModel,
    examples: Sequence[Example],
    *,
    batch_tokens: int = 4096,
    progress: Callable[[int], None] = lambda examples_done: None,
) -> Representations:
    """One forward pass over the decoder, without the head.

    Padded on the right without a mask: in a causal model no real token sees the padding (models/losses.py). Raises
    SpinError when a hidden state is not finite.
    """
    order = sorted(range(len(examples)), key=lambda place: len(examples[place].input_ids), reverse=True)  # as batches
    parts: list[torch.Tensor] = []
    decoder = loaded.model.get_decoder() if hasattr(loaded.model, "get_decoder") else loaded.model
    with torch.inference_mode():
        for batch in length_sorted_batches(examples, batch_tokens):
            ids, last, response = _batch(batch)
            found = decoder(input_ids=ids.to(loaded.device), use_cache=False, output_hidden_states=True).hidden_states
            parts.append(torch.stack([_two_places(states, last, response) for states in found], dim=1))
            progress(len(batch))
    together = torch.cat(parts, dim=2)
    if not together.isfinite().all():
        raise SpinError("A hidden state is not finite.", change="use --dtype float32.")
    ordered = torch.empty_like(together)
    ordered[:, :, order] = together
    return Representations(ordered[0], ordered[1])


def _batch(batch: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids (b, t), place of the last prompt token (b,), weights (b, t) whose sum over a row is the response's mean)."""
    width = max(len(example.input_ids) for example in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    weights = torch.zeros(len(batch), width)
    last = torch.tensor([len(example.input_ids) - example.response_tokens - 1 for example in batch])
    for row, example in enumerate(batch):
        length = len(example.input_ids)
        ids[row, :length] = torch.tensor(example.input_ids)
        weights[row, length - example.response_tokens : length] = 1 / example.response_tokens
    return ids, last, weights


def _two_places(states: torch.Tensor, last: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(2, b, d) on the CPU: hidden states (b, t, d) at the last prompt token, and averaged over the response."""
    wide = states.float()
    at_last = wide[torch.arange(len(last), device=wide.device), last.to(wide.device)]
    mean = torch.einsum("bt,btd->bd", weights.to(wide.device), wide)
    return torch.stack([at_last, mean]).cpu()


def _state(x: Floats, y: Floats, measures: Measures, halves: Indices) -> _State:
    distances = [dependence.squared_distances(side) for side in (x, y)]
    bandwidths = [dependence.median_bandwidth(side) for side in distances]
    K, L = (dependence.gaussian_kernel(side, width) for side, width in zip(distances, bandwidths, strict=True))
    hsic, cka = dependence.hsic_unbiased(K, L), dependence.cka(K, L)
    hsic_halves, cka_halves = dependence.resampled(K, L, halves)
    numbers = Dependence(
        bandwidths=bandwidths,
        hsic_biased=dependence.hsic_biased(K, L),
        hsic_of_independent=dependence.hsic_of_independent(K, L),
        hsic=hsic,
        hsic_band=dependence.band(hsic, hsic_halves),
        p=dependence.permutation_p(K, L, permutations=measures.permutations, seed=measures.seed),
        cka_biased=dependence.cka(K, L, debiased=False),
        cka=cka,
        cka_band=dependence.band(cka, cka_halves),
        cka_linear=dependence.cka(dependence.linear_kernel(x), dependence.linear_kernel(y)),
        sensitivity=dependence.sensitivity(distances[0], distances[1], measures),
        projected=projected_information(x, y, measures) if measures.opinions else None,
    )
    return _State(numbers, hsic_halves, cka_halves)


def _rows(base: Sequence[_State], edited: Sequence[_State] | None = None) -> list[LayerRecord]:
    """One place, layer by layer, p adjusted over the layers of either state."""
    before = _with_holm(base)
    if edited is None:
        return [LayerRecord(layer, one) for layer, one in enumerate(before)]
    after = _with_holm(edited)
    changes = [
        {
            "hsic": _change(was.numbers.hsic, now.numbers.hsic, now.hsic - was.hsic),
            "cka": _change(was.numbers.cka, now.numbers.cka, now.cka - was.cka),
        }
        for was, now in zip(base, edited, strict=True)
    ]
    return [LayerRecord(layer, *row) for layer, row in enumerate(zip(before, after, changes, strict=True))]


def _with_holm(states: Sequence[_State]) -> list[Dependence]:
    adjusted = holm({str(layer): state.numbers.p for layer, state in enumerate(states)})
    return [replace(state.numbers, p_holm=adjusted[str(layer)]) for layer, state in enumerate(states)]


def _change(before: float | None, after: float | None, halves: Floats) -> Shift:
    """Edited - base, with the band from the halves' differences."""
    value = None if before is None or after is None else after - before
    return Shift(value, dependence.band(value, halves))
