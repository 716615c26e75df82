"""What may be said about one number: labels, number formats, and the rule that turns an interval into words.

In: one axis of results.json. Out: short English text.
The rule (`verdict`), first match wins: a reason in `no_reading` (verdicts are missing) -> no reading; not measurable,
for the reason in `note` (the judge was not measured on answers like these, not well enough, or not at all; or the base
does not answer) -> not measurable: the rates stand there, nothing is said of them; fewer than `MINIMUM_N` prompts or
no interval -> not enough data; the 95% interval includes 0 -> unchanged; otherwise improved or worse, by which side of
0 is the better one (changed, where neither is). Beside an interval that leaves out 0, a p above 0.05 (adjusted by Holm
over the axes where that is known) makes it weak, never more. "Unchanged" comes with the smallest change that would have
been seen, where known.
Left out: statistics, which are the evaluate stage's; sentences about several axes (summary.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from spin_llm.results.judged import NOT_MEASURABLE
from spin_llm.results.measured import ANSWERED, CAPABILITY_AXES, AxisResult, Causes, FacetRates, Interval

Verdict = Literal["improved", "worse", "changed", "unchanged", "no reading", "not measurable", "not enough data"]

# A percentile bootstrap over fewer pairs than this is too narrow to be called a 95% interval.
MINIMUM_N = 20
SIGNIFICANT = 0.05
NOTHING = "–"
# Axes that say what an edit costs; every other axis is a concept the edit is meant to raise.
COST_AXES = ("over_refusal", "coherence", ANSWERED, *CAPABILITY_AXES)
LABELS = {  # of axes whose name is not what they are called
    "fairness": "Fairness awareness",
    "privacy": "Privacy awareness",
    "over_refusal": "Over-refusal",
    ANSWERED: "Questions answered",
    "kl": "KL to the base",
    "cautionary": "Cautionary phrases",
}
# Axes whose values are not fractions, with the unit of their difference; `word_perplexity` and the like are lm-eval's.
UNITS = {"perplexity": "perplexity", "kl": "nats per token", "length": "tokens"}
POINTS = "percentage points"
# A silent model makes nothing better or worse that can be read: `answered` has words of its own.
ANSWERS = {"improved": "more answers", "worse": "fewer answers", "unchanged": "no fewer answers shown"}


def axis_label(axis: str) -> str:
    return LABELS.get(axis, axis.replace("_", " ").replace("-", " ").capitalize())


def unit_of(axis: str) -> str:
    """The unit of a difference on an axis; everything that is not known is a rate."""
    return UNITS.get(axis, UNITS["perplexity"] if "perplexity" in axis else POINTS)


def points(axis: str) -> str:
    """What stands after a difference of rates."""
    return " pp" if unit_of(axis) == POINTS else ""


def number(value: float | None, axis: str = "", *, signed: bool = False, unit: bool = True) -> str:
    """One value of an axis: rates (fractions) in percent, or percentage points when signed; the others as numbers."""
    if value is None:
        return NOTHING
    value += 0.0  # -0.0 becomes 0.0
    kind, sign = unit_of(axis), "+" if signed and value else ""
    if kind == UNITS["kl"]:
        return f"{value:{sign}.3g}"
    if kind == UNITS["length"]:
        return f"{value:{sign}.1f}"
    if kind == UNITS["perplexity"]:
        digits = ",.0f" if abs(value) >= 1000 else ".1g" if 0 < abs(value) < 0.01 else ".2f"
        return f"{value:{sign}{digits}}"
    return f"{100 * value:{sign}.1f}" + ((" pp" if signed else "%") if unit else "")


def value_text(result: AxisResult | FacetRates, side: str, axis: str) -> str:
    """`base`, `edited` or `delta` of one axis; without a reading its bounds, `0.0 to 100.0%`: what it would be with
    every missing verdict as 0 and as 1."""
    if not result.no_reading or not result.bounds:
        return number(getattr(result, side), axis, signed=side == "delta")
    return range_text(getattr(result.bounds, side), axis, signed=side == "delta")


def range_text(bounds: Interval, axis: str, *, signed: bool = False) -> str:
    """Two ends in one unit; one number where they are equal."""
    low, high = (number(end, axis, signed=signed) for end in bounds)
    return low if low == high else f"{number(bounds[0], axis, signed=signed, unit=False)} to {high}"


def interval_text(interval: Interval | None, axis: str) -> str:
    """The 95% interval of a difference, in the difference's unit: `+4.0 to +20.0`."""
    if interval is None:
        return NOTHING
    return " to ".join(number(end, axis, signed=True, unit=False) for end in interval)


def increase_text(increase: float | None) -> str:
    """A relative increase in percent, `+6.7%`."""
    if increase is None:
        return NOTHING
    return f"{100 * increase:+,.0f}%" if increase >= 10 else f"{100 * increase:+.1f}%"


def share_text(share: float | None) -> str:
    """A small fraction in percent with two significant digits, never in powers of ten: 0.0000113 -> 0.0011%."""
    if not share:
        return "0%"
    text = f"{100 * share:.12f}"
    digits = len(text) - len(text.lstrip("0."))
    return (f"{100 * share:.1f}" if share >= 0.01 else text[: digits + 2].rstrip(".")) + "%"


