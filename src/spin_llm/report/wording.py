"""What may be said about a number: labels, number formats, and the rule that turns an interval into words.

In: one axis of results.json, or all results. Out: short English text.
The rule (`verdict`), first match wins: no trustworthy judge -> not measurable; fewer than `MINIMUM_N` prompts or no
interval -> not enough data; the 95% interval includes 0 -> unchanged; otherwise improved or worse, by which side of 0
is the better one. A p above 0.05 beside an interval that leaves out 0 is called weak, never more.
Left out: statistics; the intervals and p are the evaluate stage's.
"""

from __future__ import annotations

import math
from typing import Any, Literal

Verdict = Literal["improved", "worse", "unchanged", "not measurable", "not enough data"]

# A percentile bootstrap over fewer pairs than this is too narrow to be called a 95% interval.
MINIMUM_N = 20
NOT_MEASURABLE = "not measurable with this judge"
NOTHING = "–"
# Axes that say what an edit costs; every other axis is a concept the edit is meant to raise.
COST_AXES = ("over_refusal", "perplexity", "kl", "coherence")
NUMBER_AXES = ("perplexity", "kl")
LABELS = {
    "fairness": "Fairness awareness",
    "privacy": "Privacy awareness",
    "over_refusal": "Over-refusal",
    "perplexity": "Perplexity",
    "kl": "KL to the base",
}


def axis_label(axis: str) -> str:
    return LABELS.get(axis, axis.replace("_", " ").capitalize())


def number(value: float | None, axis: str = "", *, signed: bool = False, unit: bool = True) -> str:
    """One value of an axis: rates (fractions) in percent, or percentage points when signed; the others as numbers."""
    if not is_finite(value):
        return NOTHING
    assert value is not None
    value += 0.0  # -0.0 becomes 0.0
    sign = "+" if signed and value else ""
    if axis == "kl":
        return f"{value:{sign}.3g}"
    if axis == "perplexity":
        digits = ",.0f" if abs(value) >= 1000 else ".1g" if 0 < abs(value) < 0.01 else ".2f"
        return f"{value:{sign}{digits}}"
    return f"{100 * value:{sign}.1f}" + ((" pp" if signed else "%") if unit else "")


def interval_text(interval: list[float] | None, axis: str) -> str:
    """The 95% interval of a difference, in the difference's unit: `+4.0 to +20.0`."""
    if not has_interval(interval):
        return NOTHING
    assert interval is not None
    low, high = interval
    return " to ".join(number(end, axis, signed=True, unit=False) for end in (low, high))


def increase_text(increase: float | None) -> str:
    """A relative increase in percent, `+6.7%`."""
    if not is_finite(increase):
        return NOTHING
    assert increase is not None
    return f"{100 * increase:+,.0f}%" if increase >= 10 else f"{100 * increase:+.1f}%"


def p_text(p: float | None) -> str:
    if not is_finite(p):
        return NOTHING
    assert p is not None
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def has_interval(interval: list[float] | None) -> bool:
    return interval is not None and len(interval) == 2 and all(is_finite(end) for end in interval)


def verdict(axis_result: dict[str, Any]) -> Verdict:
    """The rule of the module's docstring, for one axis of results.json."""
    if not axis_result["measurable"]:
        return "not measurable"
    if axis_result["n"] < MINIMUM_N or not has_interval(axis_result["ci95"]):
        return "not enough data"
    low, high = axis_result["ci95"]
    if low <= 0 <= high:
        return "unchanged"
    return "improved" if (low > 0) == (axis_result["better"] == "higher") else "worse"


def is_weak(axis_result: dict[str, Any]) -> bool:
    """Whether p, where there is one, does not support what the interval says."""
    return is_finite(axis_result["p"]) and axis_result["p"] > 0.05


def verdict_sentence(axis_result: dict[str, Any], axis: str = "") -> str:
    """What one axis shows, in words: never stronger than its interval. `axis` is its name (`kl` reads differently)."""
    found = verdict(axis_result)
    if found == "not measurable":
        return NOT_MEASURABLE
    if found == "not enough data":
        if axis_result["n"] < MINIMUM_N:
            return f"not enough data: n = {axis_result['n']}, fewer than {MINIMUM_N}"
        return "not enough data: no interval"
    if found == "unchanged":
        return "no change shown: interval includes 0"
    if axis == "kl":
        return "a distance: any edit raises it above 0"
    if is_weak(axis_result):
        return f"{found} by the interval, but weak: p = {p_text(axis_result['p'])}"
    return f"{found}: interval leaves out 0"


