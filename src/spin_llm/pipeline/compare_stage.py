"""Two models compared without scoring anything: `spin-llm eval`.

In: `RunSettings` and the model or the patch to compare by; the models are in this process, or both behind
OpenAI-compatible servers; or a loaded model and a patch in memory. Out: a run folder with answers, verdicts,
results.json and the report; or the results alone, and the folder of them later. Left out: controls, stability and
everything else that needs scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

from spin_llm.errors import SpinError
from spin_llm.evaluate.answers import Served
from spin_llm.evaluate.likelihood import View
from spin_llm.files import sha256_file
from spin_llm.generation.server import served, server_completer
from spin_llm.judges.named import refuse_fingerprint
from spin_llm.judges.quality.reading import asked_of
from spin_llm.judges.verdict import Judge
from spin_llm.models import LoadedModel
from spin_llm.outputs import writing
from spin_llm.ownership import is_vacant, owned
from spin_llm.patch.file import find_patch, load_patch, save_patch
from spin_llm.patch.patch import Patch
from spin_llm.pipeline.context import Run, asking
from spin_llm.pipeline.evaluate_stage import capability_results, edit_summary, evaluate_judged
from spin_llm.pipeline.folder import check_settings, check_template, located, whole_path, write_run_results
from spin_llm.pipeline.resuming import Opened, with_date
from spin_llm.progress import SILENT, Console
from spin_llm.records import PATCH, RECORD, Compared, ModelRecord, OtherModel
from spin_llm.report.page import write_report as report_of
from spin_llm.results import file
from spin_llm.results.file import Results
from spin_llm.results.measured import BASE, EDITED
from spin_llm.results.rows import GENERATIONS, VERDICTS
from spin_llm.search.find import search_questions
from spin_llm.settings import EFFORTS, RunSettings
from spin_llm.settings.words import Dtype, EffortName


def evaluate_models(
    settings: RunSettings | str,
    folder: str | Path,
    *,
    baseline: str | None = None,
    patch_file: str | Path | None = None,
    overwrite: bool = False,
    console: Console = SILENT,
) -> Results:
    """Compare settings.model (edited) with `baseline`, or settings.model (base) with the same model under a patch.

    Both models may be MODEL@URL, behind OpenAI-compatible servers.
    """
    if (baseline is None) == (patch_file is None):
        raise SpinError("eval compares two models.", change="give --baseline MODEL or --patch PATCH, one of them.")
    settings = RunSettings(settings) if isinstance(settings, str) else settings
    with owned(folder) as folder:
        run = Run(replace(settings, concepts=()), folder, console)  # nothing is scored
        if served(settings.model) or served(baseline or ""):
            return evaluate_served(run, baseline, overwrite=overwrite)
        patch_file = find_patch(patch_file) if patch_file else None
        patch = load_patch(patch_file) if patch_file else None
        check_settings(run.settings, [settings.model, *([baseline] if baseline else [])])
        _ = run.read  # an error now
        check_template(run.settings, run.checkpoint.base or run.checkpoint.folder)
        if patch_file:
            compared = Compared(patch=whole_path(str(patch_file)), patch_sha256=sha256_file(patch_file))
        else:
            other = run.told(replace(run.settings, model=str(baseline), device_map=None))
            about = OtherModel(other.checkpoint.fingerprint, asdict(other.checkpoint.identity))
            compared = Compared(baseline=whole_path(str(baseline)), baseline_model=about)
        opened = run.opened(run.checkpoint, overwrite=overwrite, compared=compared)
        _ = run.model
        if not patch_file:
            run.others = (other.model,)
        results = compare_loaded(run, opened, patch)
        report_of(folder)
        return results


@dataclass(frozen=True, kw_only=True)
class Evaluated(Results):
    """Results, with the files that stand beside them in a folder: run.json, the patch, answers and verdicts, by
    name."""

    beside: Mapping[str, bytes] = field(repr=False)


def evaluate(
    model: LoadedModel,
    patch: Patch,
    questions: str | Path | Mapping[str, str | Path] | None = None,
    judge: Judge | str = "local",
    *,
    settings: RunSettings | None = None,
    searched: EffortName | None = None,
    console: Console = SILENT,
) -> Evaluated:
    """What a patch does to a model: answers of both to the same questions, judged, with paired intervals; perplexity
    and KL on general pairs. As `spin-llm eval --patch`, without a folder; nothing is kept of what is cut off.

    `questions` is a source of all axes, or sources by axis; None is those of `settings`, else the starter set's.
    `settings` says what else a run may be told (seed, template, new_tokens, capabilities, ...); a seed, and a number of
    examples, other than those that were scored with let scored general pairs measure perplexity. `searched`: the effort
    of a search that a judge had a say in: the questions that it put are left out. Raises SpinError for a judge that
    judges none of the axes, or is the model itself, and for a patch of another model.
    """
    told = settings or RunSettings(model.name)
    dtype = str(model.dtype).removeprefix("torch.")
    told = replace(
        told,
        concepts=(),  # nothing is scored
        questions=told.questions if questions is None else questions,  # type: ignore[arg-type]
        judge=judge if isinstance(judge, str) else judge.name,
        dtype=dtype if dtype in get_args(Dtype) else told.dtype,  # type: ignore[arg-type]
    )
    with TemporaryDirectory() as name:
        run = Run(told, Path(name), console)
        run.checkpoint, run.model = model.checkpoint, model
        if isinstance(judge, str):
            check_settings(told, [model.name])
        else:
            refuse_fingerprint(judge, [model.checkpoint])
            run.judge = judge
        if searched:
            gone = search_questions(told.questions, EFFORTS[searched], told.seed)
            run.read = run.read.without({q for asked in gone.values() for q in asked}, "put by the search", console)
        save_patch(run.folder / PATCH, patch)
        compared = Compared(patch=PATCH, patch_sha256=sha256_file(run.folder / PATCH))
        rows = run.read.record(located(told))
        results = compare_loaded(run, Opened(run.folder, with_date(told), None, "", True, rows, compared), patch)
        beside = {part: (run.folder / part).read_bytes() for part in (RECORD, PATCH, GENERATIONS, VERDICTS)}
        return Evaluated(**vars(results), beside=beside)


def write_report(results: Evaluated, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write what `evaluate` gave into `folder`, as `spin-llm eval` leaves it: results.json, report.html, report.md and
    figures, run.json, patch, answers and verdicts beside them. Returns the path of report.html.

    Raises SpinError where something is in the folder, unless `overwrite`.
    """
    with owned(folder) as folder:
        if not (overwrite or is_vacant(folder)):
            raise SpinError(f"The output {folder} exists.", change="choose another folder, or overwrite=True.")
        for name, content in results.beside.items():
            with writing(folder / name) as part:
                part.write_bytes(content)
        file.write_results(folder, Results(**{one.name: getattr(results, one.name) for one in fields(Results)}))
        return report_of(folder)


