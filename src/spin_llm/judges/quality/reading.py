"""Where a judge was measured, and whether its verdicts are read there: the one place of that rule.

In: what `Judge.quality` is (by axis the measurements of the head in use, each on labelled answers of one model
family to questions of one source), and whose answers to which questions are judged. Out: the measurement that applies,
or why verdicts are shown without a reading. The rule (docs/judge.md, "When it speaks"):

    applies   its family and its question source are those of the answers; or it was given for these answers
              (--judge-quality) and names neither
    is read   AUC >= LEAST_AUC, the lower bound of the AUC >= LEAST_BOUND, and few labelled answers without a verdict

The bound is the smaller of the lower ends of two 95% intervals: that of the bootstrap over prompts, and Wilson's at the
largest variance that an AUC of so many prompts can have, A (1 - A) / m, m being the prompts with the rarer label
(van Dantzig 1951, Birnbaum and Klose 1957): a bootstrap over a handful of positives is too narrow, and has no width at
all where they happen to be ranked perfectly. A human reads; there is nothing to measure.

The axis `coherence` is the share of answers to questions on concepts that are readable and to the point: an edit can
break answers without moving perplexity on other texts, and a broken answer can pass as safe. Its judge, the shipped
local one whichever judges the rest, is measured over both concepts (beside simple heuristics: docs/axes.md). Left out:
measuring (check.py, fit.py); repetition (evaluate/wording.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spin_llm.data.hub import KNOWN
from spin_llm.files import sha256_json
from spin_llm.judges.verdict import Judge
from spin_llm.models import LoadedModel
from spin_llm.results.judged import NOT_LIKE_THESE, NOT_MEASURABLE, JudgeQuality
from spin_llm.results.measured import Pair
from spin_llm.stats.classification import suffices

WRITTEN = "written"  # the family of answers that somebody wrote: no model's
NOT_MEASURED = "judge not measured"
HUMAN = JudgeQuality(auc=None, accuracy=None, n=0, measurable=True, human=True, source="a human's labels")
BY_CONCEPT = ("auc", "auc_ci95", "auc_bound", "accuracy", "positive_rate", "brier", "n", "measurable")


@dataclass(frozen=True)
class Asked:
    """Whose answers are judged, to which questions: a model family and, by axis, the source of its questions ("" is
    unknown); `untuned`: the base model has no chat template."""

    family: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)
    untuned: bool = False


@dataclass(frozen=True)
class Reading:
    """The measurement that applies to some answers, None where none does, and why verdicts on them are not read: ""
    when they are."""

    quality: JudgeQuality | None
    why_not: str


def family_of(config: Any, tokenizer: Any) -> str:
    """What models of one family share: the architecture's name and the tokenizer's ordinary words, as
    `llama-0123456789ab`. Sizes, fine-tuned and edited descendants are one family.

    Special and added tokens (all of the form <...> among them) do not count: descendants add some.
    """
    left_out = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
    words = {
        token: place
        for token, place in tokenizer.get_vocab().items()
        if token not in left_out and not (token.startswith("<") and token.endswith(">"))
    }
    return f"{config.get_text_config().model_type}-{sha256_json(words)[:12]}"


def source_of(source: str) -> str:
    """The question source that a text of --questions names: starter, a set known by name (also by its hub id), or the
    name of a file, which is nobody else's."""
    hub = {known.repository: name for name, known in KNOWN.items()}
    return hub.get(source) or (source if source in ("starter", *KNOWN) else Path(source).name)


def asked_of(models: Sequence[LoadedModel], questions: Sequence[tuple[str, str]]) -> Asked:
    """What is judged: answers of these models to (axis, source) questions. Models of several families, and none (they
    are behind a URL), have no family that is known."""
    families = {family_of(one.model.config, one.tokenizer) for one in models}
    untuned = bool(models) and not all(getattr(one.tokenizer, "chat_template", None) for one in models)
    sources = {axis: source_of(source) for axis, source in questions}
    return Asked(families.pop() if len(families) == 1 else "", sources, untuned)


