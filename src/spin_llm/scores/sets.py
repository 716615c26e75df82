"""Several concepts scored, with what they protect: from named sources, or pairs, to a `ScoreSet`.

In: a loaded model, a source or pairs by name. Out: the scores of all sets, and examples that nothing was scored on, to
search with. Protected sets say what the entries cost that the concepts' margins chose. Left out: files of a run folder
(pipeline/score_stage.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from spin_llm.data import Example, Pair, load_pairs, sample, split_sample
from spin_llm.errors import SpinError
from spin_llm.models import LoadedModel, editable_matrices
from spin_llm.progress import SILENT, Console
from spin_llm.scores.concept import Passes, Row, Scoring, as_examples, score_concept
from spin_llm.scores.importance import accumulators, formed
from spin_llm.scores.margins import candidate_entries
from spin_llm.scores.passes import make_batches
from spin_llm.scores.plan import make_plan
from spin_llm.scores.storage import HeldBack, Scores, ScoreSet
from spin_llm.settings import CONCEPTS

GENERAL_PAIRS = 64  # at most, to search or choose the ratio with, and as many others for the final perplexity
LEAST_GENERAL = 16  # with fewer left beside the scored ones the starter set's are taken
WITH_MARGIN = Scoring(("taylor", "margin"))
Given = str | Path | Sequence[Row]  # a source by name, or rows as they are


def score(
    model: LoadedModel,
    concepts: Mapping[str, Given] | None = None,
    protect: Mapping[str, Given] | None = None,
    how: Scoring = WITH_MARGIN,
    *,
    examples: int = 128,
    console: Console = SILENT,
) -> ScoreSet:
    """The scores of concepts and of what they protect, as `spin-llm score` makes them, without a folder.

    A source is `starter`, a data file, a known or a hub data set, of which `examples` are drawn with the seed of `how`
    and the others held back; or pairs, which are all scored. None is the starter set's fairness and privacy, and its
    general pairs. A margin is formed where the source has unaware responses too. Importances are in nats per response
    token. Raises SpinError as `load_pairs` and `score_concept` do.
    """
    if concepts is None:
        concepts = dict.fromkeys(CONCEPTS, "starter")
    protect = {"general": "starter"} if protect is None else protect
    sets: dict[str, tuple[list[Example], list[Example]]] = {}
    contrasts: dict[str, tuple[list[Example], list[Example]]] = {}
    general: list[Row] = []

    def encoded(rows: Sequence[Row]) -> list[Example]:
        return as_examples(model, rows, how.template, how.max_length)

    for name, given in concepts.items():
        sides, held = _sides(given, name, examples, how.seed)
        sets[name] = (encoded(sides[0]), encoded(sides[1]))
        contrasts[name] = (encoded(held[0]), encoded(held[1]))
    for name, given in protect.items():
        rows, rest = _drawn(given, name, examples, how.seed)
        sets[name] = (encoded(rows), [])
        general += rest
    if len(general) < LEAST_GENERAL:
        general = list(load_pairs("starter", concept="general").pairs)
    scored = {example.prompt for aware, _ in sets.values() for example in aware}
    unseen = [example for example in encoded(general) if example.prompt not in scored]
    halves = sample(unseen, min(len(unseen), 2 * GENERAL_PAIRS), how.seed)[::2] if unseen else ()
    made = _scored(model, sets, list(concepts), how, console)
    found, spared = ({name: made[name] for name in side} for side in (concepts, protect))
    return ScoreSet(found, spared, HeldBack(contrasts, halves, how.template))


def _scored(
    model: LoadedModel,
    sets: Mapping[str, tuple[list[Example], list[Example]]],
    concepts: Sequence[str],
    how: Scoring,
    console: Console,
) -> dict[str, Scores]:
    """One plan for all sets, then one after the other, the concepts first."""
    matrices = editable_matrices(model.model, how.target)
    batches = [batch for sides in sets.values() for batch in make_batches(*sides, matrices=matrices)]
    plan = make_plan(model, batches, matrices, accumulators(how.statistics), statistics=len(how.statistics))
    console.say(plan.text())
    found: dict[str, Scores] = {}
    for name, (aware, unaware) in sets.items():
        statistics = formed(how.statistics, unaware)
        chosen = None
        if name not in concepts and all("margin" in found[concept].info.statistics for concept in concepts):
            chosen = candidate_entries({c: found[c] for c in concepts}, [matrix.name for matrix in matrices])
        with console.bar(f"scoring {name}", len(plan.partitions) * (len(aware) + len(unaware))) as advance:
            passes = Passes(plan, progress=advance)
            how_of = replace(how, statistics=statistics)
            scores = score_concept(model, aware, unaware, how_of, candidates=chosen, passes=passes)
        found[name] = replace(scores, info=replace(scores.info, concept=name))
    return found


def _drawn(given: Given, name: str, examples: int, seed: int) -> tuple[Sequence[Row], Sequence[Pair]]:
    """(rows to score, pairs of the source that are left)."""
    if not isinstance(given, str | Path):
        return given, ()
    return split_sample(load_pairs(given, concept=name).pairs, examples, seed, f"the protected set {name}")


def _sides(
    given: Given, name: str, examples: int, seed: int
) -> tuple[tuple[Sequence[Row], Sequence[Row]], tuple[Sequence[Pair], Sequence[Pair]]]:
    """((aware, unaware) rows to score, (aware, unaware) pairs whose prompts are none of theirs)."""
    if not isinstance(given, str | Path):
        return (given, ()), ((), ())
    aware = load_pairs(given, concept=name).pairs
    try:
        unaware = load_pairs(given, concept=name, responses="unaware").pairs
    except SpinError:  # the source has one kind of response
        unaware = ()
    if unaware == aware:
        unaware = ()
    first = sample(aware, examples, seed, f"the concept {name}")
    second = sample(unaware, examples, seed, f"the concept {name}, unaware") if unaware else ()
    used = {pair.prompt for pair in (*first, *second)}
    held = [[pair for pair in side if pair.prompt not in used] for side in (aware, unaware)]
    return (first, second), (held[0], held[1])
