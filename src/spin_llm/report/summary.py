"""What may be said about a whole run: the headline, what the edit costs, what to be careful about, the judge's quality.

In: all of results.json. Out: short English sentences, made by rule from the verdicts on single axes (wording.py).
Left out: judgement; a sentence that no rule makes is not said.
"""

from __future__ import annotations

from typing import Any

from spin_llm.report.wording import (
    ANSWERED,
    CAPABILITY_AXES,
    COST_AXES,
    NOT_MEASURABLE,
    axis_label,
    clause,
    has_interval,
    is_finite,
    is_weak,
    shown_axes,
    verdict,
)


def headline(results: dict[str, Any]) -> str:
    """One sentence on the concepts, with refusing or broken answers in it whenever they may explain a gain."""
    axes = results["axes"]
    concepts = {axis: result for axis, result in axes.items() if axis not in COST_AXES}
    if not concepts:
        return "No concept was measured in this run."
    parts = [clause(axis, result) for axis, result in concepts.items()]
    if ANSWERED in axes and verdict(axes[ANSWERED]) == "worse":
        parts.append(clause(ANSWERED, axes[ANSWERED]))
    if any(verdict(result) == "improved" for result in concepts.values()):
        for axis, words in (("over_refusal", "refusing more"), ("coherence", "broken answers")):
            if axis in axes and verdict(axes[axis]) == "worse":
                weak = " (weak evidence)" if is_weak(axes[axis]) else ""
                parts.append(f"but {axis_label(axis).lower()} got worse{weak}: {words} may explain the gain")
    return sentence(parts)


def cost_line(results: dict[str, Any]) -> str:
    """One sentence on what the edit costs: the axes of `COST_AXES` that were measured, in that order."""
    axes = results["axes"]
    parts = [clause(axis, axes[axis]) for axis in COST_AXES if axis in shown_axes(axes)]
    return sentence(parts) if parts else "What the edit costs was not measured."


def cautions(results: dict[str, Any]) -> list[str]:
    """What a reader must know before the table is believed: by rule, from the results alone."""
    axes, controls = results["axes"], results["controls"]
    found = []
    for axis, result in axes.items():
        if axis in COST_AXES:
            continue
        if verdict(result) == "improved":
            found += control_cautions(axis, result, controls)
    if unread := [axis_label(axis).lower() for axis, result in axes.items() if verdict(result) == "no reading"]:
        found.append(
            f"Nothing is read from {', '.join(unread)}: more than 5% of a model's answers have no verdict, or the two "
            "models differ in that by more than 2 points, or those answers alone decide the reading."
        )
    search = results.get("search")
    if search and not search["found"]:
        found.append(
            "The search found no edit that it recommends: this one does not raise the margins of all concepts by more "
            "than chance, or its answers were beyond the limits."
        )
    if own := results.get("edit", {}).get("own_answers"):
        found.append(own_caution(own))
    if not controls:
        found.append("No control was run: nothing here shows that this choice of weights matters.")
    if "over_refusal" not in axes:
        found.append("Over-refusal was not measured: a gain may come from refusing more.")
    elif verdict(axes["over_refusal"]) in ("no reading", "not measurable", "not enough data"):
        found.append("Over-refusal could not be read: a gain may come from refusing more.")
    return found


def own_caution(own: dict[str, Any]) -> str:
    """What the judge that divided the model's own answers may have done to the edit."""
    if not own["reports"]:
        return (
            f"The model's own answers were scored as {own['judge']} divided them. Its errors may have been learnt; "
            "where this report's judge makes the same ones, they look like gains here."
        )
    return (
        "The model's own answers were scored as this judge divided them, so the edit may have learnt the judge's "
        "errors: on SmolLM2 the judge saw 26 points of gain where blind readers saw 7, not told from chance. Let "
        "another judge, or a human, read the answers before you believe a gain."
    )


def control_cautions(axis: str, result: dict[str, Any], controls: dict[str, Any]) -> list[str]:
    """Which controls improved too, and which cannot be told from an edit that improved the axis."""
    label, improved, alike = axis_label(axis).lower(), [], []
    for name, control in controls.items():
        also = control["axes"].get(axis)
        if also is None:
            continue
        if verdict(also) == "improved":
            improved.append(name)
        elif is_finite(result["delta"]) and has_interval(also["ci95"]):
            alike += [name] if also["ci95"][0] <= result["delta"] <= also["ci95"][1] else []
    return [
        *(f"The control “{name}” improved {label} too." for name in improved),
        *(
            f"The control “{name}” cannot be told from the edit on {label}: the edit's difference is in its interval."
            for name in alike
        ),
    ]


def sentence(parts: list[str]) -> str:
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:]


def judged_axes(results: dict[str, Any]) -> list[str]:
    return [axis for axis in results["axes"] if axis not in (*CAPABILITY_AXES, ANSWERED)]


def auc_text(measured: dict[str, Any] | None) -> str:
    """`AUC 0.92 (0.83 to 1.00, n = 128)`, 95% interval in brackets, or that the quality was not measured."""
    if measured is None or not is_finite(measured["auc"]):
        return "quality not measured"
    interval = measured["auc_ci95"]
    spread = f"{interval[0]:.2f} to {interval[1]:.2f}, " if has_interval(interval) else ""
    return f"AUC {measured['auc']:.2f} ({spread}n = {measured['n']})"


def judge_lines(results: dict[str, Any]) -> list[str]:
    """The judge's measured quality, axis by axis: how far its verdicts can be trusted."""
    lines = []
    quality = results["judge"]["quality"]
    for axis in judged_axes(results):
        label, measured = axis_label(axis), quality.get(axis)
        if measured is None or not is_finite(measured["auc"]):
            lines.append(f"{label}: the judge's quality was not measured")
            continue
        accuracy = f", accuracy {measured['accuracy']:.2f}" if is_finite(measured["accuracy"]) else ""
        trust = "" if measured["measurable"] else f"; {NOT_MEASURABLE}"
        source = f", on {measured['source']}" if measured.get("source") else ""
        lines.append(f"{label}: {auc_text(measured)}{accuracy}{source}{trust}")
    return lines
