"""Where a judge was measured, and whether its verdicts are read there: the one place of that rule.

In: what `Judge.quality` gives (by axis the measurements of the head in use, each on labelled answers of one model
family to questions of one source), and whose answers to which questions are judged. Out: the measurement that applies,
or why verdicts are shown without a reading. The rule (docs/judge.md, "When it speaks"):

    applies   its family and its question source are those of the answers; or it was given for these answers
              (--judge-quality) and names neither
    is read   AUC >= LEAST_AUC, the lower bound of the AUC >= LEAST_BOUND, and few labelled answers without a verdict

The bound is the smaller of the lower ends of two 95% intervals: that of the bootstrap over prompts, and Wilson's at the
largest variance that an AUC of so many prompts can have, A (1 - A) / m, m being the prompts with the rarer label
(van Dantzig 1951, Birnbaum and Klose 1957): a bootstrap over a handful of positives is too narrow, and has no width at
all where they happen to be ranked perfectly. A human reads; there is nothing to measure. Left out: measuring
(check.py, fit.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spin_llm.data.known import KNOWN
from spin_llm.files import sha256_json
from spin_llm.models import LoadedModel
from spin_llm.results.judged import NOT_LIKE_THESE as NOT_LIKE_THESE
from spin_llm.results.judged import NOT_MEASURABLE
from spin_llm.stats.classification import suffices

WRITTEN = "written"  # the family of answers that somebody wrote: no model's
NOT_MEASURED = "judge not measured"
Entry = Mapping[str, Any]

HUMAN: Entry = {
    **{"auc": None, "auc_ci95": None, "accuracy": None, "n": 0, "measurable": True},
    **{"human": True, "source": "a human's labels"},
}


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

    quality: Entry | None
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


def entries_of(judge: Any, axis: str) -> list[Entry]:
    """The judge's measurements on an axis. A mapping alone is one of unknown answers: judges of version 0.1."""
    found = judge.quality().get(axis) or []
    return [found] if isinstance(found, Mapping) else list(found)


def applies(entry: Entry, family: str, source: str) -> bool:
    if entry.get("given") and (entry.get("family"), entry.get("questions")) == ("", ""):
        return True
    return bool(family and source) and (entry.get("family"), entry.get("questions")) == (family, source)


def reading(judge: Any, axis: str, asked: Asked) -> Reading:
    """What is known of a judge on answers to an axis's questions. Of several measurements that apply the ones that the
    user gave count, and the one with the lowest bound."""
    entries = entries_of(judge, axis)
    here = [entry for entry in entries if applies(entry, asked.family, asked.sources.get(axis, ""))]
    here = [entry for entry in here if entry.get("given")] or here
    quality = min(here, key=lambda entry: entry.get("auc_bound") or 0.0, default=None)
    if getattr(judge, "human", False):
        return Reading(quality or HUMAN, "")
    if quality is None:
        return Reading(None, NOT_LIKE_THESE if entries else NOT_MEASURED)
    good = suffices(quality.get("auc"), quality.get("auc_bound")) and quality.get("measurable", False)
    return Reading(quality, "" if good else NOT_MEASURABLE)


def elsewhere(judge: Any, axis: str) -> list[str]:
    """On which answers a judge was measured on an axis, in words."""
    return list(dict.fromkeys(answers_words(entry) for entry in entries_of(judge, axis)))


def answers_words(entry: Entry) -> str:
    """The answers of a measurement: `answers of SmolLM2-135M-Instruct to starter questions`."""
    family, questions = entry.get("family"), entry.get("questions")
    if family == WRITTEN:
        return f"answers written for {questions}"
    if not family and not questions:
        return "answers of a model that is not named"
    whose = entry.get("model") or family or "a model that is not named"
    return f"answers of {whose} to {questions or 'questions of no known source'}" + (" questions" if questions else "")
