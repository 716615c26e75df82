"""What is measured on an arm: its answers, lm-eval tasks, margins of its own concepts; or what it is inside the model:
how far it makes the concepts' representations depend less on each other, where its weights live, and whether other
ratios, rules, selectors, responses, examples or seeds choose the same.

In: the work, an arm, and what is to be measured. Out: the arm's record; read when it is there. Other selections are at
the arm's ratio unless they say another; scores that other experiments stored are used again, and a selection of nothing
is a row that says why. Left out: making the arm (arms.py), and wording.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path

from spin_llm import pipeline
from spin_llm.analysis import information_report, location_report
from spin_llm.data import rendering_of
from spin_llm.evaluate.answers import answers, judge_rows, say_missing
from spin_llm.evaluate.comparison import measured
from spin_llm.evaluate.likelihood import View, compare_likelihoods
from spin_llm.files import read_typed, write_json, write_jsonl
from spin_llm.judges.verdict import remembering
from spin_llm.models import editable_matrices
from spin_llm.paper.arms import Work, make_scores, make_selection, make_view, unless_empty
from spin_llm.paper.experiments import SELECTORS, SPIN_SHOTS
from spin_llm.pipeline.inputs import RunData
from spin_llm.results.file import written
from spin_llm.results.measured import BASE, EDITED
from spin_llm.results.paper import AboutArm, Arm, ArmOptions, ArmRecord, DependenceRecord, LocationRecord, Measures
from spin_llm.results.rows import VerdictRow, read_rows
from spin_llm.scores import ScoreSet
from spin_llm.search.trials import measure_proxy, measure_reference
from spin_llm.selection import Selection, random_like, select
from spin_llm.settings import RunSettings

FACTORS = (0.5, 2, 10)  # of SPIN's ratio
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
    """HSIC and CKA between the concepts, before and after the edit; then, as `places`, where its weights lie."""
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


def located(arm: Arm, work: Work) -> list[Arm]:
    """The edits to compare with SPIN that need scores of their own: `arm` with one option changed."""
    shots = [number for number in SPIN_SHOTS if number < work.settings.examples]
    changes: dict[str, ArmOptions] = {
        **{f"selector {name}": {"selector": name} for name in SELECTORS if name != work.settings.selector},
        "unaware responses": {"responses": "unaware"},
        **{f"{number} examples": {"examples": number} for number in shots},
        f"seed {work.settings.seed + 1}": {"seed": work.settings.seed + 1},
    }
    return [replace(arm, name=name, options={**arm.options, **change}) for name, change in changes.items()]


def dependence(work: Work, arm: Arm, selection: Selection) -> dict[str, DependenceRecord]:
    """`information_report`s by title: of the edit on both kinds of pairs, and of as many random weights."""
    control = random_like(selection, work.settings.seed)
    return {
        f"{name}, {pairing} pairs": information_report(
            work.model,
            dict(list(work.fitted.concepts.items())[:2]),
            chosen,
            pairing=pairing,
            template=rendering_of(work.settings),
            measures=Measures(seed=work.settings.seed),
            console=work.console,
        )
        for name, chosen, pairing in (
            (arm.name, selection, "shuffled"),
            (arm.name, selection, "framed"),
            ("random", control, "framed"),
        )
    }


def location(work: Work, arm: Arm, selection: Selection, scores: ScoreSet) -> LocationRecord:
    """`location_report` of SPIN's and the other selections; what each is, or why it is empty."""
    selections, about = {arm.name: selection}, {arm.name: f"{selection.recipe.rule}, the edit"}
    for name, other, what in others(work, arm, selection, scores):
        about[name] = what
        if other is not None:
            selections[name] = other
            about[name] += "" if other.weights else ": selects nothing"
    transposed = any(matrix.transposed for matrix in editable_matrices(work.model.model, selection.recipe.target))
    report = location_report(selections, draws=0, transposed=transposed)
    own = location_report({arm.name: selection}, transposed=transposed, seed=work.settings.seed)  # chance is for SPIN's
    return replace(report, about=about, selections={**report.selections, **own.selections})


def others(work: Work, arm: Arm, selection: Selection, scores: ScoreSet) -> Iterator[tuple[str, Selection | None, str]]:
    """(name, selection or None where the scores do not reach so far, what it is)."""
    chosen, recipe = partial(select, allow_empty=True), selection.recipe
    yield "random", random_like(selection, work.settings.seed), "as many weights in each matrix, at random"
    yield "released", chosen(scores, replace(recipe, rule="released")), "the published code's rule"
    # a selection names what is protected also where that follows the ratio
    protect_ratio = None if recipe.protect_ratio == recipe.ratio else recipe.protect_ratio
    for factor in FACTORS:
        ratio = factor * recipe.ratio
        name, kept = f"{factor:g} x the ratio", ratio <= scores.keep
        why = "" if kept else f": not kept, the scores hold the top {scores.keep:g}"
        found = chosen(scores, replace(recipe, ratio=ratio, protect_ratio=protect_ratio)) if kept else None
        yield name, found, f"ratio {ratio:.3g}{why}"
    own = work.scored(work.settings_of(arm)).inputs
    for other in located(arm, work):
        run = work.scored(work.settings_of(other))
        yield other.name, chosen(make_scores(run), recipe), as_told(other.name, own, run.inputs)


def as_told(name: str, own: RunData, data: RunData) -> str:
    """What differs from SPIN's scores; of other examples, how many are SPIN's too."""
    if name.startswith("selector"):
        return "another importance score"
    if name.startswith("unaware"):
        return "the same prompts with malicious responses"
    rows, mine = (
        [(part, pair) for part, pairs in {**one.concepts, **one.protect}.items() for pair in pairs]
        for one in (data, own)
    )
    return f"{len(rows)} examples in all, {sum(row in mine for row in rows)} of them SPIN's"
