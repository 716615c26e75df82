"""What is measured on an arm: its answers, lm-eval tasks, margins of its own concepts, or what it is inside.

In: the work, an arm, and what is to be measured. Out: the arm's record; read when it is there. Left out: making the arm
(arms.py), dependence of representations and where the weights lie (selections.py).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

from spin_llm import pipeline
from spin_llm.evaluate.answers import answers, judge_rows, say_missing
from spin_llm.evaluate.comparison import measured
from spin_llm.evaluate.likelihood import View, compare_likelihoods
from spin_llm.files import read_typed, write_json, write_jsonl
from spin_llm.judges.verdict import remembering
from spin_llm.paper.arms import Work, make_selection, make_view, unless_empty
from spin_llm.paper.selections import dependence, location
from spin_llm.results.file import written
from spin_llm.results.measured import BASE, EDITED
from spin_llm.results.paper import AboutArm, Arm, ArmRecord, LocationRecord
from spin_llm.results.rows import VerdictRow, read_rows
from spin_llm.scores import ScoreSet
from spin_llm.search.trials import measure_proxy, measure_reference
from spin_llm.settings import RunSettings

ANEW = "delete that file: what it holds is made again."
SUFFIXES = {"answers": "", "tasks": "-tasks", "margins": "-margins", "information": "-location"}


def record_file(work: Work, kind: str, key: str) -> Path:
    """The file that is there when this `kind` of measurement of an arm is done."""
    return work.folder / "arms" / f"{key}{SUFFIXES[kind]}.json"


def measure(work: Work, arm: Arm, kind: str) -> ArmRecord:
    """What the arm is, and what an experiment of this `kind` finds on it beside the base; from disk when done. The base
    alone has but answers and tasks. SpinError when lm-eval or the data of a task are not there."""
    found, file = ArmRecord(arm.name, arm.kind, AboutArm(0)), record_file(work, kind, work.key(arm))
    if arm.kind == "base" and kind in ("margins", "information"):
        return found
    if kind == "information":
        return of_information(work, arm, found, file)
    if not file.is_file():
        if kind == "tasks":
            pipeline.check_capabilities(task_settings(work))
        view, about = make_view(work, arm)
        found = replace(found, about=about)
        if view is not None:
            found = {"answers": of_answers, "tasks": of_tasks, "margins": of_margins}[kind](work, arm, found, view)
        write_json(file, written(found))
    return replace(read_typed(file, ArmRecord, change=ANEW), name=arm.name)


def of_answers(work: Work, arm: Arm, found: ArmRecord, view: View) -> ArmRecord:
    """Answers, verdicts and losses of an arm beside the base's, which are answered and judged once for all arms; an
    answer that the arm did not change keeps its verdict."""
    asked, origin = work.evaluation, work.key(Arm("origin"))
    base = answers(origin, lambda: nullcontext(work.model), asked, work.folder, console=work.console)
    other = base if arm.kind == "base" else answers(work.key(arm), view, asked, work.folder, console=work.console)
    rows = [replace(row, model=name) for name, part in ((BASE, base), (EDITED, other)) for row in part]
    judge, coherence = work.judge, work.coherence
    kept = remembering(judge, work.folder / "progress" / "judged.jsonl")
    file = work.folder / "progress" / f"verdicts-{origin}.jsonl"
    if not file.is_file():
        judged = judge_rows(kept, rows[: len(base)], coherence=coherence, console=work.console)
        write_jsonl(file, map(written, judged))
    told = {(row.axis, row.id): row for row in read_rows(file, VerdictRow)}
    latest = dict(told)
    given = attrgetter("answer", "missing")  # what decides the verdict on a row
    changed = [row for row, before in zip(rows[len(base) :], base, strict=True) if given(row) != given(before)]
    if {row.axis for row in changed} & {axis for axis, _ in told}:
        anew = judge_rows(kept, changed, coherence=coherence, console=work.console)
        latest |= {(row.axis, row.id): row for row in anew}
    verdicts = [replace(row, model=name) for name, part in ((BASE, told), (EDITED, latest)) for row in part.values()]
    say_missing(verdicts, work.console)
    losses = compare_likelihoods(lambda: nullcontext(work.model), view, asked.general)
    results = measured(
        verdicts, rows, {EDITED: losses}, judge, coherence=coherence, asked=asked.asked, seed=work.settings.seed
    )
    return replace(found, axes=results.axes, style=results.style, phrases=results.phrases, judge=results.judge)


def task_settings(work: Work) -> RunSettings:
    """The settings with the paper's tasks, unless others were given, on as few documents as all is small."""
    told = work.settings
    limit = told.capabilities_limit or work.limit
    return replace(told, capabilities=told.capabilities or ("paper",), capabilities_limit=limit)


def of_tasks(work: Work, arm: Arm, found: ArmRecord, view: View) -> ArmRecord:
    """The arm's lm-eval tasks against the base's."""
    views: dict[str, View] = {BASE: lambda: nullcontext(work.model), EDITED: view}
    folder = work.folder / "arms" / f"{work.key(arm)}-tasks"
    return replace(found, axes=pipeline.capability_results(task_settings(work), views, folder, work.console))


def of_margins(work: Work, arm: Arm, found: ArmRecord, view: View) -> ArmRecord:
    """What an edit does to the margins of its own concepts on held-back pairs."""
    settings = replace(work.settings_of(arm), rule="auto", ratio=None)
    bench = pipeline.bench_of(work.told(settings), ScoreSet({}))
    base = measure_reference(work.model, bench.contrasts, bench.general)
    with view() as edited:
        proxy = measure_proxy(edited, bench.contrasts, bench.general, base)
    return replace(found, gains=proxy.gains, increase=proxy.increase, kl=proxy.kl)


def of_information(work: Work, arm: Arm, found: ArmRecord, places: Path) -> ArmRecord:
    """HSIC and CKA between the concepts' representations, before and after the edit; and where its weights lie, which
    is written last, as `places`."""
    file = places.with_name(f"{work.key(arm)}-information.json")
    if not places.is_file():
        made = unless_empty(make_selection, work, arm)
        if isinstance(made, AboutArm):
            write_json(file, written(replace(found, about=made)))
            write_json(places, {})
        else:
            selection, scores = made
            if not file.is_file():
                reports = dependence(work, arm, selection)
                write_json(file, written(replace(found, about=AboutArm(selection.weights), information=reports)))
            write_json(places, written(location(work, arm, selection, scores)))
    found = read_typed(file, ArmRecord, change=ANEW)
    return replace(found, location=read_typed(places, LocationRecord, change=ANEW), name=arm.name)
