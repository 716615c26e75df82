"""Two models compared without scoring anything: `spin-llm eval`.

In: `RunSettings` and the model or the patch to compare by; the models are in this process, or both behind
OpenAI-compatible servers. Out: a run folder with answers, verdicts, results.json and the report. Left out: controls,
stability and everything else that needs scores.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from spin_llm.errors import SpinError
from spin_llm.evaluate import BASE, EDITED, Evaluation
from spin_llm.evaluate.evaluation import Served
from spin_llm.evaluate.judging import refuse_model_under_edit
from spin_llm.evaluate.likelihood import View
from spin_llm.evaluate.quality import asked_of
from spin_llm.evaluate.server import ServerCompleter, served, server_completer
from spin_llm.files import sha256_file, write_json
from spin_llm.models import load
from spin_llm.patch import find_patch, load_patch
from spin_llm.pipeline.data import read_data
from spin_llm.pipeline.evaluating import (
    capability_results,
    check_capabilities,
    edit_summary,
    evaluate_judged,
    evaluation_of,
    patched_view,
)
from spin_llm.pipeline.folder import check_folder, model_record, write_record
from spin_llm.pipeline.loading import fitting, say_untuned
from spin_llm.progress import SILENT, Console
from spin_llm.report import write_report
from spin_llm.settings import RunSettings


def evaluate_models(
    settings: RunSettings,
    folder: Path,
    *,
    baseline: str | None,
    patch_file: Path | None,
    overwrite: bool = False,
    console: Console = SILENT,
) -> dict[str, Any]:
    """Compare settings.model (edited) with `baseline`, or settings.model (base) with the same model under a patch.

    Both models may be MODEL@URL, behind OpenAI-compatible servers.
    """
    if (baseline is None) == (patch_file is None):
        raise SpinError("eval compares two models.", change="give --baseline MODEL or --patch PATCH, one of them.")
    if served(settings.model) or served(baseline or ""):
        return evaluate_served(settings, folder, baseline=baseline, overwrite=overwrite, console=console)
    check_capabilities(settings)
    refuse_model_under_edit(settings.judge, [settings.model, *([baseline] if baseline else [])])
    patch_file = find_patch(patch_file) if patch_file else None
    patch = load_patch(patch_file) if patch_file else None
    compared: dict[str, Any] = {"baseline": str(baseline)}
    if patch_file:
        compared = {"patch": str(patch_file), "patch_sha256": sha256_file(patch_file)}
    settings = replace(settings, concepts=())  # nothing is scored
    data = read_data(settings, console)
    check_folder(settings, folder, overwrite=overwrite, compared=compared)
    options: dict[str, Any] = {
        "dtype": settings.dtype,
        "trust_remote_code": settings.trust_remote_code,
        "say": console.say,
    }
    loaded = load(settings.model, **options)
    base = loaded if patch else load(str(baseline), **options)
    compared_models = [loaded] if patch else [loaded, base]
    for each in {model.name: model for model in compared_models}.values():
        say_untuned(each, console)
    data = fitting(settings, data, *compared_models, console=console)
    about = {**model_record(settings, loaded), "baseline_fingerprint": base.checkpoint.fingerprint}
    write_record(settings, folder, about, data, overwrite=overwrite, compared=compared)
    edited = patched_view(loaded, patch) if patch else lambda: nullcontext(loaded)
    views: dict[str, View] = {BASE: lambda: nullcontext(base), EDITED: edited}
    evaluation = evaluation_of(settings, loaded, data, *compared_models[1:])
    measured = evaluate_judged(settings, views, evaluation, folder, console, *compared_models)
    results = {"edit": edit_summary(patch) if patch else {}, **measured, "ratio_table": []}
    results |= capability_results(settings, views, folder, console)
    write_json(folder / "results.json", results)
    write_report(folder)
    return results


def evaluate_served(
    settings: RunSettings, folder: Path, *, baseline: str | None, overwrite: bool, console: Console
) -> dict[str, Any]:
    """Compare two models behind URLs: settings.model (edited) with `baseline`.

    Answers and verdicts alone: servers give no likelihoods of given texts, so that perplexity and kl are left out.
    """
    edited, base = served(settings.model), served(baseline or "")
    if not edited or not base or settings.capabilities:
        raise SpinError(
            "Models behind a URL are compared with one another, by their answers alone.",
            cause="a patch, --capabilities, or a model of this process beside one behind a URL: two engines round "
            "differently, and the comparison would show that too.",
            change="give MODEL@URL --baseline MODEL@URL; or two models of this process.",
        )
    if settings.template == "released":
        raise SpinError("--template released is not for models behind a URL.", change="give auto, chat or raw.")
    refuse_model_under_edit(settings.judge, [edited[0], base[0]])
    completers = {name: server_completer(url, model) for name, (model, url) in ((BASE, base), (EDITED, edited))}
    compared = {"baseline": baseline, "baseline_served": completers[BASE].record()}
    settings = replace(settings, concepts=())
    data = replace(read_data(settings, console), choose=(), final=())
    check_folder(settings, folder, overwrite=overwrite, compared=compared)
    template = "raw" if settings.template == "raw" else "chat"
    model = {**completers[EDITED].record(), "template": template}
    write_record(settings, folder, model, data, overwrite=overwrite, compared=compared)
    console.say("perplexity and kl are left out: a server gives no likelihoods of given texts")
    views = {name: answering(completer) for name, completer in completers.items()}
    asked = asked_of((), settings.questions)
    evaluation = Evaluation(data.questions, (), template, settings.new_tokens, settings.seed, asked)
    measured = evaluate_judged(settings, views, evaluation, folder, console)
    results = {"edit": {}, **measured, "ratio_table": []}
    write_json(folder / "results.json", results)
    write_report(folder)
    return results


def answering(completer: ServerCompleter) -> Served:
    return lambda: nullcontext(completer)
