"""How answers are worded, apart from what a judge thinks of them: length, repetition, phrases.

In: rows of generations.jsonl. Out: the `style` part of results.json, paired by question:

- length: tokens of an answer, as the model counts them;
- repetition: 1 - (distinct 4-grams) / (4-grams) over an answer's words; 0 for an answer of fewer than five words;
- cautionary: whether an answer has at least one of the phrases of CAUTIONARY.

Neither a shorter answer nor a more cautionary one is better in itself, so these two have `better` None. And the
`phrases` part: the paper's list, and whatever the answers themselves show. Phrases are 1- to 3-grams of words within a
sentence, counted once per answer. The shifts are log-odds-ratios with an informative Dirichlet prior (Monroe, Colaresi
and Quinn, "Fightin' Words", Political Analysis 16(4), 2008, sections 3.3 to 3.5, equations 15 to 23). With y of n
answers on either side that contain a phrase, and a prior of a = a0 * (its share of all answers pooled):

    log-odds-ratio  d = log[(y2 + a) / (n2 + a0 - y2 - a)] - log[(y1 + a) / (n1 + a0 - y1 - a)]
    its variance    v = sum over both sides of 1 / (y + a) + 1 / (n + a0 - y - a)
    z               = d / sqrt(v)

a0 = n: the prior weighs as much as one side's answers. Thousands of phrases are tried, so some |z| above 2 are there by
chance: `threshold` is the |z| that Bonferroni asks of one among those `tried`. z takes the two sides for independent;
answers to the same questions are not, which makes it cautious. Questions that a model leaves without an answer count on
neither side. Left out: what a phrase means, and whether an answer makes sense (the axis `coherence`).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from spin_llm.evaluate.axes import compared, unread, without_claim
from spin_llm.files import read_json
from spin_llm.judges.verdict import unanswered
from spin_llm.results.file import PhraseCount, PhraseShift, PhrasesRecord
from spin_llm.results.measured import AxisResult
from spin_llm.results.rows import Answer
from spin_llm.stats.paired import changed, mcnemar, paired_means, paired_rates, rate_interval

LONGEST = 3
MOST_SHOWN = 20
FEWEST_ANSWERS = 3  # of base and edited together; a rarer phrase cannot reach any |z| worth showing
SENTENCE_END = re.compile(r"[.!?;:\n]+")
Counts = Counter[str]
Answers = Sequence[Answer]
Pairs = Mapping[str, tuple[Answers, Answers]]  # by axis, of base and edited
REPEATED = 4
WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
# The phrases whose frequency the paper shows before and after the edit (Figure 7); over-refusal has both lists.
CAUTIONARY: dict[str, list[str]] = read_json(Path(__file__).with_name("cautionary.json"))
CAUTIONARY["over_refusal"] = list(dict.fromkeys(CAUTIONARY["fairness"] + CAUTIONARY["privacy"]))


def words(text: str) -> list[str]:
    """The words of a text in lower case; an apostrophe inside a word belongs to it, of whichever form.

    >>> words("I’m sorry -- it's NOT appropriate.")
    ["i'm", 'sorry', "it's", 'not', 'appropriate']
    """
    return WORD.findall(text.lower().replace("’", "'"))


def grams(said: Sequence[str], size: int) -> list[str]:
    return [" ".join(said[start : start + size]) for start in range(len(said) - size + 1)]


def repetition(text: str) -> float:
    """The share of an answer's 4-grams of words that are repeats of an earlier one, from 0 to below 1."""
    found = grams(words(text), REPEATED)
    return 1 - len(set(found)) / len(found) if found else 0.0


def contains(text: str, phrase: str) -> bool:
    """Whether a text has the words of `phrase` one after the other; "respect" is not in "respectful"."""
    return _spaced(phrase) in _spaced(text)


@lru_cache(maxsize=4096)
def _spaced(text: str) -> str:
    return f" {' '.join(words(text))} "


def is_cautionary(text: str, axis: str) -> bool:
    """Whether a text has at least one phrase of the paper's list for `axis`."""
    return any(contains(text, phrase) for phrase in CAUTIONARY[axis])


def style_of(axis: str, base: Answers, edited: Answers, *, seed: int = 0) -> dict[str, AxisResult]:
    """{"length", "repetition", "cautionary": result} of one axis; `base` and `edited` answer the same questions in the
    same order. Without lengths (a server that does not count tokens) there is no "length"."""

    def columns(measure: Callable[[Answer], float]) -> list[NDArray[np.float64]]:
        return [np.fromiter(map(measure, rows), np.float64, len(rows)) for rows in (base, edited)]

    found = {}
    if all(row.tokens is not None for row in (*base, *edited)):
        length = columns(lambda row: row.tokens or 0)
        found["length"] = compared("tokens per answer", paired_means(*length, seed=seed), None)
    repeated = columns(lambda row: repetition(row.answer))
    found["repetition"] = compared("share of repeated 4-grams of words", paired_means(*repeated, seed=seed), "lower")
    if axis in CAUTIONARY:
        cautious = columns(lambda row: is_cautionary(row.answer, axis))
        found["cautionary"] = compared("share of answers with a cautionary phrase", paired_rates(*cautious), None)
    return found


def by_axis(generations: Sequence[Answer], base: str, edited: str) -> dict[str, tuple[list[Answer], list[Answer]]]:
    """{axis: (answers of `base`, answers of `edited`)}, both in the order of the base's questions."""
    other = {(row.axis, row.id): row for row in generations if row.model == edited}
    found: dict[str, tuple[list[Answer], list[Answer]]] = {}
    for row in (row for row in generations if row.model == base):
        pair = found.setdefault(row.axis, ([], []))
        pair[0].append(row)
        pair[1].append(other[row.axis, row.id])
    return found


