"""What may be said about a whole run: the headline, what the edit costs, what to be careful about, the judge's quality.

In: all of results.json. Out: short English sentences, made by rule from the verdicts on single axes (words.py); tables
of the judge's quality and of how far other judges agree with it, where a dash is what was not measured.
Left out: judgement; a sentence that no rule makes is not said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from spin_llm.report.words import (
    COST_AXES,
    NOTHING,
    axis_label,
    clause,
    is_weak,
    number,
    shown_axes,
    verdict,
    why_unread,
)
from spin_llm.results.file import Results
from spin_llm.results.judged import NOT_LIKE_THESE, NOT_MEASURABLE, AnswersOf, JudgeQuality, Kappa, OwnAnswers
from spin_llm.results.measured import ANSWERED, CAPABILITY_AXES, AxisResult, Control, Interval, Pair

QUALITY_COLUMNS = (
    "axis", "AUC", "95% interval", "n", "accuracy", "sensitivity", "specificity", "Brier score",
    "calibration error", "rate labelled / judged", "measurable",
)  # fmt: skip


def headline(results: Results) -> str:
    """What must be said of the base model first (evaluate/comparison.py; older runs do not say); then one sentence on
    the concepts, with refusing or broken answers in it whenever they may explain a gain."""
    return " ".join([*(warning.text for warning in results.warnings), concepts_line(results)])


def concepts_line(results: Results) -> str:
    axes = results.axes
    concepts = {axis: result for axis, result in axes.items() if axis not in COST_AXES}
    if not concepts:
        return "No concept was measured in this run."
    parts = together(list(concepts.items()))
    if ANSWERED in axes and verdict(axes[ANSWERED]) == "worse":
        parts.append(clause(ANSWERED, axes[ANSWERED]))
    if any(verdict(result) == "improved" for result in concepts.values()):
        for axis, words in (("over_refusal", "refusing more"), ("coherence", "broken answers")):
            if axis in axes and verdict(axes[axis]) == "worse":
                weak = " (weak evidence)" if is_weak(axes[axis]) else ""
                parts.append(f"but {axis_label(axis).lower()} got worse{weak}: {words} may explain the gain")
    return sentence(parts)


def cost_line(results: Results) -> str:
    """One sentence on what the edit costs: the axes of `COST_AXES` that were measured, in that order."""
    axes = results.axes
    parts = together([(axis, axes[axis]) for axis in COST_AXES if axis in shown_axes(axes)])
    return sentence(parts) if parts else "What the edit costs was not measured."


def cautions(results: Results) -> list[str]:
    """What a reader must know before the table is believed: by rule, from the results alone."""
    axes, controls = results.axes, results.controls
    found = []
    for axis, result in axes.items():
        if axis not in COST_AXES and verdict(result) == "improved":
            found += control_cautions(axis, result, controls)
    if unread := [axis_label(axis).lower() for axis, result in axes.items() if verdict(result) == "no reading"]:
        found.append(
            f"Nothing is read from {', '.join(unread)}: more than 5% of a model's answers have no verdict, or the two "
            "models differ in that by more than 2 points, or those answers alone decide the reading."
        )
    found += blind_cautions(results)
    if results.search and not results.search.found:
        found.append(
            "The search found no edit that it recommends: this one does not raise the margins of all concepts by more "
            "than chance, or its answers were beyond the limits."
        )
    if own := results.edit.own_answers:
        found.append(own_caution(own))
    if not controls:
        found.append("No control was run: nothing here shows that this choice of weights matters.")
    if "over_refusal" not in axes:
        found.append("Over-refusal was not measured: a gain may come from refusing more.")
    elif verdict(axes["over_refusal"]) in ("no reading", "not measurable", "not enough data"):
        found.append("Over-refusal could not be read: a gain may come from refusing more.")
    return found


def blind_cautions(results: Results) -> list[str]:
    """Which axes are not read because the judge was not measured on answers like these, or not well enough."""
    blind: dict[str, list[str]] = {}
    for axis in judged_axes(results):
        if verdict(results.axes[axis]) == "not measurable":
            blind.setdefault(why_unread(results.axes[axis]), []).append(axis_label(axis).lower())
    way = " Label some of these answers and give --judge-quality to have one (docs/judge.md)."
    return [
        f"No reading on {listed(names)}: {why}. The rates stand below; nothing follows from them."
        + (way if why == NOT_LIKE_THESE else "")
        for why, names in blind.items()
    ]


def own_caution(own: OwnAnswers) -> str:
    """What the edit may have learnt of the errors of the judge that divided the model's own answers; and that it was
    not shown to be right on such answers, where it was not."""
    learnt = (
        f"The model's own answers were scored as {own.judge} divided them. Its errors may have been learnt; where this "
        "report's judge makes the same ones, they look like gains here."
    )
    if own.reports:
        learnt = (
            "The model's own answers were scored as this judge divided them, so the edit may have learnt the judge's "
            "errors: on SmolLM2 the judge saw 26 points of gain where blind readers saw 7, not told from chance. Let "
            "another judge, or a human, read the answers before you believe a gain."
        )
    if not own.unmeasured:
        return learnt
    told = "; ".join(f"{axis_label(axis).lower()}: {why}" for axis, why in own.unmeasured.items())
    return (
        f"{learnt} Nobody has shown that {own.judge} is right on such answers ({told}): the edit may be for anything. "
        "Give --own-judge, such as a human's sheet."
    )


def control_cautions(axis: str, result: AxisResult, controls: Mapping[str, Control]) -> list[str]:
    """Which controls improved too, and which cannot be told from an edit that improved the axis."""
    label, improved, alike = axis_label(axis).lower(), [], []
    for name, control in controls.items():
        also = control.axes.get(axis)
        if also and verdict(also) == "improved":
            improved.append(f"The control “{name}” improved {label} too.")
        elif also and result.delta is not None and also.ci95 and also.ci95[0] <= result.delta <= also.ci95[1]:
            told = "cannot be told from the edit on"
            alike.append(f"The control “{name}” {told} {label}: the edit's difference is in its interval.")
    return improved + alike


def together(axes: Sequence[tuple[str, AxisResult]]) -> list[str]:
    """The clauses of several axes; those that are not read for one reason share one."""
    parts: dict[str, list[str]] = {}
    for axis, result in axes:
        if verdict(result) == "not measurable":
            parts.setdefault(why_unread(result), []).append(axis_label(axis).lower())
        else:
            parts[clause(axis, result)] = []
    return [f"no reading on {listed(names)}: {why}" if names else why for why, names in parts.items()]


def listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def sentence(parts: list[str]) -> str:
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:]


def judged_axes(results: Results) -> list[str]:
    return [axis for axis in results.axes if axis not in (*CAPABILITY_AXES, ANSWERED)]


def auc_text(measured: JudgeQuality | None) -> str:
    """`AUC 0.92 (0.83 to 1.00, n = 128)`, 95% interval in brackets, or that the quality was not measured."""
    if measured and measured.human:
        return "a human's labels"
    if measured is None or measured.auc is None:
        return NOT_LIKE_THESE
    interval = auc_interval(measured)
    spread = f"{interval[0]:.2f} to {interval[1]:.2f}, " if interval else ""
    return f"AUC {measured.auc:.2f} ({spread}n = {measured.n})"


def auc_interval(measured: JudgeQuality) -> Interval | None:
    """The 95% interval of an AUC; its lower end is that of the rule (judges/quality/reading.py), where it is known."""
    if measured.auc_ci95 is None or measured.auc_bound is None:
        return measured.auc_ci95
    return min(measured.auc_ci95[0], measured.auc_bound), measured.auc_ci95[1]


def judge_lines(results: Results) -> list[str]:
    """The judge's measured quality, axis by axis: how far its verdicts can be trusted."""
    lines, elsewhere = [], not_like_these(results)
    for axis in judged_axes(results):
        label, measured = axis_label(axis), applying(results, axis)
        if measured and measured.auc is not None:
            accuracy = f", accuracy {measured.accuracy:.2f}" if measured.accuracy is not None else ""
            source = f", on {measured.source}" if measured.source else ""
            lines.append(f"{label}: {auc_text(measured)}{accuracy}{source}{doubt(measured)}")
        elif measured and measured.human:
            lines.append(f"{label}: read by a human")
        elif axis not in elsewhere:
            lines.append(f"{label}: {unmeasured_text(results, axis)}")
    return [*lines, *([elsewhere_line(results, elsewhere)] if elsewhere else [])]


