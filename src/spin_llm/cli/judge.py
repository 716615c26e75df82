"""The commands that fit a judge, check one, judge old answers again, and make a sheet for a human judge.

In: labelled or stored answers. Out: a judge file, measured quality, verdicts, or a sheet. Left out: any computing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from spin_llm.cli.options import Json, Overwrite, Quiet, at_least, helps, writes
from spin_llm.cli.terminal import console_of, draw, show
from spin_llm.errors import SpinError
from spin_llm.outputs import check_output
from spin_llm.settings import DataSettings, JudgeSettings, ModelSettings

app = App("judge", help="Fit or check a judge; judge old answers again.")
JUDGE, DATA, MODEL = helps(JudgeSettings), helps(DataSettings), helps(ModelSettings)


@app.command
def fit(
    data: Annotated[Path, Parameter(help="Labelled answers: csv or jsonl with concept, prompt, answer, label(s).")],
    /,
    *,
    output: Annotated[Path | None, writes("The judge file to write, FILE.safetensors; it has no default.")] = None,
    quiet: Quiet = False,
) -> None:
    """Fit the local judge on labelled answers; writes a judge file for --judge."""
    from spin_llm.judges.quality.fit import fit_judge
    from spin_llm.judges.quality.labelled import labelled_rows

    if output is None:
        raise SpinError("judge fit needs an output file.", change="give -o FILE.safetensors.")
    check_output(output, file=True)
    with console_of(quiet):
        print(fit_judge(labelled_rows(str(data)), output))


@app.command
def check(
    data: Annotated[
        list[str],
        Parameter(
            help="Labelled answers (csv, jsonl, parquet with concept, prompt, answer, label or labels), starter, "
            "starter:CONCEPT,CONCEPT, beavertails, or probes (odd answers)."
        ),
    ],
    /,
    *,
    judge: Annotated[list[str] | None, Parameter(help=JUDGE["judge"])] = None,
    data_dir: Annotated[str | None, Parameter(help=DATA["data_dir"])] = None,
    max_rows: Annotated[int | None, at_least(1, "At most so many rows per concept (of pairs: per kind).")] = None,
    output: Annotated[Path | None, writes("A JSON file for the measured quality (default: none is written).")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure judges on labelled answers: AUC, accuracy, calibration, confusion, agreement; give --judge repeatedly."""
    if output:
        check_output(output, file=True)
    with console_of(quiet) as console:
        from spin_llm.judges.named import load_judge
        from spin_llm.judges.quality.check import check as measure

        judges = {name: load_judge(name) for name in judge or [JudgeSettings.judge]}
        found, tables, remarks = measure(data, judges, data_dir=data_dir, most=max_rows, console=console)
    if output:
        from spin_llm.files import write_json

        write_json(output, found)
    if as_json:
        show(found, [], as_json=True)
    elif not quiet or not output:  # without a file the table is all there is
        draw(tables, remarks)
    if output and not as_json:
        print(output)


@app.command
def score(
    generations: Annotated[Path, Parameter(help="A generations.jsonl.")],
    /,
    *,
    output: Annotated[Path | None, writes("The verdicts (default: verdicts.jsonl beside the answers).")] = None,
    judge: Annotated[str, Parameter(help=JUDGE["judge"])] = JudgeSettings.judge,
    trust_remote_code: Annotated[bool, Parameter(help=MODEL["trust_remote_code"], show_default=False)] = False,
    quiet: Quiet = False,
) -> None:
    """Judge stored answers again, without generating: generations.jsonl to verdict rows. Goes on where it stopped."""
    path = output or generations.with_name("verdicts.jsonl")
    if path.exists() and output is None:
        raise SpinError(f"{path} exists.", change="give -o FILE.")
    check_output(path, file=True)
    with console_of(quiet) as console:
        from spin_llm.evaluate.answers import judge_again

        print(judge_again(generations, judge, path, trust_remote_code=trust_remote_code, console=console))


@app.command
def sheet(
    generations: Annotated[Path, Parameter(help="A generations.jsonl, or a run's own/answers.jsonl.")],
    /,
    *,
    output: Annotated[Path | None, writes("The sheet (default: sheet.csv beside the answers).")] = None,
    label: Annotated[str, Parameter(help="What to ask about the concepts: aware, safe or coherent.")] = "aware",
    seed: Annotated[int, Parameter(help=MODEL["seed"])] = 0,
    overwrite: Overwrite = False,
) -> None:
    """A blind spreadsheet of the answers for a human to label; --judge human:FILE.csv reads it back."""
    from spin_llm.judges.human import write_sheet
    from spin_llm.results.rows import read_for_sheet

    path = output or generations.with_name("sheet.csv")
    if path.exists() and not overwrite:
        raise SpinError(f"{path} exists.", cause="it may hold labels.", change="give -o FILE, or --overwrite.")
    print(f"{write_sheet(path, read_for_sheet(generations), label=label, seed=seed)} answers to label")
    print(path)