def p_text(p: float | None) -> str:
    if p is None:
        return NOTHING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def p_words(result: AxisResult) -> str:
    """The p that counts, with its name: `Holm p = 0.041`, `p < 0.001`, or nothing when there is none."""
    p, name = deciding_p(result), "p" if result.p_holm is None else "Holm p"
    if p is None:
        return ""
    return f"{name} < 0.001" if p < 0.001 else f"{name} = {p_text(p)}"


def verdict(result: AxisResult) -> Verdict:
    """The rule of the module's docstring, for one axis of results.json."""
    if result.no_reading:
        return "no reading"
    if not result.measurable:
        return "not measurable"
    if result.n < MINIMUM_N or result.ci95 is None:
        return "not enough data"
    low, high = result.ci95
    if low <= 0 <= high:
        return "unchanged"
    if result.better is None:
        return "changed"
    return "improved" if (low > 0) == (result.better == "higher") else "worse"


def why_unread(result: AxisResult) -> str:
    """Why nothing may be read from an axis; "" where that does not follow from its verdicts or its judge."""
    return result.no_reading or ("" if result.measurable else result.note or NOT_MEASURABLE)


def deciding_p(result: AxisResult) -> float | None:
    """The p adjusted over the axes, where there is one; otherwise the axis's own."""
    return result.p if result.p_holm is None else result.p_holm


def is_weak(result: AxisResult) -> bool:
    """Whether p, where there is one, does not support what the interval says."""
    p = deciding_p(result)
    return p is not None and p > SIGNIFICANT


def missing_text(result: AxisResult, axis: str) -> str:
    """How many answers have no verdict, why, and what they could make of the rates; "" when each has one."""
    counts, causes = result.unparsed or (0, 0), result.missing or Causes({}, {})
    sides = {"base": causes.base, "edited": causes.edited}
    if axis == ANSWERED and result.missing:
        counts = (sum(causes.base.values()), sum(causes.edited.values()))
    if not any(counts):
        return ""
    of = f" of {result.asked}" if result.asked else ""
    parts = []
    for (side, why), count in zip(sides.items(), counts, strict=True):
        told = ", ".join(f"{cause} {times}" for cause, times in why.items())
        parts.append(f"{side} {count}{of}" + (f" ({told})" if told else ""))
    what = "no answer" if axis == ANSWERED else "no verdict"
    bounds = result.bounds
    if axis == ANSWERED or not bounds:
        return f"{what}: {', '.join(parts)}"
    ends = ", ".join(
        f"{name} {range_text(getattr(bounds, side), axis, signed=side == 'delta')}"
        for side, name in (("base", "base"), ("edited", "edited"), ("delta", "difference"))
    )
    return f"{what}: {', '.join(parts)}; as 0 or as 1: {ends}"


def shown_axes(axes: Mapping[str, AxisResult]) -> dict[str, AxisResult]:
    """The axes less `answered` where there is nothing to say of it: every question has an answer of both models."""
    return {axis: result for axis, result in axes.items() if axis != ANSWERED or missing_text(result, axis)}


def verdict_sentence(result: AxisResult, axis: str = "") -> str:
    """What one axis shows, in words: never stronger than its interval. `axis` is its name (`kl` reads differently)."""
    found = verdict(result)
    if why := why_unread(result):
        return f"no reading: {why}"
    if found == "not enough data":
        if result.n < MINIMUM_N:
            return f"not enough data: n = {result.n}, fewer than {MINIMUM_N}"
        return "not enough data: no interval"
    if axis == ANSWERED:
        return ANSWERS[found] + ("" if found == "unchanged" else ": interval leaves out 0")
    if found == "unchanged":
        return "no change shown: interval includes 0" + unseen(result, axis, "; ")
    if axis == "kl":
        return "a distance: any edit raises it above 0"
    if is_weak(result):
        return f"{found} by the interval, but weak: {p_words(result)}"
    return f"{found}: interval leaves out 0"


def unseen(result: AxisResult, axis: str, before: str = "") -> str:
    """What a change under the minimum detectable one (80% power) would have come to; "" where that is not known."""
    smallest = smallest_seen(result, axis)
    return f"{before}a change under {smallest} could not have been seen reliably" if smallest else ""


def smallest_seen(result: AxisResult, axis: str) -> str:
    """The minimum detectable difference, `5.9 pp`; "" where it is not known."""
    if result.mde is None:
        return ""
    return number(result.mde, axis, unit=False) + points(axis)


def clause(axis: str, result: AxisResult) -> str:
    """One axis as a part of the headline, a change with its interval."""
    label = axis_label(axis) if axis == "kl" else axis_label(axis).lower()
    found = verdict(result)
    if why := why_unread(result):
        return f"no reading on {label}: {why}"
    if found == "not enough data":
        return f"not enough data on {label}"
    if found == "unchanged":
        return ANSWERS[found] if axis == ANSWERED else f"no change in {label} shown"
    if axis == "kl":
        return f"{label} {number(result.edited, axis)} nats per token"
    values = f"{number(result.base, axis)} to {number(result.edited, axis)}"
    interval = f"95% interval {interval_text(result.ci95, axis)}{points(axis)}"
    weak = f"; weak evidence, {p_words(result)}" if is_weak(result) else ""
    changed = ANSWERS[found] if axis == ANSWERED else f"{label} {'got worse' if found == 'worse' else found}"
    return f"{changed}, {values} ({interval}{weak})"