def applying(results: Results, axis: str) -> JudgeQuality | None:
    """The judge's quality on answers like these; None where there is none. Runs of version 0.1 do not say on whose
    answers theirs was measured: it is that of other answers."""
    return results.judge.quality.get(axis) if results.judge.answers else None


def not_like_these(results: Results) -> list[str]:
    """The axes on which the judge was measured, but on other answers."""
    unknown = [axis for axis in judged_axes(results) if applying(results, axis) is None]
    return [axis for axis in unknown if results.axes[axis].note == NOT_LIKE_THESE]


def unmeasured_text(results: Results, axis: str) -> str:
    """That the judge's quality on these answers is not known."""
    if not results.judge.answers and axis in results.judge.quality:
        return "the judge was measured, but this run of an older version does not say on whose answers: it is not read"
    where = " on answers like these" if axis in not_like_these(results) else ""
    return f"the judge's quality was not measured{where}"


def elsewhere_line(results: Results, axes: Sequence[str]) -> str:
    """On which answers the judge was not measured and on which it was, and what to do."""
    asked = results.judge.answers or AnswersOf("", {})
    whose = f"models of the family {asked.family}" if asked.family else "a model whose family is not known"
    sources = listed(list(dict.fromkeys(filter(None, map(asked.questions.get, axes)))) or ["these"])
    places = list(dict.fromkeys(place for found in results.judge.elsewhere.values() for place in found))
    measured = f" It was on {listed(places)}." if places else ""
    names = listed([axis_label(axis).lower() for axis in axes])
    return (
        f"Not measured on answers like these, and not read: {names}. These are answers of {whose} to {sources} "
        f"questions.{measured} To have a reading, label some of them, run `spin-llm judge check`, and give its file "
        "with --judge-quality."
    )


