"""The commands that load a model to score, search, evaluate, or look at it.

In: settings, as the options make them. Out: a run folder, and its results on stdout. Left out: any computing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from spin_llm.cli.options import Json, Overwrite, Quiet, told, written
from spin_llm.cli.terminal import console_of, show, show_results, slug
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

RunFolder = Annotated[Path | None, written("The run folder (default: runs/MODEL).")]
OWN = "responses own_judge"  # not of commands that take no own answers


@told(*GROUPS)
def run(
    settings: RunSettings,
    *,
    output: RunFolder = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score, select, patch, evaluate and report, in one resumable folder."""
    folder = output or Path("runs") / slug(settings.model)
    with console_of(quiet) as console:
        from spin_llm.pipeline import run as run_all

        results = run_all(settings, folder, overwrite=overwrite, console=console)
    show_results(results, folder, as_json=as_json, quiet=quiet)


@told(
    *(group for group in GROUPS if group is not ExtraSettings),
    without=f"{OWN} statistics ratio protect_ratio scale",
)
def sweep(
    settings: RunSettings,
    *,
    output: RunFolder = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score, then search the edit alone: many settings by a proxy, the best by their answers; `run` goes on from it."""
    folder = output or Path("runs") / slug(settings.model)
    with console_of(quiet) as console:
        from spin_llm.pipeline import sweep as search_edit

        found = search_edit(settings, folder, overwrite=overwrite, console=console)
    from spin_llm.report.sections.search import text_lines

    words = [] if quiet else text_lines(found)
    show(found, [*words, folder / "search.json", folder / "patch.safetensors"], as_json=as_json)


@told(ModelSettings, DataSettings, ScoreSettings, MachineSettings, "thinking_tokens")
def score(
    settings: RunSettings,
    *,
    output: RunFolder = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score the weights for each concept and protected set: data to scores/."""
    folder = output or Path("runs") / slug(settings.model)
    with console_of(quiet) as console:
        from spin_llm.pipeline import score as score_all

        files = score_all(settings, folder, overwrite=overwrite, console=console)
    if files:  # none on the further processes of a distributed job
        show({"scores": [str(path) for path in files]}, files, as_json=as_json)


@told(
    *(ModelSettings, DataSettings, AnswerSettings, JudgeSettings, ExtraSettings, "skip_long"),
    without=f"{OWN} concepts controls resamples",
)
def eval_(
    settings: RunSettings,
    *,
    baseline: Annotated[str | None, Parameter(help="The model to compare with; both may be MODEL@URL.")] = None,
    patch: Annotated[Path | None, Parameter(help="Compare MODEL with MODEL plus this patch.")] = None,
    output: Annotated[Path | None, written("The run folder (default: runs/MODEL-eval).")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare any two models, or a model with and without a patch: answers, verdicts, results.json."""
    folder = output or Path("runs") / f"{slug(settings.model)}-eval"
    with console_of(quiet) as console:
        from spin_llm.pipeline import evaluate_models

        results = evaluate_models(
            settings, folder, baseline=baseline, patch_file=patch, overwrite=overwrite, console=console
        )
    show_results(results, folder, as_json=as_json, quiet=quiet)


@told(
    *(ModelSettings, DataSettings, MachineSettings, "target", "selector", "thinking_tokens"),
    without=f"{OWN} seed prompt_column response_column",
)
def doctor(settings: RunSettings, *, as_json: Json = False, quiet: Quiet = False) -> None:
    """Look at a model before a run: what can be edited, templates, dtype, batching, memory and disk."""
    with console_of(quiet) as console:
        from spin_llm.pipeline.doctor import examine, lines

        found = examine(settings, console=console)
    show(found, lines(found), as_json=as_json)