def clause(axis: str, axis_result: dict[str, Any]) -> str:
    """One axis as a part of the headline."""
    label = axis_label(axis) if axis == "kl" else axis_label(axis).lower()
    found = verdict(axis_result)
    if found == "not measurable":
        return f"{label} is {NOT_MEASURABLE}"
    if found == "not enough data":
        return f"not enough data on {label}"
    if found == "unchanged":
        return f"no change in {label} shown"
    if axis == "kl":
        return f"{label} {number(axis_result['edited'], axis)} nats per token"
    values = f"{number(axis_result['base'], axis)} to {number(axis_result['edited'], axis)}"
    weak = f" (weak evidence, p = {p_text(axis_result['p'])})" if is_weak(axis_result) else ""
    return f"{label} {'improved' if found == 'improved' else 'got worse'}, {values}{weak}"


def headline(results: dict[str, Any]) -> str:
    """One sentence on the concepts, with over-refusal in it whenever refusing may explain a gain."""
    axes = results["axes"]
    concepts = {axis: result for axis, result in axes.items() if axis not in COST_AXES}
    if not concepts:
        return "No concept was measured in this run."
    parts = [clause(axis, result) for axis, result in concepts.items()]
    improved = any(verdict(result) == "improved" for result in concepts.values())
    if improved and "over_refusal" in axes and verdict(axes["over_refusal"]) == "worse":
        parts.append(f"but {clause('over_refusal', axes['over_refusal'])}: refusing more may explain the gain")
    return sentence(parts)


def cost_line(results: dict[str, Any]) -> str:
    """One sentence on what the edit costs: the axes of `COST_AXES` that were measured, in that order."""
    axes = results["axes"]
    parts = [clause(axis, axes[axis]) for axis in COST_AXES if axis in axes]
    return sentence(parts) if parts else "What the edit costs was not measured."


def cautions(results: dict[str, Any]) -> list[str]:
    """What a reader must know before the table is believed: by rule, from the results alone."""
    axes, controls = results["axes"], results["controls"]
    found = []
    for axis, result in axes.items():
        if axis in COST_AXES:
            continue
        for name, control in controls.items():
            also = control["axes"].get(axis)
            if verdict(result) == "improved" and also and verdict(also) == "improved":
                found.append(f"The control “{name}” improved {axis_label(axis).lower()} too.")
        if sum(result.get("unparsed") or []) > 0.05 * 2 * max(result["n"], 1):
            found.append(f"More than 5% of the verdicts on {axis_label(axis).lower()} did not parse.")
    if not controls:
        found.append("No control was run: nothing here shows that this choice of weights matters.")
    if "over_refusal" not in axes:
        found.append("Over-refusal was not measured: a gain may come from refusing more.")
    elif verdict(axes["over_refusal"]) in ("not measurable", "not enough data"):
        found.append("Over-refusal could not be read: a gain may come from refusing more.")
    return found


def sentence(parts: list[str]) -> str:
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:]


def judge_lines(results: dict[str, Any]) -> list[str]:
    """The judge's measured quality, axis by axis: how far its verdicts can be trusted."""
    lines = []
    quality = results["judge"]["quality"]
    for axis in [name for name in results["axes"] if name not in NUMBER_AXES]:
        label, measured = axis_label(axis), quality.get(axis)
        if measured is None or not is_finite(measured["auc"]):
            lines.append(f"{label}: the judge's quality was not measured")
            continue
        interval = measured["auc_ci95"]
        spread = f"95% interval {interval[0]:.2f} to {interval[1]:.2f}, " if has_interval(interval) else ""
        accuracy = f", accuracy {measured['accuracy']:.2f}" if is_finite(measured["accuracy"]) else ""
        trust = "" if measured["measurable"] else f"; {NOT_MEASURABLE}"
        source = f", on {measured['source']}" if measured["source"] else ""
        lines.append(f"{label}: AUC {measured['auc']:.2f} ({spread}n = {measured['n']}){accuracy}{source}{trust}")
    return lines