def doubt(measured: JudgeQuality) -> str:
    """Why a measurement does not suffice for a reading (judges/quality/reading.py has the rule); "" when it does."""
    if measured.measurable:
        return ""
    if measured.auc_bound is None or not measured.prompts:
        return f"; {NOT_MEASURABLE}"
    rarer = f"with {min(measured.prompts)} prompts of the rarer label it may be as low as {measured.auc_bound:.2f}"
    return f"; {NOT_MEASURABLE}: {rarer}"


def quality_rows(results: Results) -> Iterator[tuple[str, ...]]:
    """One row an axis that the judge decides, in the order of `QUALITY_COLUMNS`, and then the answers measured on."""
    for axis in judged_axes(results):
        measured = applying(results, axis)
        if not measured:
            unknown = [NOTHING] * (len(QUALITY_COLUMNS) - 2)
            yield axis_label(axis), *unknown, "no", unmeasured_text(results, axis)
            continue
        yield (
            axis_label(axis),
            _decimal(measured.auc),
            _interval(auc_interval(measured)),
            str(measured.n),
            _decimal(measured.accuracy),
            _hits(measured.sensitivity),
            _hits(measured.specificity),
            _decimal(measured.brier, 3),
            _decimal(measured.calibration_error, 3),
            " / ".join(number(rate) for rate in measured.positive_rate or ()) or NOTHING,
            "yes" if measured.measurable else "no",
            measured.source or "",
        )


def confusion_rows(results: Results) -> list[tuple[str, ...]]:
    """(axis, facet, found, missed, false alarms, rejected) on labelled answers: an axis's total, then its facets."""
    return [
        (axis_label(axis), facet, *map(str, (one.found, one.missed, one.false_alarms, one.rejected)))
        for axis in judged_axes(results)
        if (measured := applying(results, axis)) and measured.confusion
        for facet, one in {"all": measured.confusion, **measured.facets}.items()
    ]


def agreement_rows(agreement: Mapping[str, Mapping[str, Kappa]]) -> list[tuple[str, ...]]:
    """(other judge, axis, n, Cohen's kappa, its 95% interval) of every pair that both judged."""
    return [
        (judge, axis_label(axis), str(found.n), _decimal(found.kappa), _interval(found.ci95))
        for judge, axes in agreement.items()
        for axis, found in axes.items()
    ]


def _decimal(value: float | None, digits: int = 2) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _interval(interval: Interval | None) -> str:
    return f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else NOTHING


def _hits(value: Pair | None) -> str:
    """(hits, of) as `0.78 (7 of 9)`."""
    return f"{value[0] / value[1]:.2f} ({value[0]} of {value[1]})" if value and value[1] else NOTHING
