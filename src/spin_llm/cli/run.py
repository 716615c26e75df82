"""The commands around a run folder: score, search, evaluate, look at a model before and at the results after.

In: settings, as the options make them; run folders. Out: a run folder, and its results on stdout. Left out: any
computing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from spin_llm.cli.options import PLAIN, Json, Out, Overwrite, Quiet, at_least, from_settings, writes
from spin_llm.cli.terminal import console_of, show, show_results
from spin_llm.errors import SpinError
from spin_llm.settings import (
    GROUPS,
    AnswerSettings,
    DataSettings,
    ExtraSettings,
    JudgeSettings,
    MachineSettings,
    ModelSettings,
    RunSettings,
    ScoreSettings,
)

OWN = "responses own_judge"  # not of commands that take no own answers


@from_settings(*GROUPS)
def run(settings: RunSettings, *, out: Out = PLAIN) -> None:
    """Score, select, patch, evaluate and report, in one resumable folder."""
    folder = out.folder(settings.model)
    with console_of(out.quiet) as console:
        from spin_llm.pipeline import run as run_all

        results = run_all(settings, folder, overwrite=out.overwrite, console=console)
    show_results(results, folder, as_json=out.as_json, quiet=out.quiet)


@from_settings(
    *(group for group in GROUPS if group is not ExtraSettings), without=f"{OWN} statistics ratio protect_ratio scale"
)
def sweep(settings: RunSettings, *, out: Out = PLAIN) -> None:
    """Score, then search the edit alone: many settings by a proxy, the best by their answers; `run` goes on from it."""
    folder = out.folder(settings.model)
    with console_of(out.quiet) as console:
        from spin_llm.pipeline import sweep as search_edit

        found = search_edit(settings, folder, overwrite=out.overwrite, console=console)
    from spin_llm.report.sections.search import text_lines

    words = [] if out.quiet else text_lines(found)
    show(found, [*words, folder / "search.json", folder / "patch.safetensors"], as_json=out.as_json)


@from_settings(ModelSettings, DataSettings, ScoreSettings, MachineSettings, "thinking_tokens")
def score(settings: RunSettings, *, out: Out = PLAIN) -> None:
    """Score the weights for each concept and protected set: data to scores/."""
    folder = out.folder(settings.model)
    with console_of(out.quiet) as console:
        from spin_llm.pipeline import score as score_all

        files = score_all(settings, folder, overwrite=out.overwrite, console=console)
    if files:  # none on the further processes of a distributed job
        show({"scores": [str(path) for path in files]}, files, as_json=out.as_json)


@from_settings(
    *(ModelSettings, DataSettings, AnswerSettings, JudgeSettings, ExtraSettings, "skip_long"),
    without=f"{OWN} concepts controls resamples",
)
def eval_(
    settings: RunSettings,
    *,
    baseline: Annotated[str | None, Parameter(help="The model to compare with; both may be MODEL@URL.")] = None,
    patch: Annotated[Path | None, Parameter(help="Compare MODEL with MODEL plus this patch.")] = None,
    out: Out = PLAIN,
) -> None:
    """Compare any two models, or a model with and without a patch: answers, verdicts, results.json."""
    folder = out.folder(settings.model, "-eval")
    with console_of(out.quiet) as console:
        from spin_llm.pipeline import evaluate_models

        results = evaluate_models(
            settings, folder, baseline=baseline, patch_file=patch, overwrite=out.overwrite, console=console
        )
    show_results(results, folder, as_json=out.as_json, quiet=out.quiet)


@from_settings(
    *(ModelSettings, DataSettings, MachineSettings, "target", "selector", "thinking_tokens"),
    without=f"{OWN} seed prompt_column response_column",
)
def doctor(
    settings: RunSettings,
    *,
    machine: Annotated[
        str | None,
        Parameter(
            "--as",
            help="Plan for another machine, from the configuration alone: devices x memory [@ TFLOP/s [/ GB/s]], "
            "such as 8x80g@150/1000.",
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Look at a model before a run: what can be edited, templates, dtype, batching, memory and disk."""
    with console_of(quiet) as console:
        if machine is None:
            from spin_llm.pipeline import doctor as looking

            found, lines = looking.examine(settings, console=console), looking.lines
        else:
            from spin_llm.pipeline import machines

            found, lines = machines.plan_as(settings, machine), machines.lines
    show(found, lines(found), as_json=as_json)


def stability(
    folder: Annotated[Path, Parameter("RUN", help="A run folder with scores/ and a patch.")],
    /,
    *,
    resamples: Annotated[int, at_least(2, "How many bootstrap resamples of the scored examples.")] = 100,
    seed: Annotated[int | None, at_least(0, "Seed of the resamples (default: the run's).")] = None,
    model: Annotated[
        str | None, Parameter("--for", help="Where the run's model is now (default: where run.json says).")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Select again from resampled scoring data: does the selection hold? Writes stability.json and the report."""
    with console_of(quiet) as console:
        from spin_llm.pipeline import stability as measure

        found = measure(folder, resamples=resamples, seed=seed, model=model, overwrite=overwrite, console=console)
    jaccard = found.jaccard
    words = [
        f"Jaccard index with the selection {jaccard.mean:.2f} ({jaccard.low:.2f} to {jaccard.high:.2f}) "
        f"over {found.resamples} resamples; {found.in_half} of {found.weights} weights in at least half of "
        f"them, {found.in_most} in at least 95%"
    ]
    show(found, [*([] if quiet else words), folder / "stability.json"], as_json=as_json)


def report(
    folders: Annotated[list[Path], Parameter("RUN", help="Run folders with results.")],
    /,
    *,
    output: Annotated[Path | None, writes("Of several runs: the page (default: compare.html).")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write report.html and report.md of a run again; of several runs, one page that compares them."""
    from spin_llm.outputs import check_output
    from spin_llm.ownership import owned
    from spin_llm.records import read_record
    from spin_llm.report import compare_runs, write_report

    if len(folders) > 1:
        check_output(output or Path("compare.html"), file=True)
        print(compare_runs(folders, output or Path("compare.html"), overwrite=overwrite))
    elif output is None:
        read_record(folders[0])  # a folder that is no run is not made into one
        with owned(folders[0]) as folder:
            print(write_report(folder))
    else:
        raise SpinError("The report of one run is written into its folder.", change="leave out --output.")