def applies(known: JudgeQuality, family: str, source: str) -> bool:
    """Whether a measurement is of answers of this family to questions of this source."""
    if known.given and (known.family, known.questions) == ("", ""):
        return True
    return bool(family and source) and (known.family, known.questions) == (family, source)


def reading(judge: Judge, axis: str, asked: Asked) -> Reading:
    """What is known of a judge on answers to an axis's questions. Of several measurements that apply the ones that the
    user gave count, and the one with the lowest bound."""
    known = judge.quality.get(axis, ())
    here = [one for one in known if applies(one, asked.family, asked.sources.get(axis, ""))]
    here = [one for one in here if one.given] or here
    quality = min(here, key=lambda one: one.auc_bound or 0.0, default=None)
    if getattr(judge, "human", False):
        return Reading(quality or HUMAN, "")
    if quality is None:
        return Reading(None, NOT_LIKE_THESE if known else NOT_MEASURED)
    good = suffices(quality.auc, quality.auc_bound) and quality.measurable
    return Reading(quality, "" if good else NOT_MEASURABLE)


def coherence_reading(judge: Judge, asked: Asked) -> Reading:
    """What is known of the judge of coherence on answers to questions on concepts: all of them, or it is not read."""
    concepts = [axis for axis in asked.sources if axis in judge.axes and axis != "over_refusal"]
    found = {axis: reading(judge, axis, asked) for axis in concepts}
    why = next((one.why_not for one in found.values() if one.why_not), "" if found else NOT_LIKE_THESE)
    known = {axis: one.quality for axis, one in found.items() if one.quality}
    return Reading(coherence_quality(known) if known and len(known) == len(found) else None, why)


def coherence_quality(heads: Mapping[str, JudgeQuality]) -> JudgeQuality:
    """One quality for the axis from {concept: quality} of the `coherent` heads, one at least.

    Counts add up; accuracy, Brier score and positive rates are means weighted by n. Heads of two concepts have no AUC
    in common, so the AUC and its interval are those of the weaker concept, and `by_concept` has both.
    """
    parts = list(heads.values())
    total = sum(head.n for head in parts)
    weakest = min(heads, key=lambda concept: heads[concept].auc or 0)

    def mean(values: Sequence[float | None]) -> float | None:
        known = [head.n * value for head, value in zip(parts, values, strict=True) if value is not None]
        return sum(known) / total if len(known) == len(parts) else None

    def added(counts: Sequence[Pair | None]) -> Pair | None:
        known = [pair for pair in counts if pair]
        return (sum(hits for hits, _ in known), sum(of for _, of in known)) if len(known) == len(parts) else None

    rates = [head.positive_rate or (None, None) for head in parts]
    return JudgeQuality(
        auc=heads[weakest].auc,
        auc_ci95=heads[weakest].auc_ci95,
        auc_bound=heads[weakest].auc_bound,
        accuracy=mean([head.accuracy for head in parts]),
        brier=mean([head.brier for head in parts]),
        positive_rate=(mean([labelled for labelled, _ in rates]), mean([judged for _, judged in rates])),
        sensitivity=added([head.sensitivity for head in parts]),
        specificity=added([head.specificity for head in parts]),
        n=total,
        measurable=all(head.measurable for head in parts),
        source=f"{heads[weakest].source}; the AUC is {weakest}'s, the lower one (n = {heads[weakest].n})",
        by_concept={
            concept: JudgeQuality(**{key: getattr(head, key) for key in BY_CONCEPT}) for concept, head in heads.items()
        },
    )


def answers_words(known: JudgeQuality) -> str:
    """The answers of a measurement: `answers of SmolLM2-135M-Instruct to starter questions`."""
    family, questions = known.family, known.questions
    if family == WRITTEN:
        return f"answers written for {questions}"
    if not family and not questions:
        return "answers of a model that is not named"
    whose = known.model or family or "a model that is not named"
    return f"answers of {whose} to {questions or 'questions of no known source'}" + (" questions" if questions else "")