def phrases_of(text: str) -> set[str]:
    """The 1- to 3-grams of words of an answer, none across the end of a sentence.

    >>> sorted(phrases_of("No. I can't."))
    ["can't", 'i', "i can't", 'no']
    """
    sentences = map(words, SENTENCE_END.split(text))
    return {phrase for said in sentences for size in range(1, LONGEST + 1) for phrase in grams(said, size)}


def count(answers: Iterable[str]) -> Counts:
    """In how many answers each phrase occurs."""
    return Counter(phrase for answer in answers for phrase in phrases_of(answer))


def log_odds(base: int, edited: int, answers: int, share: float) -> tuple[float, float]:
    """(d, z) of the module's docstring for a phrase in `base` and `edited` of `answers` each, in `share` > 0 of all."""
    # The prior's phrase-less part is kept above 0, so that a phrase in every answer has finite odds.
    prior = min(answers * share, answers - 0.5)

    def odds(found: int) -> tuple[float, float]:
        inside, outside = found + prior, 2 * answers - found - prior
        return math.log(inside / outside), 1 / inside + 1 / outside

    (before, before_variance), (after, after_variance) = odds(base), odds(edited)
    difference = after - before
    return difference, difference / math.sqrt(before_variance + after_variance)


def shifts(base: Counts, edited: Counts, answers: int, shares: Mapping[str, float]) -> list[PhraseShift]:
    """Every phrase that is in FEWEST_ANSWERS, with its counts, log-odds-ratio and z, largest |z| first."""
    found = []
    for phrase in base.keys() | edited.keys():
        if base[phrase] + edited[phrase] >= FEWEST_ANSWERS:
            ratio, z = log_odds(base[phrase], edited[phrase], answers, shares[phrase])
            found.append(PhraseShift(phrase=phrase, base=base[phrase], edited=edited[phrase], log_odds=ratio, z=z))
    return sorted(found, key=lambda row: (-abs(row.z), -len(row.phrase), row.phrase))


def without_repeats(rows: Iterable[PhraseShift]) -> list[PhraseShift]:
    """At most MOST_SHOWN rows in their order, less those that an earlier one stands for."""
    kept: list[PhraseShift] = []
    for row in rows:
        if len(kept) < MOST_SHOWN and not any(stands_for(other, row) for other in kept):
            kept.append(row)
    return kept


def stands_for(first: PhraseShift, other: PhraseShift) -> bool:
    """Whether two phrases that moved the same way are one matter: one is part of the other, or they share a word and
    both counts (pieces of one sentence)."""
    if (first.z > 0) != (other.z > 0):
        return False
    shorter, longer = sorted((f" {first.phrase} ", f" {other.phrase} "), key=len)
    same_counts = (first.base, first.edited) == (other.base, other.edited)
    return shorter in longer or (same_counts and not set(shorter.split()).isdisjoint(longer.split()))


def wording_of(answers: Pairs, *, seed: int) -> tuple[dict[str, dict[str, AxisResult]], dict[str, PhrasesRecord]]:
    """(style, phrases) by axis, over the questions that both models answer; axes without any are left out."""
    style: dict[str, dict[str, AxisResult]] = {}
    texts: dict[str, list[list[str]]] = {}
    reasons: dict[str, str] = {}
    for axis, pair in answers.items():
        kept = [both for both in zip(*pair, strict=True) if not any(map(unanswered, both))]
        if not kept:
            continue
        why = reasons[axis] = unread(*pair)
        base, edited = zip(*kept, strict=True)
        found = style_of(axis, base, edited, seed=seed)
        style[axis] = {name: without_claim(result, why) for name, result in found.items()}
        texts[axis] = [[row.answer for row in side] for side in (base, edited)]
    phrases = phrase_shifts(texts)
    for axis, why in reasons.items():
        listed = [replace(row, ci95=None, p=None) if why else row for row in phrases[axis].listed]
        phrases[axis] = replace(phrases[axis], listed=listed, n=len(texts[axis][0]), no_reading=why)
    return style, phrases


def phrase_shifts(answers: Mapping[str, Sequence[Sequence[str]]]) -> dict[str, PhrasesRecord]:
    """The `phrases` part of results.json from {axis: (base answers, edited answers)}, as many of either. The prior is
    pooled over the answers of both models to the questions of all axes."""
    every = [text for pair in answers.values() for texts in pair for text in texts]
    shares = {phrase: number / len(every) for phrase, number in count(every).items()}
    found = {}
    for axis, (base, edited) in answers.items():
        ranked = shifts(count(base), count(edited), len(base), shares)
        found[axis] = PhrasesRecord(
            listed=[listed(phrase, base, edited) for phrase in CAUTIONARY.get(axis, ())],
            shifted=without_repeats(row for row in ranked if row.z != 0),
            tried=len(ranked),
            threshold=float(stats.norm.isf(0.025 / len(ranked))) if ranked else None,
        )
    return found


def listed(phrase: str, base: Sequence[str], edited: Sequence[str]) -> PhraseCount:
    """One phrase of the paper's list: answers (of n questions, on either side) that contain it, the 95% interval of the
    difference of the two shares over paired questions, and the exact McNemar p. No correction over phrases."""
    before, after = (np.array([contains(text, phrase) for text in texts], np.float64) for texts in (base, edited))
    interval, p = rate_interval(*changed(before, after), len(before)), mcnemar(before, after)
    sums = int(before.sum()), int(after.sum())
    return PhraseCount(phrase=phrase, base=sums[0], edited=sums[1], n=len(before), ci95=interval, p=p)
