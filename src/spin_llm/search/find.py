"""From scores to one recipe: search by the proxy, survivors by their answers, the pick and the record of how it came.

In: a bench (trials.py), a budget, search questions and judges. Out: the picked recipe, and the `search` part of
results.json. The survivors answer half of the search questions, the better half of them the other half (successive
halving); both count (answered.py). Left out: questions that are reported on. They are not here, so nothing can be
fitted to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spin_llm.errors import SpinError
from spin_llm.evaluate.answers import Evaluation
from spin_llm.judges.verdict import Judge
from spin_llm.progress import SILENT, Console
from spin_llm.results.recipe import Recipe
from spin_llm.search.answered import Answered, answer, pick_answered, unbeaten, unmeasured_in
from spin_llm.search.ranking import front, is_found, ranked, survivors
from spin_llm.search.study import settings_importance
from spin_llm.search.trial import Trial
from spin_llm.search.trials import Bench, search
from spin_llm.selection import targeted
from spin_llm.settings import Effort

SHOWN = 12  # trials in the message that none is allowed


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
) -> tuple[Recipe, dict[str, Any]]:
    """(the pick, how it came about). `questions` None, or no survivors in `effort`: the proxy decides alone.

    `judges` gives the judge and that of coherence when they are needed. What is done is kept under `folder`. Raises
    SpinError, with what was tried, when no recipe stays within the allowed perplexity.
    """
    concepts = bench.concepts
    targeted(bench.scores, usual.target, usual.layers)
    trials = search(bench, usual, trials=effort.trials, journal=folder / "journal.jsonl", seed=seed, console=console)
    order = ranked(trials, concepts, bench.max_increase)
    if not order:
        raise SpinError(
            f"None of {len(trials)} edits keeps the perplexity increase within {bench.max_increase:.1%}.\n"
            + table_text(trials[:SHOWN], concepts),
            cause="the smallest edit that the scores allow already costs more, or the rules select nothing.",
            change="raise --max-perplexity-increase; or give --rule and --ratio yourself.",
        )
    pick = order[0]
    why = "The proxy alone decided: no answers were judged in this search."
    answered: list[Answered] = []
    dropped: list[Answered] = []
    if questions and effort.survivors and any(axis in concepts for axis in questions.questions):
        best = survivors(order, effort.survivors)
        judge, coherence = judges()
        answered, dropped = answer(bench.loaded, bench, best, questions, folder, judge, coherence, console)
        pick, why = pick_answered(answered, dropped, concepts)
    raised, sound = is_found(pick, len(trials)), not answered or any(row.sound for row in answered)
    if not raised:
        others = any(is_found(trial, len(trials)) for trial in order)
        why += " It does not raise the margins of all concepts by more than chance"
        why += ", though an edit that was not picked does" if others else ", and no other allowed edit does"
    if not (raised and sound):
        why = f"{why.removesuffix('.')}: this is the best of what was tried, not a recommendation."
    console.say(f"picked edit {pick.number} of {len(trials)}: {pick.recipe.words()}; {pick.weights:,} weights. {why}")
    record = {
        "trials": [trial.as_json() for trial in trials],
        "front": front(trials, concepts),
        "survivors": [{**row.as_json(), "front": unbeaten(row, answered, concepts)} for row in (*answered, *dropped)],
        "importance": settings_importance(trials, concepts),
        "max_increase": bench.max_increase,
        "pick": pick.number,
        "found": raised and sound,
        "why": why,
        "unmeasured": unmeasured_in((*answered, *dropped)),
        "questions": {
            axis: len(asked) for axis, asked in (questions.questions if answered and questions else {}).items()
        },
    }
    return pick.recipe, record


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
