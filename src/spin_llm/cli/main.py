"""The command `spin-llm`: each subcommand parses, calls one public function, and prints where the result is.

In: the command line. Out: progress on stderr, the result on stdout (`--json`: as JSON), exit code 0 when what was asked
was done, 2 with one message on bad input, 130 on Ctrl+C. Heavy imports happen inside the subcommands, so that `--help`
is immediate. Left out: any computing.
"""

from __future__ import annotations

import codecs
import io
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spin_llm.cli.options import helps
from spin_llm.cli.terminal import console_of, draw, show, show_results
from spin_llm.errors import SpinError, visible
from spin_llm.files import check_output
from spin_llm.outputs import end_all
from spin_llm.settings import SEARCHED, RunSettings, flag_of, parse_options
from spin_llm.settings import training as baselines
from spin_llm.settings.edit import parse_layers, parse_ratio

if TYPE_CHECKING:
    pass

app = typer.Typer(
    name="spin-llm",
    help="Find the weights that couple a model's fairness and privacy awareness, suppress them, prove what changed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
judge_app = typer.Typer(no_args_is_help=True, help="Fit or check a judge; judge old answers again.")
app.add_typer(judge_app, name="judge")


def default_of(name: str) -> Any:
    return getattr(RunSettings, name)


def _setting(name: str, *flags: str, **options: Any) -> Any:
    return typer.Option(*(flags or (f"--{name.replace('_', '-')}",)), help=helps(RunSettings)[name], **options)


Model = Annotated[str, typer.Argument(help="Hub id, local folder, .gguf file, or smollm2-135m (embedded).")]


def _output(where: str) -> Any:
    return typer.Option("-o", "--output", help=where)


Output = Annotated[Path | None, _output("The run folder (default: runs/MODEL).")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run wrote there.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no table: where the result is, alone.")]
Concept = Annotated[list[str] | None, _setting("concepts", "--concept")]
Protect = Annotated[list[str] | None, _setting("protect", "--protect")]
Questions = Annotated[list[str] | None, _setting("questions", "--questions")]
DataDir = Annotated[str | None, _setting("data_dir")]
PromptColumn = Annotated[str | None, _setting("prompt_column")]
ResponseColumn = Annotated[str | None, _setting("response_column")]
Responses = Annotated[str, _setting("responses")]
OwnJudge = Annotated[str | None, _setting("own_judge")]
Examples = Annotated[int | None, _setting("examples", show_default="128; 64 with --effort quick")]
MaxQuestions = Annotated[int | None, _setting("max_questions")]
Template = Annotated[str, _setting("template")]
TemplateOption = Annotated[list[str] | None, _setting("template_options", "--template-option", metavar="NAME=VALUE")]
Thinking = Annotated[bool, _setting("thinking")]
ThinkingTokens = Annotated[int | None, _setting("thinking_tokens")]
TemplateDate = Annotated[str | None, _setting("date")]
MaxLength = Annotated[int, _setting("max_length")]
SkipLong = Annotated[bool, _setting("skip_long", "--skip-long")]
NewTokens = Annotated[int, _setting("new_tokens")]
Dtype = Annotated[str, _setting("dtype")]
Target = Annotated[str, _setting("target")]
Selector = Annotated[str, _setting("selector")]
Statistics = Annotated[list[str] | None, _setting("statistics")]
Granularity = Annotated[str, _setting("granularity")]
MemoryBudget = Annotated[str | None, _setting("memory_budget")]
DeviceMap = Annotated[str | None, _setting("device_map")]
Rule = Annotated[str, _setting("rule")]
EffortName = Annotated[str, _setting("effort")]
Layers = Annotated[str | None, _setting("layers", metavar="FIRST-LAST")]
AtLeast = Annotated[int | None, _setting("at_least")]
Trials = Annotated[int | None, _setting("trials")]
Survivors = Annotated[int | None, _setting("survivors")]
Ratio = Annotated[str, _setting("ratio", show_default="auto")]
ProtectRatio = Annotated[float | None, _setting("protect_ratio")]
MaxIncrease = Annotated[float, _setting("max_perplexity_increase")]
Keep = Annotated[float, _setting("keep")]
Scale = Annotated[float, _setting("scale")]
Control = Annotated[list[str] | None, _setting("controls", "--control")]
Resamples = Annotated[int, _setting("resamples")]
Capabilities = Annotated[list[str] | None, _setting("capabilities")]
CapabilityTasks = Annotated[str | None, _setting("capability_tasks")]
CapabilitiesLimit = Annotated[int | None, _setting("capabilities_limit")]
JudgeName = Annotated[str, _setting("judge")]
JudgeQuality = Annotated[str | None, _setting("judge_quality")]
TrustRemoteCode = Annotated[bool, _setting("trust_remote_code")]
Seed = Annotated[int, _setting("seed")]


@app.command()
def run(
    model: Model,
    output: Output = None,
    concept: Concept = None,
    protect: Protect = None,
    questions: Questions = None,
    data_dir: DataDir = None,
    prompt_column: PromptColumn = None,
    response_column: ResponseColumn = None,
    responses: Responses = default_of("responses"),
    own_judge: OwnJudge = None,
    examples: Examples = None,
    max_questions: MaxQuestions = None,
    template: Template = default_of("template"),
    template_option: TemplateOption = None,
    thinking: Thinking = default_of("thinking"),
    thinking_tokens: ThinkingTokens = None,
    date: TemplateDate = None,
    max_length: MaxLength = default_of("max_length"),
    skip_long: SkipLong = False,
    new_tokens: NewTokens = default_of("new_tokens"),
    dtype: Dtype = default_of("dtype"),
    target: Target = default_of("target"),
    selector: Selector = default_of("selector"),
    statistics: Statistics = None,
    granularity: Granularity = default_of("granularity"),
    memory_budget: MemoryBudget = None,
    device_map: DeviceMap = None,
    effort: EffortName = default_of("effort"),
    rule: Rule = default_of("rule"),
    ratio: Ratio = "auto",
    protect_ratio: ProtectRatio = None,
    layers: Layers = None,
    at_least: AtLeast = None,
    trials: Trials = None,
    survivors: Survivors = None,
    max_perplexity_increase: MaxIncrease = default_of("max_perplexity_increase"),
    keep: Keep = default_of("keep"),
    scale: Scale = default_of("scale"),
    control: Control = None,
    resamples: Resamples = default_of("resamples"),
    capabilities: Capabilities = None,
    capability_tasks: CapabilityTasks = None,
    capabilities_limit: CapabilitiesLimit = None,
    judge: JudgeName = default_of("judge"),
    judge_quality: JudgeQuality = None,
    trust_remote_code: TrustRemoteCode = False,
    seed: Seed = default_of("seed"),
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score, select, patch, evaluate and report, in one resumable folder."""
    settings = settings_of(locals())
    folder = output or Path("runs") / slug(model)
    with console_of(quiet) as console:
        from spin_llm.pipeline import run as run_all

        results = run_all(settings, folder, overwrite=overwrite, console=console)
    show_results(results, folder, as_json=as_json, quiet=quiet)


@app.command()
def sweep(
    model: Model,
    output: Output = None,
    concept: Concept = None,
    protect: Protect = None,
    questions: Questions = None,
    data_dir: DataDir = None,
    prompt_column: PromptColumn = None,
    response_column: ResponseColumn = None,
    examples: Examples = None,
    max_questions: MaxQuestions = None,
    template: Template = default_of("template"),
    template_option: TemplateOption = None,
    thinking: Thinking = default_of("thinking"),
    thinking_tokens: ThinkingTokens = None,
    date: TemplateDate = None,
    max_length: MaxLength = default_of("max_length"),
    skip_long: SkipLong = False,
    new_tokens: NewTokens = default_of("new_tokens"),
    dtype: Dtype = default_of("dtype"),
    target: Target = default_of("target"),
    selector: Selector = default_of("selector"),
    granularity: Granularity = default_of("granularity"),
    memory_budget: MemoryBudget = None,
    device_map: DeviceMap = None,
    effort: EffortName = default_of("effort"),
    rule: Rule = default_of("rule"),
    layers: Layers = None,
    at_least: AtLeast = None,
    trials: Trials = None,
    survivors: Survivors = None,
    max_perplexity_increase: MaxIncrease = default_of("max_perplexity_increase"),
    keep: Keep = default_of("keep"),
    judge: JudgeName = default_of("judge"),
    judge_quality: JudgeQuality = None,
    trust_remote_code: TrustRemoteCode = False,
    seed: Seed = default_of("seed"),
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score, then search the edit alone: many settings by a proxy, the best by their answers; `run` goes on from it."""
    settings = settings_of(locals())
    folder = output or Path("runs") / slug(model)
    with console_of(quiet) as console:
        from spin_llm.pipeline import sweep as search_edit

        found = search_edit(settings, folder, overwrite=overwrite, console=console)
    from spin_llm.report.sections.search import text_lines

    words = [] if quiet else text_lines(found)
    show(found, [*words, folder / "search.json", folder / "patch.safetensors"], as_json=as_json)


@app.command()
def score(
    model: Model,
    output: Output = None,
    concept: Concept = None,
    protect: Protect = None,
    data_dir: DataDir = None,
    prompt_column: PromptColumn = None,
    response_column: ResponseColumn = None,
    responses: Responses = default_of("responses"),
    own_judge: OwnJudge = None,
    examples: Examples = None,
    template: Template = default_of("template"),
    template_option: TemplateOption = None,
    thinking: Thinking = default_of("thinking"),
    thinking_tokens: ThinkingTokens = None,
    date: TemplateDate = None,
    max_length: MaxLength = default_of("max_length"),
    skip_long: SkipLong = False,
    dtype: Dtype = default_of("dtype"),
    target: Target = default_of("target"),
    selector: Selector = default_of("selector"),
    statistics: Statistics = None,
    granularity: Granularity = default_of("granularity"),
    memory_budget: MemoryBudget = None,
    device_map: DeviceMap = None,
    keep: Keep = default_of("keep"),
    trust_remote_code: TrustRemoteCode = False,
    seed: Seed = default_of("seed"),
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score the weights for each concept and protected set: data to scores/."""
    settings = settings_of(locals())
    folder = output or Path("runs") / slug(model)
    with console_of(quiet) as console:
        from spin_llm.pipeline import score as score_all

        files = score_all(settings, folder, overwrite=overwrite, console=console)
    if files:  # none on the further processes of a distributed job
        show({"scores": [str(path) for path in files]}, files, as_json=as_json)


@app.command()
def select(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder with scores/.")],
    ratio: Annotated[float, typer.Option(help="Fraction of each matrix in a top set.")],
    output: Annotated[Path | None, _output("The patch file (default: RUN/patch.safetensors).")] = None,
    rule: Rule = "coupled",
    protect_ratio: ProtectRatio = None,
    target: Target = default_of("target"),
    granularity: Annotated[str | None, _setting("granularity", show_default="the scores'")] = None,
    layers: Layers = None,
    at_least: AtLeast = None,
    scale: Scale = default_of("scale"),
    model: Annotated[
        str | None, typer.Option("--for", help="Make the patch for this model, fine-tuned from the scored one.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Choose weights from stored scores: scores/ to patch.safetensors, without running the model."""
    from spin_llm.pipeline import select_from_folder
    from spin_llm.results.recipe import Recipe

    path = output or folder / "patch.safetensors"
    span = parse_layers(layers) if layers else ()
    recipe = Recipe(
        "coupled" if rule == SEARCHED else rule,
        ratio,
        protect_ratio=protect_ratio,
        target=target,
        granularity=granularity or "",
        layers=(span[0], span[1]) if span else None,
        at_least=at_least,
        scale=scale,
    )
    with console_of(as_json) as console:
        patch = select_from_folder(folder, path, recipe, model=model, overwrite=overwrite, console=console)
    summary = {"patch": str(path), "weights": patch.weights, "matrices": len(patch.edits)}
    show(summary, [f"{patch.weights:,} weights in {len(patch.edits)} matrices", path], as_json=as_json)


NewFolder = Annotated[Path | None, _output("The folder to write; it has no default.")]
PatchFile = Annotated[Path, typer.Argument(metavar="PATCH", help="A patch.safetensors, or a run folder with one.")]


@app.command()
def apply(
    model: Model, patch: PatchFile, output: NewFolder = None, overwrite: Overwrite = False, as_json: Json = False
) -> None:
    """Write an edited copy of a checkpoint; only the touched bytes differ."""
    _rewrite("apply", model, patch, output, overwrite, as_json)


@app.command()
def revert(
    model: Model, patch: PatchFile, output: NewFolder = None, overwrite: Overwrite = False, as_json: Json = False
) -> None:
    """Write the base back from an edited checkpoint, byte for byte."""
    _rewrite("revert", model, patch, output, overwrite, as_json)


def _rewrite(verb: str, model: str, patch_file: Path, output: Path | None, overwrite: bool, as_json: bool) -> None:
    from spin_llm import patch as patches
    from spin_llm.models import Checkpoint
    from spin_llm.models.disk import resolve
    from spin_llm.models.disk.copying import model_files

    if output is None:
        raise SpinError(f"{verb} needs an output folder.", change="give -o FOLDER.")
    patch = patches.load_patch(patch_file)
    function = {"apply": patches.apply_checkpoint, "revert": patches.revert_checkpoint}[verb]
    with console_of(quiet=False) as console:
        checkpoint = Checkpoint(resolve(model, trust_remote_code=True, say=console.say))
        path = function(checkpoint, patch, output, overwrite=overwrite, say=console.say)
    left_out = model_files(checkpoint.folder).left_out
    lines = [f"{patch.weights:,} weights in {len(patch.edits)} tensors, read back as transformers loads them"]
    if left_out:
        lines += [f"left out, as no part of the model that is loaded: {', '.join(left_out)}"]
    about = {"model": str(path), "weights": patch.weights, **({"left_out": list(left_out)} if left_out else {})}
    show(about, [*lines, path], as_json=as_json)


@app.command()
def verify(model: Model, patch: PatchFile, as_json: Json = False) -> None:
    """Say whether a checkpoint is the patch's base, or the edited model; exit code 2 when it is another model."""
    from spin_llm.models import Checkpoint
    from spin_llm.models.disk import resolve
    from spin_llm.patch.checkpoint import patch_state
    from spin_llm.patch.file import load_patch

    state = patch_state(Checkpoint(resolve(model)), load_patch(patch))
    show({"state": state}, [state], as_json=as_json)


@app.command("eval")
def eval_(
    model: Model,
    baseline: Annotated[str | None, typer.Option(help="The model to compare with; both may be MODEL@URL.")] = None,
    patch: Annotated[Path | None, typer.Option(help="Compare MODEL with MODEL plus this patch.")] = None,
    output: Annotated[Path | None, _output("The run folder (default: runs/MODEL-eval).")] = None,
    protect: Protect = None,
    questions: Questions = None,
    data_dir: DataDir = None,
    prompt_column: PromptColumn = None,
    response_column: ResponseColumn = None,
    examples: Examples = None,
    max_questions: MaxQuestions = None,
    template: Template = default_of("template"),
    template_option: TemplateOption = None,
    thinking: Thinking = default_of("thinking"),
    thinking_tokens: ThinkingTokens = None,
    date: TemplateDate = None,
    max_length: MaxLength = default_of("max_length"),
    skip_long: SkipLong = False,
    new_tokens: NewTokens = default_of("new_tokens"),
    dtype: Dtype = default_of("dtype"),
    capabilities: Capabilities = None,
    capability_tasks: CapabilityTasks = None,
    capabilities_limit: CapabilitiesLimit = None,
    judge: JudgeName = default_of("judge"),
    judge_quality: JudgeQuality = None,
    trust_remote_code: TrustRemoteCode = False,
    seed: Seed = default_of("seed"),
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare any two models, or a model with and without a patch: answers, verdicts, results.json."""
    settings = settings_of(locals())
    folder = output or Path("runs") / f"{slug(model)}-eval"
    with console_of(quiet) as console:
        from spin_llm.pipeline import evaluate_models

        results = evaluate_models(
            settings, folder, baseline=baseline, patch_file=patch, overwrite=overwrite, console=console
        )
    show_results(results, folder, as_json=as_json, quiet=quiet)


def _baseline(name: str) -> Any:
    return typer.Option(f"--{name.replace('_', '-')}", help=helps(baselines.BaselineSettings)[name])


@app.command()
def baseline(
    method: Annotated[str, typer.Argument(help=", ".join(baselines.METHODS))],
    model: Model,
    output: Annotated[Path | None, _output("The folder to write (default: runs/MODEL-METHOD).")] = None,
    data: Annotated[list[str] | None, _baseline("data")] = None,
    mix: Annotated[list[str] | None, _baseline("mix")] = None,
    data_dir: Annotated[str | None, _baseline("data_dir")] = None,
    prompt_column: PromptColumn = None,
    response_column: ResponseColumn = None,
    responses: Annotated[str, _baseline("responses")] = baselines.BaselineSettings.responses,
    examples: Annotated[int | None, _baseline("examples")] = None,
    template: Template = baselines.BaselineSettings.template,
    template_option: TemplateOption = None,
    date: TemplateDate = None,
    max_length: MaxLength = baselines.BaselineSettings.max_length,
    dtype: Annotated[str, _baseline("dtype")] = baselines.BaselineSettings.dtype,
    epochs: Annotated[int, _baseline("epochs")] = baselines.BaselineSettings.epochs,
    learning_rate: Annotated[float | None, _baseline("learning_rate")] = None,
    batch_size: Annotated[int, _baseline("batch_size")] = baselines.BaselineSettings.batch_size,
    batch_tokens: Annotated[int, _baseline("batch_tokens")] = baselines.BaselineSettings.batch_tokens,
    warmup: Annotated[float, _baseline("warmup")] = baselines.BaselineSettings.warmup,
    weight_decay: Annotated[float, _baseline("weight_decay")] = baselines.BaselineSettings.weight_decay,
    rank: Annotated[int | None, _baseline("rank")] = None,
    alpha: Annotated[float | None, _baseline("alpha")] = None,
    dropout: Annotated[float | None, _baseline("dropout")] = None,
    target: Annotated[str | None, _baseline("target")] = None,
    positions: Annotated[str | None, _baseline("positions")] = None,
    layers: Annotated[str | None, _baseline("layers")] = None,
    merge: Annotated[bool, typer.Option(help=helps(baselines.BaselineSettings)["merge"])] = True,
    checkpoint_steps: Annotated[int, _baseline("checkpoint_steps")] = baselines.BaselineSettings.checkpoint_steps,
    trust_remote_code: TrustRemoteCode = False,
    seed: Annotated[int, _baseline("seed")] = baselines.BaselineSettings.seed,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a model, to compare an edit with: a checkpoint or adapter that `eval` takes."""
    options = {
        name: value for name, value in locals().items() if name in baselines.BaselineSettings.__dataclass_fields__
    }
    options |= {"data": data, "mix": mix}
    options["template_options"] = parse_options(template_option)
    settings = baselines.make(**options)
    folder = output or Path("runs") / f"{slug(model)}-{method}"
    with console_of(quiet) as console:
        from spin_llm.baselines.train import train_baseline

        record = train_baseline(settings, folder, overwrite=overwrite, console=console)
    show(record, [folder / record["result"]], as_json=as_json)


@app.command()
def stability(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder with scores/ and a patch.")],
    resamples: Annotated[int, typer.Option(min=2, help="How many bootstrap resamples of the scored examples.")] = 100,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the resamples (default: the run's).")] = None,
    model: Annotated[
        str | None, typer.Option("--for", help="Where the run's model is now (default: where run.json says).")
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


@app.command()
def paper(
    context: typer.Context,
    experiment: Annotated[
        str, typer.Argument(help="table1, table2, malicious, few-shot, mixing, ratio, modules, ...; all.")
    ],
    model: Model,
    output: Annotated[Path | None, _output("The folder of all experiments (default: runs/MODEL-paper).")] = None,
    limit: Annotated[
        int | None, typer.Option(min=4, help="A small version: at most so many questions, examples and training pairs.")
    ] = None,
    also: Annotated[list[str] | None, typer.Option("--also", help="For sizes: a further model; repeat it.")] = None,
    preset: Annotated[
        bool,
        typer.Option(
            "--preset",
            help="The paper's settings: ratio 5e-7, the released template, 128 examples, MLP matrices. "
            "Another --ratio, --template or --examples beside it is an error; --limit makes a small version of it.",
        ),
    ] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of the fine-tuning baselines.")] = None,
    concept: Concept = None,
    protect: Protect = None,
    questions: Questions = None,
    data_dir: DataDir = None,
    examples: Examples = None,
    max_questions: MaxQuestions = None,
    template: Template = default_of("template"),
    template_option: TemplateOption = None,
    thinking: Thinking = default_of("thinking"),
    thinking_tokens: ThinkingTokens = None,
    date: TemplateDate = None,
    max_length: MaxLength = default_of("max_length"),
    skip_long: SkipLong = False,
    new_tokens: NewTokens = default_of("new_tokens"),
    dtype: Dtype = default_of("dtype"),
    ratio: Ratio = "auto",
    max_perplexity_increase: MaxIncrease = default_of("max_perplexity_increase"),
    keep: Keep = default_of("keep"),
    effort: EffortName = default_of("effort"),
    capability_tasks: CapabilityTasks = None,
    capabilities: Capabilities = None,
    capabilities_limit: CapabilitiesLimit = None,
    judge: JudgeName = default_of("judge"),
    judge_quality: JudgeQuality = None,
    trust_remote_code: TrustRemoteCode = False,
    seed: Seed = default_of("seed"),
    quiet: Quiet = False,
) -> None:
    """Run an experiment of the paper: its table or figure, beside the printed numbers; what is done is kept."""
    options = locals()
    if preset:
        options |= preset_options(options)
    settings = settings_of(options)
    folder = output or Path("runs") / f"{slug(model)}-paper"
    with console_of(quiet) as console:
        from spin_llm.paper.conduct import run_paper

        training = {"epochs": epochs} if epochs else {}
        options = {"limit": limit, "models": also or [], "training": training, "ratio": settings.ratio}
        for path in run_paper(experiment, settings, folder, **options, console=console):
            print(path)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders with results.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Of several runs: the page (default: compare.html).")
    ] = None,
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


@app.command()
def doctor(
    model: Model,
    concept: Concept = None,
    protect: Protect = None,
    data_dir: DataDir = None,
    examples: Examples = None,
    template: Template = default_of("template"),
    template_option: TemplateOption = None,
    thinking: Thinking = default_of("thinking"),
    thinking_tokens: ThinkingTokens = None,
    date: TemplateDate = None,
    max_length: MaxLength = default_of("max_length"),
    skip_long: SkipLong = False,
    dtype: Dtype = default_of("dtype"),
    target: Target = default_of("target"),
    selector: Selector = default_of("selector"),
    memory_budget: MemoryBudget = None,
    device_map: DeviceMap = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Look at a model before a run: what can be edited, templates, dtype, batching, memory and disk."""
    settings = settings_of(locals())
    with console_of(quiet) as console:
        from spin_llm.pipeline.doctor import examine, lines

        found = examine(settings, console=console)
    show(found, lines(found), as_json=as_json)


@judge_app.command("fit")
def judge_fit(
    data: Annotated[
        Path, typer.Argument(help="Labelled answers: csv or jsonl with concept, prompt, answer, label(s).")
    ],
    output: Annotated[Path | None, _output("The judge file to write, FILE.safetensors; it has no default.")] = None,
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


@judge_app.command("check")
def judge_check(
    data: Annotated[
        list[str],
        typer.Argument(
            help="Labelled answers (csv, jsonl, parquet with concept, prompt, answer, label or labels), starter, "
            "starter:CONCEPT,CONCEPT, beavertails, or probes (odd answers)."
        ),
    ],
    judge: Annotated[list[str] | None, _setting("judge")] = None,
    data_dir: DataDir = None,
    max_rows: Annotated[
        int | None, typer.Option("--max-rows", min=1, help="At most so many rows per concept (of pairs: per kind).")
    ] = None,
    output: Annotated[Path | None, _output("A JSON file for the measured quality (default: none is written).")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure judges on labelled answers: AUC, accuracy, calibration, confusion, agreement; give --judge repeatedly."""
    if output:
        check_output(output, file=True)
    with console_of(quiet) as console:
        from spin_llm.judges.named import load_judge
        from spin_llm.judges.quality.tables import check

        judges = {name: load_judge(name) for name in judge or [default_of("judge")]}
        found, tables, remarks = check(data, judges, data_dir=data_dir, most=max_rows, console=console)
    if output:
        from spin_llm.files import write_json

        write_json(output, found)
    if as_json:
        show(found, [], as_json=True)
    elif not quiet or not output:  # without a file the table is all there is
        draw(tables, remarks)
    if output and not as_json:
        print(output)


@judge_app.command("score")
def judge_score(
    generations: Annotated[Path, typer.Argument(help="A generations.jsonl.")],
    output: Annotated[Path | None, _output("The verdicts (default: verdicts.jsonl beside the answers).")] = None,
    judge: JudgeName = default_of("judge"),
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
) -> None:
    """Judge stored answers again, without generating: generations.jsonl to verdict rows. Goes on where it stopped."""
    path = output or generations.with_name("verdicts.jsonl")
    if path.exists() and output is None:
        raise SpinError(f"{path} exists.", change="give -o FILE.")
    check_output(path, file=True)
    with console_of(quiet) as console:
        from spin_llm.evaluate.verdicts import judge_again

        print(judge_again(generations, judge, path, trust_remote_code=trust_remote_code, console=console))


@judge_app.command("sheet")
def judge_sheet(
    generations: Annotated[Path, typer.Argument(help="A generations.jsonl, or a run's own/answers.jsonl.")],
    output: Annotated[Path | None, _output("The sheet (default: sheet.csv beside the answers).")] = None,
    label: Annotated[str, typer.Option(help="What to ask about the concepts: aware, safe or coherent.")] = "aware",
    seed: Seed = default_of("seed"),
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


def settings_of(options: dict[str, Any]) -> RunSettings:
    """RunSettings from a subcommand's options."""
    chosen = {name: options[name] for name in RunSettings.__dataclass_fields__ if options.get(name) is not None}
    if "ratio" in options:
        chosen["ratio"] = parse_ratio(options["ratio"])
    given = {"concepts": options.get("concept") or None, "controls": options.get("control") or ()}
    given["template_options"] = options.get("template_option") or ()
    return RunSettings(**{**chosen, **given})


def flag_and(name: str, value: object) -> str:
    return f"{flag_of(name)} {value:g}" if isinstance(value, float) else f"{flag_of(name)} {value}"


def preset_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """What the paper fixes, as options; SpinError where the command line says another value of one."""
    from spin_llm.paper.experiments import PRESET

    for name, value in PRESET.items():
        source = options["context"].get_parameter_source(name)
        own = parse_ratio(options[name]) if name == "ratio" else options.get(name)
        if source is not None and source.name != "DEFAULT" and own != value:
            raise SpinError(
                f"--preset fixes {flag_and(name, value)}, and {flag_and(name, options[name])} was given.",
                change="leave out one of the two.",
            )
    return {name: f"{value:g}" if name == "ratio" else value for name, value in PRESET.items()}


def slug(model: str) -> str:
    """A folder name for a model."""
    name = Path(model.partition("@http")[0]).name.removesuffix(".gguf") or "model"
    return "".join(character if character.isalnum() or character in "-_." else "-" for character in name)


BROKEN_PIPE = 141  # as a shell names the end by that signal


class Interrupted(BaseException):
    """Ctrl+C, or a polite request to end (the signal TERM).

    Not a KeyboardInterrupt, which the option parser would turn into exit code 1 without a word on how to continue.
    """


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted(number)


def _not_lost(lost: sys.UnraisableHookArgs) -> None:
    """For exceptions that Python cannot raise where they occur, in a `__del__` or a callback: a signal comes again."""
    if isinstance(lost.exc_value, Interrupted):
        threading.Timer(0.01, signal.raise_signal, lost.exc_value.args).start()
    else:
        sys.__unraisablehook__(lost)


PLAIN = {"\u2013": "-", "\u2014": "-", "\u2212": "-", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2026": "..."}


def spelt(error: UnicodeError) -> tuple[str | bytes, int]:
    """For a console that cannot print a character: a plain one like it, or its number as Python writes it. Bytes of a
    path that are no text in this locale go out as they came in."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    if all("\udc80" <= character <= "\udcff" for character in found):
        return bytes(ord(character) - 0xDC00 for character in found), error.end
    escaped = (PLAIN.get(character, character.encode("ascii", "backslashreplace").decode()) for character in found)
    return "".join(escaped), error.end


def main() -> None:
    """Entry point: users' mistakes become one message and exit code 2; a reader that left (`| head`) is no mistake."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    codecs.register_error("spelt", spelt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="spelt")
    try:
        sys.unraisablehook = _not_lost
        _on_signals(_interrupt)
        code = _exit_code()
        _on_signals(signal.SIG_IGN)  # all is done and said
    except Interrupted as signalled:
        _on_signals(signal.SIG_IGN)
        end_all()
        print("spin-llm: interrupted; the same command continues where it stopped.", file=sys.stderr)
        code = 128 + int(signalled.args[0])
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:  # else Python would say so on leaving, with another exit code
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or (BROKEN_PIPE if isinstance(error, BrokenPipeError) else 2)
    sys.exit(code)


def _exit_code() -> int | str | None:
    """Run the command; what it ends with."""
    try:
        app()
    except SystemExit as leaving:  # rich and typer end with 1 when the reader of their output left, and never otherwise
        return BROKEN_PIPE if leaving.code == 1 else leaving.code
    except SpinError as error:
        print(f"spin-llm: {visible(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return BROKEN_PIPE
    return 0


def _on_signals(action: Any) -> None:
    """What Ctrl+C and TERM do from now on."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, action)
