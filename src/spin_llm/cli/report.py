"""The commands that read a finished run: its report again, several beside each other, its stability.

In: run folders. Out: pages, stability.json. Left out: any computing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from spin_llm.cli.options import Json, Overwrite, Quiet, written
from spin_llm.cli.terminal import console_of, show
from spin_llm.errors import SpinError
from spin_llm.outputs import check_output


def stability(
    folder: Annotated[Path, Parameter("RUN", help="A run folder with scores/ and a patch.")],
    /,
    *,
    resamples: Annotated[
        int, Parameter(help="How many bootstrap resamples of the scored examples.", validator=Number(gte=2))
    ] = 100,
    seed: Annotated[
        int | None, Parameter(help="Seed of the resamples (default: the run's).", validator=Number(gte=0))
    ] = None,
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

        told: dict[str, Any] = {"seed": seed, "model": model, "overwrite": overwrite, "console": console}
        found = measure(folder, resamples=resamples, **told)
    jaccard = found["jaccard"]
    words = [
        f"Jaccard index with the selection {jaccard['mean']:.2f} ({jaccard['low']:.2f} to {jaccard['high']:.2f}) "
        f"over {found['resamples']} resamples; {found['in_half']} of {found['weights']} weights in at least half of "
        f"them, {found['in_most']} in at least 95%"
    ]
    show(found, [*([] if quiet else words), folder / "stability.json"], as_json=as_json)


def report(
    folders: Annotated[list[Path], Parameter("RUN", help="Run folders with results.")],
    /,
    *,
    output: Annotated[Path | None, written("Of several runs: the page (default: compare.html).")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write report.html and report.md of a run again; of several runs, one page that compares them."""
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
