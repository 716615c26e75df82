"""Several concepts scored, with what they protect: from named sources, or pairs, to a `ScoreSet`.

In: a loaded model, a source or pairs by name. Out: the scores of all sets, and examples that nothing was scored on, to
search with. Protected sets say what the entries cost that the concepts' margins chose. Left out: files of a run folder
(pipeline/score_stage.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from spin_llm.data import Example, Pair, load_pairs, sample, split_sample
from spin_llm.errors import SpinError
from spin_llm.models import LoadedModel, editable_matrices
from spin_llm.progress import SILENT, Advance, Console
from spin_llm.scores.concept import Passes, Row, Scoring, as_examples, score_concept
from spin_llm.scores.importance import accumulators, formed
from spin_llm.scores.passes import make_batches
from spin_llm.scores.plan import Plan, make_plan, parse_bytes
from spin_llm.scores.storage import HeldBack, Scores, ScoreSet, Sides, candidate_entries
from spin_llm.settings import CONCEPTS

GENERAL_PAIRS = 64  # at most, to search or choose the ratio with, and as many others for the final perplexity
LEAST_GENERAL = 16  # with fewer left beside the scored ones the starter set's are taken
WITH_MARGIN = Scoring(("taylor", "margin"))
Entries = Mapping[str, torch.Tensor]  # flat indices by matrix name
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
    sets: dict[str, Sides] = {}
    contrasts: dict[str, Sides] = {}
    general: list[Row] = []

    def encoded(rows: Sequence[Row]) -> list[Example]:
        return as_examples(model, rows, how.template, how.max_length)

    for name, given in concepts.items():
        sides, held = _sides(given, name, examples, how.seed)
        sets[name] = Sides(encoded(sides[0]), encoded(sides[1]))
        contrasts[name] = Sides(encoded(held[0]), encoded(held[1]))
    for name, given in protect.items():
        if isinstance(given, str | Path):
            pairs = load_pairs(given, concept=name).pairs
            given, rest = split_sample(pairs, examples, how.seed, f"the protected set {name}")
            general += rest
        sets[name] = Sides(encoded(given))
    if len(general) < LEAST_GENERAL:
        general = list(load_pairs("starter", concept="general").pairs)
    scored = {example.prompt for aware, _ in sets.values() for example in aware}
    unseen = [example for example in encoded(general) if example.prompt not in scored]
    halves = sample(unseen, min(len(unseen), 2 * GENERAL_PAIRS), how.seed)[::2] if unseen else ()
    plan = plan_sets(model, sets, how)
    console.say(plan.text())
    made: dict[str, Scores] = {}

    def chosen(name: str) -> Entries | None:
        scored = {concept: made[concept] for concept in concepts} if name in protect else {}
        if not scored or any("margin" not in part.info.statistics for part in scored.values()):
            return None
        return candidate_entries(scored, [matrix.name for part in plan.partitions for matrix in part])

    for name, scores in score_sets(model, sets, how, Passes(plan), chosen, console):
        made[name] = scores
    found, spared = ({name: made[name] for name in side} for side in (concepts, protect))
    return ScoreSet(found, spared, HeldBack(contrasts, halves, how.template))


def plan_sets(
    model: LoadedModel, sets: Mapping[str, Sides], how: Scoring, budget: str | None = None, *, checkpoints: bool = False
) -> Plan:
    """One plan for all sets; `budget` is a size in words, None most of what is free."""
    matrices = editable_matrices(model.model, how.target)
    return make_plan(
        model,
        [batch for sides in sets.values() for batch in make_batches(*sides, matrices=matrices)],
        matrices,
        accumulators(how.statistics),
        statistics=len(how.statistics),
        budget=parse_bytes(budget) if budget else None,
        checkpoints=checkpoints,
        sets=len(sets),
    )


def score_sets(
    model: LoadedModel,
    sets: Mapping[str, Sides],
    how: Scoring,
    passes: Passes,
    chosen: Callable[[str], Entries | None],
    console: Console = SILENT,
) -> Iterator[tuple[str, Scores]]:
    """(name, scores) of one set after the other, each with the statistics that can be formed of it; `chosen` says, when
    a set's turn comes, which entries others chose of it. Progress is kept by name in the folder of `passes`."""
    partitions = len(passes.plan.partitions) if passes.plan else 1
    for name, (aware, unaware) in sets.items():
        candidates = chosen(name)
        with console.bar(f"scoring {name}", partitions * (len(aware) + len(unaware)) // passes.ranks.world) as shown:

            def advance(done: int, shown: Advance = shown) -> None:
                shown(done)
                passes.progress(done)

            own = replace(passes, folder=passes.folder / name if passes.folder else None, progress=advance)
            formable = replace(how, statistics=formed(how.statistics, unaware))
            scores = score_concept(model, aware, unaware, formable, candidates=candidates, passes=own)
        yield name, replace(scores, info=replace(scores.info, concept=name))


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
