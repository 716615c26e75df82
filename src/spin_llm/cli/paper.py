"""The commands that train a baseline, and that run an experiment of the paper.

In: settings, as the options make them. Out: a checkpoint or adapter; tables and figures. Left out: any computing.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from spin_llm.cli.options import PLAIN, Out, Quiet, at_least, from_settings, writes
from spin_llm.cli.terminal import console_of, show, slug
from spin_llm.errors import SpinError
from spin_llm.settings import AnswerSettings, DataSettings, JudgeSettings, ModelSettings, RunSettings, flag_of
from spin_llm.settings.edit import parse_ratio
from spin_llm.settings.training import BaselineSettings, make


@from_settings(BaselineSettings, make=make)
def baseline(settings: BaselineSettings, *, out: Out = PLAIN) -> None:
    """Fine-tune a model, to compare an edit with: a checkpoint or adapter that `eval` takes."""
    folder = out.folder(settings.model, f"-{settings.method}")
    with console_of(out.quiet) as console:
        from spin_llm.baselines.train import train_baseline

        record = train_baseline(settings, folder, overwrite=out.overwrite, console=console)
    show(asdict(record), [folder / str(record.result)], as_json=out.as_json)


@from_settings(
    *(ModelSettings, DataSettings, AnswerSettings, JudgeSettings, "ratio", "max_perplexity_increase", "keep"),
    *("effort", "skip_long", "capabilities", "capability_tasks", "capabilities_limit"),
    without="prompt_column response_column responses own_judge",
    make=partial(partial, RunSettings),
)
def paper(
    experiment: Annotated[
        str, Parameter(help="table1, table2, malicious, few-shot, mixing, ratio, modules, ...; all.")
    ],
    /,
    given: partial[RunSettings],
    *,
    limit: Annotated[
        int | None, at_least(4, "A small version: at most so many questions, examples and training pairs.")
    ] = None,
    also: Annotated[list[str] | None, Parameter(help="For sizes: a further model; repeat it.")] = None,
    preset: Annotated[
        bool,
        Parameter(
            help="The paper's settings: ratio 5e-7, the released template, 128 examples, MLP matrices. "
            "Another --ratio, --template or --examples beside it is an error; --limit makes a small version of it.",
            show_default=False,
        ),
    ] = False,
    epochs: Annotated[int | None, at_least(1, "Epochs of the fine-tuning baselines.")] = None,
    output: Annotated[Path | None, writes("The folder of all experiments (default: runs/MODEL-paper).")] = None,
    quiet: Quiet = False,
) -> None:
    """Run an experiment of the paper: its table or figure, beside the printed numbers; what is done is kept."""
    settings = with_preset(given) if preset else given()
    folder = output or Path("runs") / f"{slug(settings.model)}-paper"
    with console_of(quiet) as console:
        from spin_llm.paper.conduct import run_paper

        files = run_paper(
            experiment,
            settings,
            folder,
            limit=limit,
            models=also or [],
            epochs=epochs,
            ratio=settings.ratio,
            console=console,
        )
    print(*files, sep="\n")


def with_preset(given: partial[RunSettings]) -> RunSettings:
    """The settings with what the paper fixes; SpinError where another value of it was given."""
    from spin_llm.paper.experiments import PRESET

    for name, fixed in PRESET.items():
        value = given.keywords.get(name, fixed)
        if (parse_ratio(value) if name == "ratio" else value) != fixed:
            shown = f"{fixed:g}" if isinstance(fixed, float) else fixed
            raise SpinError(
                f"--preset fixes {flag_of(name)} {shown}, and {flag_of(name)} {value} was given.",
                change="leave out one of the two.",
            )
    return given(**PRESET)
