"""The model's own answers, made and divided, as the pairs that are scored.

In: the settings, the loaded model, what was read. Out: own/ in the run folder, and what was read with those pairs.
Left out: how own answers become pairs (evaluate/own.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from spin_llm.data import rows_sha256
from spin_llm.errors import SpinError
from spin_llm.evaluate.own import own_pairs
from spin_llm.files import write_json
from spin_llm.judges.coherence import load_coherence_judge
from spin_llm.judges.quality.reading import Asked, asked_of, reading
from spin_llm.judges.verdict import Judge
from spin_llm.models import LoadedModel
from spin_llm.pipeline.context import asking, judge_of
from spin_llm.pipeline.inputs import RunData
from spin_llm.progress import Console
from spin_llm.settings import OWN, RunSettings

UNMEASURED = "unmeasured.json"  # in the folder own/: where the judge that divided was not measured, and why


def with_own_answers(
    settings: RunSettings, folder: Path, loaded: LoadedModel, data: RunData, console: Console
) -> RunData:
    """The data with the model's own answers in the place of the responses, where these settings ask for them. They are
    kept in `folder`/own. What the aware ones need is protected too, as the set OWN: suppression that makes them
    unlikely moves the model to answers that nobody judged."""
    if not data.own:
        return data
    named = settings.dividing_judge
    known = settings.judge_quality if named == settings.judge else None  # that of the judge that reports
    judge = judge_of(replace(settings, judge=named, judge_quality=known), loaded)
    if unknown := [name for name in data.own if name not in judge.axes]:
        raise SpinError(
            f"The judge {judge.name} does not judge {', '.join(unknown)}: it cannot divide the model's own answers.",
            change="give --own-judge, or leave out --responses own.",
        )
    asked = asked_of([loaded], settings.concepts)
    unmeasured = unread_divisions(judge, asked, data.own)
    if not (folder / OWN / UNMEASURED).is_file():
        write_json(folder / OWN / UNMEASURED, unmeasured)
    for name, why in unmeasured.items():
        console.say(
            f"warning: {name}: the model's own answers are divided by {judge.name}, {why}; the edit is for what that "
            "judge takes for aware. Give --own-judge, such as a human's sheet, to be sure"
        )
    pairs = own_pairs(
        loaded,
        data.own,
        (judge, load_coherence_judge()),
        folder / OWN,
        asked=asking(settings, {}, asked=asked),
        told={"judge": judge.name, "tokens": settings.new_tokens}
        | {name: rows_sha256(asked) for name, asked in data.own.items()},
        console=console,
    )
    parts = {name: part.divided(settings.examples, settings.budget.pairs) for name, part in pairs.items()}
    by_margin = "margin" in settings.wanted_statistics
    aware = [pair for part in parts.values() for pair in part[0][: max(1, settings.examples // len(parts))]]
    return replace(
        data,
        protect={**data.protect, **({OWN: aware} if by_margin else {})},
        concepts={name: part[0] for name, part in parts.items()},
        unaware={name: part[1] for name, part in parts.items() if by_margin},
        contrasts={name: (part[2], part[3]) for name, part in parts.items()} if settings.searches else {},
    )


def unread_divisions(judge: Judge, asked: Asked, concepts: Iterable[str]) -> dict[str, str]:
    """The concepts on whose own answers the dividing judge was not measured, or not well enough, and which of these."""
    found = {name: reading(judge, name, asked).why_not for name in concepts}
    return {name: why for name, why in found.items() if why}
