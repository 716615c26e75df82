"""From scores to one recipe: search by the proxy, survivors by their answers, the pick and the record of how it came.

In: a bench (trials.py), a budget, search questions and judges. Out: the `search` part of results.json, with the
picked recipe. The survivors answer half of the search questions, the better half of them the other half (successive
halving); both count (answered.py). Left out: questions that are reported on. They are not here, so nothing can be
fitted to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from spin_llm.data import Question, load_questions, sample
from spin_llm.errors import SpinError
from spin_llm.evaluate.answers import Evaluation
from spin_llm.judges.local import load_coherence_judge
from spin_llm.judges.quality.reading import asked_of
from spin_llm.judges.verdict import Judge
from spin_llm.models import LoadedModel
from spin_llm.progress import SILENT, Console
from spin_llm.results.edited import Recipe
from spin_llm.results.searched import SearchRecord, Trial
from spin_llm.scores import ScoreSet, Sides
from spin_llm.search.answered import Answered, answer, front, is_found, pick_answered, ranked, survivors, unmeasured_in
from spin_llm.search.study import settings_importance
from spin_llm.search.trials import Bench, try_recipes
from spin_llm.selection import targeted
from spin_llm.settings import EFFORTS
from spin_llm.settings.checks import questions_of
from spin_llm.settings.edit import EditSettings
from spin_llm.settings.words import Effort, EffortName, Sources

LEAST_CONTRAST = 8  # held-back examples of a kind
SHOWN = 12  # trials in the message that none is allowed


def search(
    model: LoadedModel,
    scores: ScoreSet,
    *,
    effort: EffortName = "standard",
    judge: Judge | None = None,
    questions: str | Path | Mapping[str, str | Path] | None = None,
    max_increase: float = EditSettings.max_perplexity_increase,
    seed: int = 0,
    console: Console = SILENT,
) -> Recipe:
    """The best recipe for the target and granularity of the scores, without a folder: that of `spin-llm sweep`, with a
    `judge`.

    Without one no answer is asked for: the margins of held-back examples decide alone. With one the survivors answer
    the search questions, a part of `questions` (a source, or sources by axis; None: the starter set's), which
    `evaluate` leaves out where it is told the effort as `searched`. `max_increase` is the allowed relative rise of
    perplexity. Raises SpinError where fewer than 8 examples of a kind were held back, and as `find_edit` does.
    """
    budget, held, info = EFFORTS[effort], scores.held, scores.first.info
    kinds = [held.general, *(side for sides in held.contrasts.values() for side in sides)]
    if scores.concepts.keys() != held.contrasts.keys() or min(map(len, kinds)) < LEAST_CONTRAST:
        raise SpinError(
            f"Too few examples are held back to search with: {LEAST_CONTRAST} of each kind are needed.",
            change="score fewer examples of sources with aware and unaware responses; or give a Recipe.",
        )
    drawn = {
        name: Sides(*(sample(side, min(len(side), budget.pairs), seed) for side in sides))
        for name, sides in held.contrasts.items()
    }
    asked = None
    if judge:
        sources = questions_of(questions, dict.fromkeys(scores.concepts, ""))
        answering = search_questions(sources, budget, seed)
        asked = Evaluation(answering, (), held.template, seed=seed, asked=asked_of([model], sources))
    usual = Recipe("coupled", min(scores.keep, 1e-4), target=info.target or "mlp", granularity=info.granularity)
    with TemporaryDirectory() as folder:
        return find_edit(
            Bench(model, scores, drawn, held.general[: 2 * budget.pairs], max_increase),
            usual,
            Path(folder),
            effort=budget,
            questions=asked,
            judges=lambda: (cast(Judge, judge), load_coherence_judge()),
            seed=seed,
            console=console,
        ).recipe


def search_questions(sources: Sources, budget: Effort, seed: int) -> dict[str, Sequence[Question]]:
    """The questions that a search puts, by axis; none of them is to be reported on."""
    asked = {axis: load_questions(source, concept=axis).questions for axis, source in sources}
    return {axis: split_questions(part, budget.search_questions, seed)[0] for axis, part in asked.items()}


def split_questions(
    asked: Sequence[Question], most: int, seed: int
) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """(questions to search with, questions to report on): half of the distinct prompts each, and at most `most` of the
    first; a prompt that comes twice is on one side."""
    prompts = list(dict.fromkeys(question.prompt for question in asked))
    chosen = set(sample(prompts, min(most, len(prompts) // 2), seed)) if len(prompts) > 1 else set()
    search = tuple(question for question in asked if question.prompt in chosen)
    return search, tuple(question for question in asked if question.prompt not in chosen)


def find_edit(
    bench: Bench,
    usual: Recipe,
    folder: Path,
    *,
    effort: Effort,
    questions: Evaluation | None,
    judges: Callable[[], tuple[Judge, Judge | None]],
    seed: int = 0,
    console: Console = SILENT,
) -> SearchRecord:
    """How the pick came about. `questions` None, or no survivors in `effort`: the proxy decides alone.

    `judges` gives the judge and that of coherence when they are needed. What is done is kept under `folder`. Raises
    SpinError, with what was tried, when no recipe stays within the allowed perplexity.
    """
    concepts = bench.concepts
    targeted(bench.scores, usual.target, usual.layers)
    trials = try_recipes(
        bench, usual, trials=effort.trials, journal=folder / "journal.jsonl", seed=seed, console=console
    )
    order = ranked(trials, concepts, bench.max_increase)
    if not order:
        raise SpinError(
            f"None of {len(trials)} edits keeps the perplexity increase within {bench.max_increase:.1%}.\n"
            + table_text(trials[:SHOWN], concepts),
            cause="the smallest edit that the scores allow already costs more, or the rules select nothing.",
            change="raise --max-perplexity-increase; or give --rule and --ratio yourself.",
        )
    pick, why = order[0], "The proxy alone decided: no answers were judged in this search."
    answered: list[Answered] = []
    dropped: list[Answered] = []
    asked = {}
    if questions and effort.survivors and any(axis in concepts for axis in questions.questions):
        best = survivors(order, effort.survivors)
        answered, dropped = answer(bench, best, questions, folder, judges(), console)
        pick, why = pick_answered(answered, dropped, concepts)
        asked = {axis: len(part) for axis, part in questions.questions.items()} if answered else {}
    found, why = with_chance(pick, order, len(trials), not answered or any(row.sound for row in answered), why)
    console.say(f"picked edit {pick.number} of {len(trials)}: {pick.recipe.words()}; {pick.weights:,} weights. {why}")
    return SearchRecord(
        trials=trials,
        front=front(trials, concepts),
        survivors=[row.record(answered, concepts) for row in (*answered, *dropped)],
        importance=settings_importance(trials, concepts),
        max_increase=bench.max_increase,
        pick=pick.number,
        found=found,
        why=why,
        effort="",  # by name: whoever asked knows it
        questions=asked,
        unmeasured=unmeasured_in((*answered, *dropped)),
    )


def with_chance(pick: Trial, order: Sequence[Trial], tried: int, sound: bool, why: str) -> tuple[bool, str]:
    """(whether the pick is a finding: it gains more than chance over so many `tried`, and is within the limits on
    answers; the reason, with what speaks against it)."""
    raised = is_found(pick, tried)
    if not raised:
        others = any(is_found(trial, tried) for trial in order)
        why += " It does not raise the margins of all concepts by more than chance"
        why += ", though an edit that was not picked does" if others else ", and no other allowed edit does"
    if not (raised and sound):
        why = f"{why.removesuffix('.')}: this is the best of what was tried, not a recommendation."
    return raised and sound, why


def table_text(trials: Sequence[Trial], concepts: Sequence[str]) -> str:
    """Trials as aligned text."""
    lines = [
        f"{'edit':>4} {'weights':>9} {'perplexity':>10} " + " ".join(f"{c[:12]:>12}" for c in concepts) + "  recipe"
    ]
    for trial in trials:
        increase = "-" if trial.increase is None else f"{trial.increase:+.2%}"
        gains = " ".join(f"{trial.gain(c):>+12.3f}" if trial.proxy else f"{trial.why[:12]:>12}" for c in concepts)
        lines.append(f"{trial.number:>4} {trial.weights:>9,} {increase:>10} {gains}  {trial.recipe.words()}")
    return "\n".join(lines)