def compare_loaded(run: Run, opened: Opened, patch: Patch | None) -> Results:
    """Both models, or the one with and without the patch: answers, verdicts and results.json."""
    edited, base = run.model, (run.others or (run.model,))[0]
    with patch.applied(edited.model) if patch else nullcontext():
        pass  # a patch of another model is told now, and not when the base has answered
    run.begin(opened)
    view: View = partial(patch.applied, edited) if patch else lambda: nullcontext(edited)
    views: dict[str, View] = {BASE: lambda: nullcontext(base), EDITED: view}
    measured = evaluate_judged(run, views, run.evaluation)
    results = replace(measured, capabilities=capability_results(run.settings, views, run.folder, run.console))
    return write_run_results(run.folder, replace(results, edit=edit_summary(patch)) if patch else results)


def evaluate_served(run: Run, baseline: str | None, *, overwrite: bool) -> Results:
    """Compare two models behind URLs: settings.model (edited) with `baseline`.

    Answers and verdicts alone: servers give no likelihoods of given texts, so that perplexity and kl are left out.
    """
    settings = run.settings
    edited, base = served(settings.model), served(baseline or "")
    if not edited or not base or settings.capabilities:
        raise SpinError(
            "Models behind a URL are compared with one another, by their answers alone.",
            cause="a patch, --capabilities, or a model of this process beside one behind a URL: two engines round "
            "differently, and the comparison would show that too.",
            change="give MODEL@URL --baseline MODEL@URL; or two models of this process.",
        )
    if settings.template not in ("auto", "chat", "raw"):
        raise SpinError(
            f"--template {settings.template} is not for models behind a URL.",
            cause="the server renders the messages.",
            change="give auto, chat or raw.",
        )
    check_settings(settings, [edited[0], base[0]])
    other, completer = (server_completer(url, model) for model, url in (base, edited))
    run.read = replace(run.read, choose=(), final=())
    template = "raw" if settings.template == "raw" else "chat"
    about = dict(completer.about)
    model = ModelRecord(completer.model, url=completer.server.url, served=about, template=template)
    compared = Compared(baseline=baseline, baseline_served=other.record())
    opened = run.opened(model, overwrite=overwrite, compared=compared)
    opened.write(model, opened.data, run.console)
    run.console.say("perplexity and kl are left out: a server gives no likelihoods of given texts")
    views: dict[str, Served] = {BASE: lambda: nullcontext(other), EDITED: lambda: nullcontext(completer)}
    asked = asked_of((), settings.questions)
    evaluation = asking(replace(run.settings, template=template), run.read.questions, asked=asked)
    results = write_run_results(run.folder, evaluate_judged(run, views, evaluation))
    report_of(run.folder)
    return results
