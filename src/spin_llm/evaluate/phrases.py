"""Which phrases an edit makes more or less frequent: the paper's list, and whatever the answers themselves show.

In: base and edited answers to the same questions. Out: the `phrases` part of results.json. Phrases are 1- to 3-grams of
words within a sentence, counted once per answer. The shifts are log-odds-ratios with an informative Dirichlet prior
(Monroe, Colaresi and Quinn, "Fightin' Words", Political Analysis 16(4), 2008, sections 3.3 to 3.5, equations 15 to 23).
With y of n answers on either side that contain a phrase, and a prior of a = a0 * (its share of all answers pooled):

    log-odds-ratio  d = log[(y2 + a) / (n2 + a0 - y2 - a)] - log[(y1 + a) / (n1 + a0 - y1 - a)]
    its variance    v = sum over both sides of 1 / (y + a) + 1 / (n + a0 - y - a)
    z               = d / sqrt(v)

a0 = n: the prior weighs as much as one side's answers. Thousands of phrases are tried, so some |z| above 2 are there by
chance: `threshold` is the |z| that Bonferroni asks of one among those `tried`. z takes the two sides for independent;
answers to the same questions are not, which makes it cautious. Questions that a model leaves without an answer count on
neither side. Left out: what a phrase means.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from spin_llm.evaluate.missing import unread, without_claim
from spin_llm.evaluate.style import CAUTIONARY, contains, style_of, words
from spin_llm.judges.verdict import unanswered
from spin_llm.results.file import PhraseCount, PhraseShift, PhrasesRecord
from spin_llm.results.measured import AxisResult
from spin_llm.results.rows import Answer
from spin_llm.stats.paired import changed, mcnemar, rate_interval

LONGEST = 3
MOST_SHOWN = 20
FEWEST_ANSWERS = 3  # of base and edited together; a rarer phrase cannot reach any |z| worth showing
SENTENCE_END = re.compile(r"[.!?;:\n]+")
Counts = Counter[str]


def phrases_of(text: str) -> set[str]:
    """The 1- to 3-grams of words of an answer, none across the end of a sentence.

    >>> sorted(phrases_of("No. I can't."))
    ["can't", 'i', "i can't", 'no']
    """
    found: set[str] = set()
    for sentence in SENTENCE_END.split(text):
        said = words(sentence)
        for size in range(1, LONGEST + 1):
            found.update(" ".join(said[start : start + size]) for start in range(len(said) - size + 1))
    return found


def count(answers: Iterable[str]) -> Counts:
    """In how many answers each phrase occurs."""
    return Counter(phrase for answer in answers for phrase in phrases_of(answer))


def log_odds(base: int, edited: int, answers: int, share: float) -> tuple[float, float]:
    """(d, z) of the module's docstring for one phrase in `base` and `edited` of `answers` each.

    `share`, above 0, of all answers pooled contain it.
    """
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
        if not any(stands_for(other, row) for other in kept):
            kept.append(row)
        if len(kept) == MOST_SHOWN:
            break
    return kept


def stands_for(first: PhraseShift, other: PhraseShift) -> bool:
    """Whether two phrases that moved the same way are one matter: one is part of the other, or they share a word and
    both counts (pieces of one sentence)."""
    if (first.z > 0) != (other.z > 0):
        return False
    shorter, longer = sorted((f" {first.phrase} ", f" {other.phrase} "), key=len)
    same_counts = (first.base, first.edited) == (other.base, other.edited)
    return shorter in longer or (same_counts and not set(shorter.split()).isdisjoint(longer.split()))


def wording_of(
    answers: Mapping[str, tuple[Sequence[Answer], Sequence[Answer]]], *, seed: int
) -> tuple[dict[str, dict[str, AxisResult]], dict[str, PhrasesRecord]]:
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
    """The `phrases` part of results.json from {axis: (base answers, edited answers)}, as many of either.

    The prior is pooled over the answers of both models to the questions of all axes.
    """
    counts = {axis: (count(base), count(edited)) for axis, (base, edited) in answers.items()}
    total = sum(len(texts) for pair in answers.values() for texts in pair)
    pooled: Counts = Counter()
    for side in (side for pair in counts.values() for side in pair):
        pooled.update(side)
    shares = {phrase: number / total for phrase, number in pooled.items()}
    found = {}
    for axis, (base, edited) in answers.items():
        ranked = shifts(counts[axis][0], counts[axis][1], len(base), shares)
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
