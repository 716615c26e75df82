"""Layer by layer: how far two concepts' representations depend on each other, before and after an edit.

In: a loaded model, (prompt, response) pairs of two concepts, a selection. Out: a dictionary for JSON: per place
(representations.py) and layer the measures of dependence.py and information.py, with p-values, bands, sensitivity, and
the change with a band of its own. Both states have their own median bandwidth, so that a change of scale alone is no
change; the band of the change takes the same half samples of both. Left out: what a pairing means, and wording
(docs/information.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from spin_llm.analysis import dependence
from spin_llm.analysis.dependence import Floats, Indices
from spin_llm.analysis.information import projected_information
from spin_llm.analysis.representations import (
    FRAMINGS,
    PLACES,
    Representations,
    edited,
    framed_pairs,
    representations,
    shuffled_pairs,
)
from spin_llm.data import Pair, Rendering, encode_all, resolve_template
from spin_llm.errors import SpinError
from spin_llm.models import LoadedModel
from spin_llm.progress import SILENT, Console
from spin_llm.results.paper import Measures
from spin_llm.selection import Selection
from spin_llm.stats.paired import holm

PAIRINGS = ("shuffled", "framed")


@dataclass(frozen=True)
class _State:
    """The numbers of one state of one layer, and the half samples' (count,) HSIC and CKA that bands are made of."""

    numbers: dict[str, Any]
    hsic: Floats
    cka: Floats


def information_report(
    loaded: LoadedModel,
    pairs: Mapping[str, Sequence[Pair]],
    selection: Selection | None = None,
    *,
    scale: float = 0.0,
    pairing: str = "shuffled",
    framings: Mapping[str, str] = FRAMINGS,
    template: str | Rendering = "auto",
    max_length: int = 1024,
    measures: Measures = Measures(),  # noqa: B008 (frozen)
    console: Console = SILENT,
) -> dict[str, Any]:
    """Dependence between two concepts at every layer; with a `selection`, also after it is multiplied by `scale`.

    `pairs` by concept, two of them. `pairing`: `shuffled` sets the i-th example of one beside the i-th of the other, as
    the paper does; `framed` sets every prompt of both, in the framing of one concept, beside itself in the framing of
    the other. Raises SpinError for another number of concepts, an unknown pairing, and too few pairs.
    """
    sides = _sides(pairs, pairing, framings, measures.seed)
    n = len(sides[0])
    dependence.check_pairs(n)
    examples = [encode_all(loaded.tokenizer, side, template=template, max_length=max_length) for side in sides]
    states: list[list[Representations]] = []
    for name, chosen in (("base", None), ("edited", selection))[: 2 if selection else 1]:
        with edited(loaded, chosen, scale=scale), console.bar(f"hidden states, {name}", 2 * n) as advance:
            states.append([representations(loaded, side, progress=advance) for side in examples])
    layers, _, dimensions = states[0][0].last_prompt.shape
    halves = dependence.half_samples(n, measures.halves, measures.seed)
    places: dict[str, list[dict[str, Any]]] = {place: [] for place in PLACES}
    with console.bar("dependence", len(PLACES) * layers) as advance:
        for place, rows in places.items():
            for layer in range(layers):
                found = [[getattr(side, place)[layer].double().numpy() for side in state] for state in states]
                rows.append({"layer": layer, **_layer(found, measures, halves)})
                advance(1)
            _adjust(rows)
    return {
        "concepts": list(pairs),
        "pairing": pairing,
        "framings": {concept: framings[concept] for concept in pairs} if pairing == "framed" else None,
        "template": resolve_template(loaded.tokenizer, template),
        "pairs": n,
        "dimensions": dimensions,
        "edited_weights": selection.weights if selection else 0,
        "scale": scale,
        "measures": {**asdict(measures), "multipliers": list(measures.multipliers)},
        "places": places,
    }


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


def _layer(states: Sequence[Sequence[Floats]], measures: Measures, halves: Indices) -> dict[str, Any]:
    """One layer's row from its states (base, and edited where there is one), each (x, y)."""
    found = [_state(x, y, measures, halves) for x, y in states]
    row: dict[str, Any] = {"before": found[0].numbers, "after": None, "change": None}
    if len(found) > 1:
        before, after = found
        row["after"] = after.numbers
        row["change"] = {
            "hsic": _change(before.numbers["hsic"], after.numbers["hsic"], after.hsic - before.hsic),
            "cka": _change(before.numbers["cka"], after.numbers["cka"], after.cka - before.cka),
        }
    return row


def _state(x: Floats, y: Floats, measures: Measures, halves: Indices) -> _State:
    distances = [dependence.squared_distances(side) for side in (x, y)]
    bandwidths = [dependence.median_bandwidth(side) for side in distances]
    K, L = (dependence.gaussian_kernel(side, width) for side, width in zip(distances, bandwidths, strict=True))
    hsic, cka = dependence.hsic_unbiased(K, L), dependence.cka(K, L)
    hsic_halves, cka_halves = dependence.resampled(K, L, halves)
    numbers: dict[str, Any] = {
        "bandwidths": bandwidths,
        "hsic_biased": dependence.hsic_biased(K, L),
        "hsic_of_independent": dependence.hsic_of_independent(K, L),
        "hsic": hsic,
        "hsic_band": dependence.band(hsic, hsic_halves),
        "p": dependence.permutation_p(K, L, permutations=measures.permutations, seed=measures.seed),
        "cka_biased": dependence.cka(K, L, debiased=False),
        "cka": cka,
        "cka_band": dependence.band(cka, cka_halves),
        "cka_linear": dependence.cka(dependence.linear_kernel(x), dependence.linear_kernel(y)),
        "sensitivity": dependence.sensitivity(
            *distances, multipliers=measures.multipliers, permutations=measures.permutations, seed=measures.seed
        ),
        "projected": _opinion(x, y, measures),
    }
    return _State(numbers, hsic_halves, cka_halves)


def _opinion(x: Floats, y: Floats, measures: Measures) -> dict[str, Any] | None:
    if not measures.opinions:
        return None
    return projected_information(
        x,
        y,
        components=measures.components,
        neighbours=measures.neighbours,
        permutations=measures.opinions,
        seed=measures.seed,
    )


def _change(before: float | None, after: float | None, halves: Floats) -> dict[str, Any]:
    """Edited - base, with the band from the halves' differences."""
    value = None if before is None or after is None else after - before
    return {"value": value, "band": dependence.band(value, halves)}


def _adjust(rows: Sequence[dict[str, Any]]) -> None:
    """Put `p_holm`, Holm's adjustment of p over the layers, into each state of one place."""
    for state in ("before", "after"):
        if rows[0][state]:
            adjusted = holm({str(row["layer"]): row[state]["p"] for row in rows})
            for row in rows:
                row[state]["p_holm"] = adjusted[str(row["layer"])]
