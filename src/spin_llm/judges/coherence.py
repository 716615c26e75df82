"""The axis `coherence`: the share of answers to questions on concepts that are readable and to the point.

In: rows of generations.jsonl and a judge of the label `coherent` (the shipped local judge, whichever judges the rest).
Out: verdict rows under the axis `coherence` with the ids of the questions, and the judge's quality over both concepts.
An edit can break answers without moving perplexity on other texts, and a broken answer can pass as safe; hence an axis
of its own. How well it is measured, beside simple heuristics: docs/axes.md. Left out: repetition (evaluate/style.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spin_llm.judges.local import LocalJudge, load_local
from spin_llm.judges.quality.reading import NOT_LIKE_THESE, Asked, Reading, reading
from spin_llm.judges.verdict import Judge

AXIS = "coherence"
LABEL = "coherent"
WEIGHTED = ("accuracy", "brier")
COUNTED = ("sensitivity", "specificity")
BY_CONCEPT = ("auc", "auc_ci95", "auc_bound", "accuracy", "positive_rate", "brier", "n", "measurable")


def load_coherence_judge() -> LocalJudge:
    """The shipped local judge for its label `coherent`; it shares its feature model with the judge of the others."""
    return load_local(label=LABEL)


def coherence_reading(judge: Judge, asked: Asked) -> Reading:
    """What is known of the judge of coherence on the answers to the questions on concepts: all of them, or it is not
    read."""
    concepts = [axis for axis in asked.sources if axis in judge.axes]
    found = {axis: reading(judge, axis, asked) for axis in concepts if axis != "over_refusal"}
    why = next((one.why_not for one in found.values() if one.why_not), "" if found else NOT_LIKE_THESE)
    known = {axis: one.quality for axis, one in found.items() if one.quality}
    return Reading(coherence_quality(known) if known and len(known) == len(found) else None, why)


def coherence_quality(quality: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One quality for the axis from {concept: quality} of the `coherent` heads.

    Counts add up; accuracy, Brier score and positive rates are means weighted by n. Heads of two concepts have no AUC
    in common, so the AUC and its interval are those of the weaker concept, and `by_concept` has both. {} without heads.
    """
    heads = {concept: head for concept, head in quality.items() if concept != "over_refusal"}
    if not heads:
        return {}
    total = sum(head["n"] for head in heads.values())
    weakest = min(heads, key=lambda concept: heads[concept]["auc"] or 0)

    def mean(values: Sequence[float]) -> float:
        return float(sum(head["n"] * value for head, value in zip(heads.values(), values, strict=True)) / total)

    pooled = {name: mean([head[name] for head in heads.values()]) for name in WEIGHTED}
    rates = [mean([head["positive_rate"][side] for head in heads.values()]) for side in (0, 1)]
    counts = {
        name: [sum(head[name][place] for head in heads.values()) for place in (0, 1)]
        for name in COUNTED
        if all(head.get(name) for head in heads.values())
    }
    return {
        "auc": heads[weakest]["auc"],
        "auc_ci95": heads[weakest]["auc_ci95"],
        "auc_bound": heads[weakest].get("auc_bound"),
        **pooled,
        "positive_rate": rates,
        **counts,
        "n": total,
        "measurable": all(head["measurable"] for head in heads.values()),
        "source": f"{heads[weakest]['source']}; the AUC is {weakest}'s, the lower one (n = {heads[weakest]['n']})",
        "by_concept": {concept: {key: head.get(key) for key in BY_CONCEPT} for concept, head in heads.items()},
    }
