"""Several runs side by side: `spin-llm report A B C`.

In: run folders with `run.json` and `results.json`. Out: one self-contained page and the same as Markdown: for every
axis one row a run, the settings in which the runs differ, and a warning for everything that forbids comparing the
numbers (another base, other questions, another judge).
Left out: tests between runs; each interval is of one run against its own base, on paired prompts, and two intervals
that overlap, or do not, say little about their difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spin_llm.errors import SpinError
from spin_llm.files import write_text
from spin_llm.records import RECORD, RESULTS, RunRecord
from spin_llm.report.page import Run, plain, read_run
from spin_llm.report.render import render_markdown, render_page
from spin_llm.report.sections.table import COLUMNS, Line, Row, line_of, scale_of
from spin_llm.report.summary import applying, auc_text
from spin_llm.report.words import NOTHING, axis_label
from spin_llm.results.file import written
from spin_llm.results.measured import CAPABILITY_AXES

NAMES_SHOWN = 6  # of a list of differing values, in a warning


@dataclass(frozen=True)
class ComparedRow:
    """One run on one axis: its row, labelled by its name; `line` is its interval on the axis's scale."""

    row: Row
    line: Line
    judge: str


@dataclass(frozen=True)
class ComparedAxis:
    label: str
    metric: str
    rows: list[ComparedRow]
    warnings: list[str]


def compare_runs(folders: Sequence[Path], output: Path, *, overwrite: bool = False) -> Path:
    """Write `output` (HTML) and the same with the suffix `.md`; returns `output`.

    Raises SpinError when a folder is named twice or is no evaluated run, and when a file is in the way.
    """
    beside = output.with_suffix(".md")
    for path in (output, beside):
        if path.exists() and not overwrite:
            raise SpinError(f"{path} exists.", change="choose another --output, or --overwrite.")
    if output.suffix == ".md":
        raise SpinError(f"The comparison is a page, and {output} is not one.", change="give -o NAME.html.")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise SpinError("A run is named twice.", change="name each run once.")
    told = [folder.resolve().name for folder in folders]
    if len(set(told)) < len(told):
        told = [str(folder) for folder in folders]
    found = [read_run(folder, (RECORD, RESULTS), name) for name, folder in zip(told, folders, strict=True)]
    names = dict.fromkeys(axis for one in found for axis in one.results.axes)  # in the order of the first that has it
    context = {
        "runs": found,
        "warnings": warnings_of(found),
        "axes": [compared_axis(axis, found) for axis in names],
        "columns": ("run", *COLUMNS[1:]),
        "differing": differing_settings(found),
        "edits": [_edit_row(one) for one in found],
    }
    write_text(beside, render_markdown("compare.md.j2", context))
    write_text(output, render_page("compare.html.j2", context))
    return output


def base_of(record: RunRecord) -> tuple[str, str] | None:
    """What the edited model was compared with, as (how it is known, what is known): the fingerprint of its weights, or
    what a server says of it; None where only its name was recorded. Version 0.1.0 had another fingerprint."""
    compared = record.compared
    if compared.baseline_served:
        return "server", plain(compared.baseline_served)
    base = compared.baseline_model if compared.baseline else record.model
    if not base or not base.fingerprint:
        return None
    return f"fingerprint{' of parts' * bool(base.parts)}", base.fingerprint


def base_warning(runs: Sequence[Run]) -> str | None:
    """What is to be said of the bases; None when they are the same."""
    bases = {one.name: base_of(one.record) for one in runs}
    if unknown := [name for name, base in bases.items() if base is None]:
        return f"Whether the bases are the same is not known: {', '.join(unknown)} names its base alone."
    if len({base[0] for base in bases.values() if base}) > 1:
        return "Whether the bases are the same is not known: the runs know theirs in different ways."
    if len(set(bases.values())) > 1:
        return "The bases differ: differences from different bases must not be compared."
    return None


def questions_of(axis: str, one: Run) -> str:
    """The hash of the prompts that a run asked on an axis; perplexity and KL are on the held-back general pairs."""
    role, name = ("perplexity", "general") if axis in CAPABILITY_AXES else ("questions", axis)
    found = [item.sha256 for item in one.record.data if (item.role, item.name) == (role, name)]
    return " ".join(found) or "not recorded"


def judge_of(axis: str, one: Run) -> str:
    """The judge, what it decides, its quality on an axis (a refitted judge keeps its name); "" for an axis without."""
    judge = one.results.judge
    if axis in CAPABILITY_AXES:
        return ""
    return f"{judge.name} ({judge.label or 'no label'}, {auc_text(applying(one.results, axis))})"


def warnings_of(runs: Sequence[Run]) -> list[str]:
    """What differs between runs for all axes alike, and so forbids comparing their numbers."""
    found = [warning] if (warning := base_warning(runs)) else []
    for setting in ("new_tokens", "template"):
        values = {str(one.record.settings.get(setting, NOTHING)) for one in runs}
        if len(values) > 1:
            found.append(
                f"{setting} differs ({', '.join(sorted(values))}): the models answered under other conditions."
            )
    return found


def compared_axis(axis: str, found: Sequence[Run]) -> ComparedAxis:
    """One axis of the runs that measured it."""
    runs = [one for one in found if axis in one.results.axes]
    results = [one.results.axes[axis] for one in runs]
    scale = scale_of(results)
    judges = [judge_of(axis, one) for one in runs]
    warnings = []
    if len({questions_of(axis, one) for one in runs}) > 1:
        warnings.append("The prompts differ between runs: these numbers must not be compared.")
    if len(set(judges)) > 1:
        warnings.append(f"The judge differs between runs: {'; '.join(list(dict.fromkeys(judges))[:NAMES_SHOWN])}.")
    if not warnings and not base_warning(runs) and len({result.base for result in results}) > 1:
        warnings.append("The base scored differently on the same prompts: other software, batches or precision.")
    if len(runs) < len(found):
        warnings.append(f"{len(found) - len(runs)} of {len(found)} runs did not measure this axis.")
    rows = [
        ComparedRow(Row(axis, None, one.name, result), line_of(one.name, axis, result, scale), judge)
        for one, result, judge in zip(runs, results, judges, strict=True)
    ]
    return ComparedAxis(axis_label(axis), results[0].metric, rows, warnings)


def differing_settings(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(name, one value a run) of every setting, version and model property in which the runs differ."""
    tables = [
        {
            **{f"model {key}": value for key, value in written(one.record.model).items() if key != "path"},
            **{f"compared {key}": value for key, value in written(one.record.compared).items()},
            **one.record.settings,
            **{f"version of {key}": value for key, value in one.record.versions.items()},
        }
        for one in runs
    ]
    rows = []
    for name in dict.fromkeys(name for table in tables for name in table):
        values = [plain(table[name]) if name in table else NOTHING for table in tables]
        if len(set(values)) > 1:
            rows.append((name, values))
    return rows


def _edit_row(one: Run) -> tuple[str, ...]:
    """(run, model, rule, ratio, edited weights, controls) as texts."""
    edit = one.results.edit
    ratio = NOTHING if edit.ratio is None else f"{edit.ratio:g}"
    weights = NOTHING if edit.weights is None else f"{edit.weights:,}"
    controls = ", ".join(one.results.controls) or "none"
    return (one.name, one.record.model.name, edit.rule or NOTHING, ratio, weights, controls)
