"""The whole job in one resumable folder: score, select, patch, evaluate, report.

In: `RunSettings` and a folder. Out: the run folder (run.json, scores/, patch.safetensors,
generations.jsonl, verdicts.jsonl, results.json, report.html, report.md, figures/). Each stage writes a file when it is
complete and is skipped when that file is there, so a killed run continues and ends with the same patch and results.
Left out: parsing options and printing (cli.py).
"""

from __future__ import annotations

import math
import platform
import shlex
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from spin_llm.data import (
    Example,
    Pair,
    Question,
    encode_all,
    load_pairs,
    load_prompts,
    load_questions,
    resolve_template,
    rows_sha256,
    sample,
    split_sample,
)
from spin_llm.errors import SpinError
from spin_llm.evaluate import BASE, EDITED, Evaluation, Judge, choose_ratio, evaluate, load_judge
from spin_llm.evaluate.capabilities import check_tasks, measure_capabilities, named_tasks
from spin_llm.evaluate.coherence import load_coherence_judge
from spin_llm.evaluate.evaluation import Served
from spin_llm.evaluate.judging import refuse_fingerprint, refuse_model_under_edit
from spin_llm.evaluate.likelihood import View
from spin_llm.evaluate.own import PROMPTS_PER_EXAMPLE, own_pairs
from spin_llm.evaluate.pick import find_edit
from spin_llm.evaluate.proxy import KL_PAIRS, Contrast
from spin_llm.evaluate.search import Bench
from spin_llm.evaluate.server import ServerCompleter, served, server_completer
from spin_llm.evaluate.stability import ScoredExamples, measure_stability, stability_summary
from spin_llm.files import read_json, sha256_file, write_json
from spin_llm.models import Checkpoint, LoadedModel, editable_matrices, load, mlp_coverage, resolve
from spin_llm.models.adapters import adapter_base
from spin_llm.patch import Patch, load_patch, make_patch, save_patch
from spin_llm.progress import SILENT, Console
from spin_llm.report import write_report
from spin_llm.scores import (
    STATISTICS,
    Ranks,
    Scores,
    accumulators,
    load_scores,
    make_batches,
    make_plan,
    parse_bytes,
    save_scores,
    score_concept,
)
from spin_llm.scores import ranks as joined_ranks
from spin_llm.selection import (
    Job,
    Recipe,
    Selection,
    candidate_entries,
    control_selection,
    overlap,
    recipe_of,
)
from spin_llm.settings import BY_MARGIN, OWN, SEARCHED, SIGNED, RunSettings, flag_of, scope_of

ALONE = Ranks()
ScoresByRole = Mapping[str, Mapping[str, Scores]]  # `concepts` and `protect`, then by name
LEAST_CONTRAST = 8
GENERAL_PAIRS = 64  # at most, for choosing the ratio, and as many others for the final perplexity
NO_STABILITY = "the rule 'signed' has no top sets to select again from resampled examples"
PACKAGES = ("spin-llm", "torch", "transformers", "safetensors", "numpy", "scipy", "scikit-learn", "optuna")
ARTEFACTS = (
    *("own", "scores", "patch.safetensors", "search.json", "search", "progress", "generations.jsonl", "verdicts.jsonl"),
    *("capabilities.jsonl", "stability.json", "results.json", "report.html", "report.md", "figures", "run.json"),
)


@dataclass(frozen=True)
class RunData:
    """What a run reads, sampled: pairs by concept and by protected set, general pairs to choose and to report on,
    questions by axis; and for a search (aware, unaware) pairs by concept that nothing is scored on, and questions to
    search with, none of which is among the others; and the prompts that the model answers itself, to be scored on."""

    concepts: Mapping[str, Sequence[Pair]]
    protect: Mapping[str, Sequence[Pair]]
    choose: Sequence[Pair]
    final: Sequence[Pair]
    questions: Mapping[str, Sequence[Question]]
    unaware: Mapping[str, Sequence[Pair]]
    contrasts: Mapping[str, tuple[Sequence[Pair], Sequence[Pair]]]
    search: Mapping[str, Sequence[Question]]
    own: Mapping[str, Sequence[Question]]

    def record(self, settings: RunSettings) -> list[dict[str, Any]]:
        """Role, name, source, size and SHA-256 of everything used, for run.json."""
        named = {"concept": settings.concepts, "protect": settings.protect, "questions": settings.questions}
        groups: dict[str, Mapping[str, Any]] = {
            "concept": self.concepts,
            "protect": self.protect,
            "questions": self.questions,
        }
        rows = [
            {"role": role, "name": name, "source": source, "examples": len(groups[role][name])}
            | {"sha256": rows_sha256(groups[role][name])}
            for role, pairs in named.items()
            for name, source in pairs
        ]
        more: list[tuple[str, str, str, Any]] = [
            ("choose the ratio", "general", "held-back rows of the protected sets", self.choose),
            ("perplexity", "general", "held-back rows of the protected sets", self.final),
        ]
        for name, pairs in self.contrasts.items():
            more.append(("search by margins", name, "rows that nothing is scored on", (*pairs[0], *pairs[1])))
        for axis, asked in self.search.items():
            more.append(("search questions", axis, "rows that nothing is reported on", asked))
        for name, asked in self.own.items():
            more.append(("own answers", name, "prompts that the model answers to be scored on", asked))
        return rows + [
            {"role": role, "name": name, "source": source, "examples": len(items), "sha256": rows_sha256(items)}
            for role, name, source, items in more
        ]


def run(settings: RunSettings, folder: Path, *, overwrite: bool = False, console: Console = SILENT) -> dict[str, Any]:
    """Do everything; returns what results.json holds.

    Raises SpinError on bad input, before anything of the user's is touched.
    """
    refuse_model_under_edit(settings.judge, [settings.model])
    settings = with_rule(settings, console)
    data = read_data(settings, console)
    check_folder(settings, folder, overwrite=overwrite)
    if not overwrite and (folder / "results.json").is_file() and (folder / "patch.safetensors").is_file():
        console.say(f"{folder} is complete; writing its report again")
        write_report(folder)
        return dict(read_json(folder / "results.json"))
    check_capabilities(settings)
    loaded, data, scores, patch = edit_stages(settings, folder, data, console, overwrite=overwrite)
    if settings.resamples and patch.metadata["rule"] == BY_MARGIN:
        console.say(f"stability is left out: {NO_STABILITY}")
    elif settings.resamples:
        options: dict[str, Any] = {"resamples": settings.resamples, "seed": settings.seed}
        stability_stage(settings, folder, loaded, data, scores, patch, console, **options)
    results = evaluate_stage(settings, folder, loaded, data, scores, patch, console)
    report = write_report(folder)
    console.say(f"report {report}")
    return results


def sweep(settings: RunSettings, folder: Path, *, overwrite: bool = False, console: Console = SILENT) -> dict[str, Any]:
    """Score and search alone: what search.json holds. `run` with the same settings goes on from there."""
    refuse_model_under_edit(settings.judge, [settings.model])
    settings = with_rule(settings, console)
    if not settings.searches:
        raise SpinError(
            f"With the rule {settings.rule} there is nothing to search.",
            cause="--rule or --ratio was given; or the data have no aware and unaware responses.",
            change="leave out --rule and --ratio, or use `spin-llm run`.",
        )
    data = read_data(settings, console)
    check_folder(settings, folder, overwrite=overwrite)
    edit_stages(settings, folder, data, console, overwrite=overwrite)
    return dict(read_json(folder / "search.json"))


def edit_stages(
    settings: RunSettings, folder: Path, data: RunData, console: Console, *, overwrite: bool
) -> tuple[LoadedModel, RunData, dict[str, dict[str, Scores]], Patch]:
    """From the model to its patch: (model, the data that were scored, scores, patch)."""
    loaded = load_model(settings, console)
    template = resolve_template(loaded.tokenizer, settings.template)
    console.say(
        f"{settings.model}: {sum(p.numel() for p in loaded.model.parameters()) / 1e6:,.0f}M parameters, "
        f"{str(loaded.dtype).removeprefix('torch.')} on {loaded.device}, template {template}; "
        f"{mlp_coverage(loaded.model):.0%} of the MLP weights can be edited"
    )
    write_record(settings, folder, model_record(settings, loaded), data, overwrite=overwrite)
    data = with_own_answers(settings, folder, loaded, data, console)
    scores = score_stage(settings, folder, loaded, data, console)
    return loaded, data, scores, select_stage(settings, folder, loaded, data, scores, console)


def with_rule(settings: RunSettings, console: Console = SILENT) -> RunSettings:
    """The settings with the paper's rule in the place of `auto` where nothing can be searched: without unaware
    responses beside the aware ones there is no margin."""
    if settings.rule != SEARCHED:
        return settings
    columns = {"prompt_column": settings.prompt_column, "response_column": settings.response_column}
    options: dict[str, Any] = {"data_dir": settings.data_dir, **columns}
    why = "the data are unaware responses alone" if settings.responses == "unaware" else ""
    for name, source in settings.concepts if not why and settings.responses != OWN else ():
        aware, unaware = (load_pairs(source, concept=name, responses=r, **options) for r in ("aware", "unaware"))
        if aware.pairs == unaware.pairs:
            why = f"{source} has one kind of response for {name}"
            break
    if why:
        console.say(f"the rule is coupled, the paper's: {why}, so there is no margin to search by")
        return replace(settings, rule="coupled")
    return settings


def load_model(settings: RunSettings, console: Console = SILENT) -> LoadedModel:
    """The model of these settings, to score and edit: a checkpoint, not an adapter."""
    if adapter_base(resolve(settings.model, say=console.say)):
        raise SpinError(
            f"{settings.model} is an adapter: it has no weights of its own to score and edit.",
            change="give a merged checkpoint (`spin-llm baseline` writes one for lora and dora).",
        )
    return load(
        settings.model,
        dtype=settings.dtype,
        device_map=settings.device_map,
        trust_remote_code=settings.trust_remote_code,
        say=console.say,
    )


def read_data(settings: RunSettings, console: Console = SILENT, *, search: bool = True) -> RunData:
    """Load and sample every source; without `search` not what a search needs beside the scores.

    General pairs that nothing is scored on are halved: one half chooses the ratio, one reports.
    """
    columns = {"prompt_column": settings.prompt_column, "response_column": settings.response_column}
    options: dict[str, Any] = {"data_dir": settings.data_dir, **columns}
    concepts: dict[str, Sequence[Pair]] = {}
    unaware: dict[str, Sequence[Pair]] = {}
    contrasts = {}
    for name, source in settings.concepts:
        if settings.responses == OWN:  # the data's own responses are not looked at: there need not be any
            concepts[name] = unaware[name] = ()
            continue
        pairs = load_pairs(source, concept=name, responses=settings.given_responses, **options).pairs
        concepts[name] = sample(pairs, settings.examples, settings.seed, f"the concept {name}")
        if "margin" in settings.wanted_statistics:
            others = load_pairs(source, concept=name, responses="unaware", **options).pairs
            if others == pairs:
                raise SpinError(
                    f"The margin needs aware and unaware responses, and {source} has one kind for {name}.",
                    change="give data with the columns prompt, aware and unaware, or --rule coupled.",
                )
            unaware[name] = sample(others, settings.examples, settings.seed, f"the concept {name}, unaware")
        if search and settings.searches:
            contrasts[name] = held_back(name, concepts[name], unaware[name], pairs, others, settings)
    protect, rest = {}, []
    for name, source in settings.protect:
        pairs = load_pairs(source, concept=name, **options).pairs
        protect[name], left = split_sample(pairs, settings.examples, settings.seed, f"the protected set {name}")
        rest += list(left)
    if len(rest) < 16:
        console.say("too few general pairs are left beside the scored ones: perplexity is taken on the starter set's")
        rest = list(load_pairs("starter", concept="general").pairs)
        used = {pair.prompt for pairs in protect.values() for pair in pairs}
        rest = [pair for pair in rest if pair.prompt not in used]
    kept = sample(rest, min(len(rest), 2 * GENERAL_PAIRS), settings.seed)
    questions, searched = {}, {}
    for axis, source in settings.questions:
        asked = load_questions(
            source, concept=axis, data_dir=settings.data_dir, prompt_column=settings.prompt_column
        ).questions
        if settings.searches_answers:
            searched[axis], asked = split_questions(asked, settings.budget.search_questions, settings.seed)
        most = settings.max_questions or (settings.budget.final_questions if settings.searches else None)
        questions[axis] = sample(asked, min(len(asked), most or len(asked)), settings.seed)
    own = own_prompts(settings, {q.prompt for asked in (questions, searched) for part in asked.values() for q in part})
    return RunData(concepts, protect, kept[::2], kept[1::2], questions, unaware, contrasts, searched, own)


def own_prompts(settings: RunSettings, others: Collection[str]) -> dict[str, Sequence[Question]]:
    """Prompts by concept that the model answers itself to be scored on; none of them is in `others`, what is searched
    and reported on."""
    found: dict[str, Sequence[Question]] = {}
    columns: dict[str, Any] = {"data_dir": settings.data_dir, "prompt_column": settings.prompt_column}
    for name, source in settings.concepts if settings.asks_own else ():
        asked = [q for q in load_prompts(source, concept=name, **columns) if q.prompt not in others]
        found[name] = sample(asked, min(len(asked), PROMPTS_PER_EXAMPLE * settings.examples), settings.seed)
    return found


def with_own_answers(
    settings: RunSettings, folder: Path, loaded: LoadedModel, data: RunData, console: Console
) -> RunData:
    """The data with the model's own answers in the place of the responses that were read, where these settings ask for
    them and there are enough of both kinds. They are kept in `folder`/own."""
    if not data.own:
        return data
    judge, coherence = judge_of(settings, loaded), load_coherence_judge()
    patient, axes = settings.responses == OWN, getattr(judge, "axes", tuple(data.own))
    pairs: Any = f"the judge {judge.name} does not judge " + ", ".join(name for name in data.own if name not in axes)
    if set(data.own) <= set(axes):
        pairs = own_pairs(
            loaded,
            data.own,
            (judge, coherence),
            folder / OWN,
            asked=Evaluation({}, (), settings.template, settings.new_tokens, settings.seed),
            told={"judge": settings.judge, "tokens": settings.new_tokens}
            | {name: rows_sha256(asked) for name, asked in data.own.items()},
            patient=patient,
            console=console,
        )
    if isinstance(pairs, str):
        if patient:
            raise SpinError(f"The model's own answers cannot be scored: {pairs}.", change="give --responses aware.")
        console.say(f"scored on the responses of the data, not on the model's own answers: {pairs}")
        return data
    parts = {name: part.divided(settings.examples, settings.budget.pairs) for name, part in pairs.items()}
    return replace(
        data,
        concepts={name: part[0] for name, part in parts.items()},
        unaware={name: part[1] for name, part in parts.items() if "margin" in settings.wanted_statistics},
        contrasts={name: (part[2], part[3]) for name, part in parts.items()} if settings.searches else {},
    )


def held_back(
    name: str,
    scored: Sequence[Pair],
    scored_unaware: Sequence[Pair],
    aware: Sequence[Pair],
    unaware: Sequence[Pair],
    settings: RunSettings,
) -> tuple[Sequence[Pair], Sequence[Pair]]:
    """(aware, unaware) pairs to search with, as many as the effort has at most: none has a prompt that was scored.

    Raises SpinError when fewer than 8 of a kind are left.
    """
    used = {pair.prompt for pair in (*scored, *scored_unaware)}
    kinds = [[pair for pair in pairs if pair.prompt not in used] for pairs in (aware, unaware)]
    if min(map(len, kinds)) < LEAST_CONTRAST:
        raise SpinError(
            f"Too few pairs of {name} are left to search with: {len(kinds[0])} aware and {len(kinds[1])} unaware ones "
            f"have prompts that nothing was scored on, and {LEAST_CONTRAST} of each are needed.",
            change="give fewer --examples, or more data; or --rule coupled, which needs none.",
        )
    first, second = (sample(kind, min(len(kind), settings.budget.pairs), settings.seed) for kind in kinds)
    return first, second


def split_questions(
    asked: Sequence[Question], most: int, seed: int
) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """(questions to search with, questions to report on): half of the distinct prompts each, and at most `most` of the
    first; a prompt that comes twice is on one side."""
    prompts = list(dict.fromkeys(question.prompt for question in asked))
    chosen = set(sample(prompts, min(most, len(prompts) // 2), seed)) if len(prompts) > 1 else set()
    search = tuple(question for question in asked if question.prompt in chosen)
    final = tuple(question for question in asked if question.prompt not in chosen)
    if {q.prompt for q in search} & {q.prompt for q in final}:
        raise AssertionError("a search question is among those that are reported on")
    return search, final


def check_folder(
    settings: RunSettings, folder: Path, *, overwrite: bool = False, compared: Mapping[str, Any] | None = None
) -> None:
    """Make sure that `folder` is new, empty, or a run with the same settings (which is then resumed).

    A folder that holds scores alone may be taken up with other settings of what comes after them. With `overwrite` any
    run may be there. SpinError otherwise; nothing is written.
    """
    if not is_run(folder):
        if folder.is_file() or (folder.is_dir() and any(path.suffix != ".part" for path in folder.iterdir())):
            raise SpinError(
                f"The output {folder} exists and is not a run.", change="choose another folder with --output."
            )
        return
    if overwrite:
        return
    record = read_json(folder / "run.json")
    before = {**_listed(RunSettings("").as_json()), **record["settings"], **record.get("compared", {})}
    now = {**_listed(settings.as_json()), **(compared or {})}
    changed = [
        f"{key}: {before.get(key)!r} there, {now.get(key)!r} now"
        for key in {**now, **before}
        if before.get(key) != now.get(key) and scope_of(key) in compared_scopes(folder)
    ]
    if changed:
        raise SpinError(
            f"{folder} holds a run with other settings ({'; '.join(changed[:4])}).",
            change="choose another folder with --output, or --overwrite to start that one anew.",
        )


def compared_scopes(folder: Path) -> tuple[str, ...]:
    """Which settings a resumed run must share with what is in the folder."""
    return ("all", "after scores") if (folder / "patch.safetensors").exists() else ("all",)


def delete_artefacts(folder: Path) -> None:
    """Delete what a run wrote, and nothing else; its record goes last, so that the folder stays a run until then."""
    for name in ARTEFACTS:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def is_run(folder: Path) -> bool:
    return (folder / "run.json").is_file()


def _listed(value: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back: tuples are lists."""

    def lists(item: Any) -> Any:
        return [lists(part) for part in item] if isinstance(item, list | tuple) else item

    return {key: lists(item) for key, item in value.items()}


def write_record(
    settings: RunSettings,
    folder: Path,
    model: Mapping[str, Any],
    data: RunData,
    *,
    overwrite: bool = False,
    compared: Mapping[str, Any] | None = None,
) -> None:
    """run.json: enough to replay the run.

    It is the first file of a run, written when model and data are known to be good. A resumed run must read the same
    data and model, and keeps its record; `overwrite` deletes the artefacts of an earlier run.
    """
    used = data.record(settings)
    if is_run(folder) and not overwrite:
        before = read_json(folder / "run.json")
        scores_alone = "after scores" not in compared_scopes(folder)
        roles = ("concept", "protect") if scores_alone else tuple(row["role"] for row in used)
        check_same_inputs(folder, before, model, used, roles)
        if not scores_alone or (before["settings"] == _listed(settings.as_json()) and before["data"] == used):
            return
    else:
        delete_artefacts(folder)
    record = {
        "command": replay_command(settings, compared or {}),
        "settings": settings.as_json(),
        **({"compared": dict(compared)} if compared else {}),
        "versions": {"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}},
        "machine": {"platform": platform.platform(), "processor": platform.machine()},
        "model": dict(model),
        "data": used,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    write_json(folder / "run.json", record)


def model_record(settings: RunSettings, loaded: LoadedModel) -> dict[str, Any]:
    """What run.json says of a model in this process."""
    return {
        "name": settings.model,
        "path": str(loaded.checkpoint.folder),
        "fingerprint": loaded.checkpoint.fingerprint,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": str(loaded.device),
        "template": resolve_template(loaded.tokenizer, settings.template),
    }


def check_same_inputs(
    folder: Path,
    record: Mapping[str, Any],
    model: Mapping[str, Any],
    used: Sequence[Mapping[str, Any]],
    roles: Sequence[str],
) -> None:
    """SpinError when the model, or the data used in these roles, are not those that the run's record names."""
    same_data = [row for row in record["data"] if row["role"] in roles] == [row for row in used if row["role"] in roles]
    same_model = all(record["model"].get(key) == model.get(key) for key in ("fingerprint", "url", "served"))
    if not same_model or not same_data:
        raise SpinError(
            f"The model or the data changed since the run in {folder} began.",
            change="restore them, or start anew with --overwrite.",
        )


def version_of(package: str) -> str:
    """The installed version; a source tree on the path has none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def replay_command(settings: RunSettings, compared: Mapping[str, Any] | None = None) -> str:
    """The command line that does this run, or this comparison, again."""
    words = ["spin-llm", "eval" if compared else "run", settings.model]
    words += [
        word
        for name, value in (compared or {}).items()
        if name in ("baseline", "patch")
        for word in (f"--{name}", value)
    ]
    defaults = RunSettings("")
    for name, value in settings.as_json().items():
        if name == "model" or value == getattr(defaults, name):
            continue
        if value is True:
            words.append(flag_of(name))
        elif name == "layers":
            words += [flag_of(name), "-".join(map(str, value))]
        elif isinstance(value, tuple):
            words += [
                part for item in value for part in (flag_of(name), item if isinstance(item, str) else "=".join(item))
            ]
        else:
            words += [flag_of(name), str(value)]
    return shlex.join(words)


def score_stage(
    settings: RunSettings, folder: Path, loaded: LoadedModel, data: RunData, console: Console, ranks: Ranks = ALONE
) -> dict[str, dict[str, Scores]]:
    """Score every concept and protected set into scores/NAME.safetensors; those that are there are read."""
    files = {name: score_file(folder, name) for name in (*data.concepts, *data.protect)}
    missing = {name: path for name, path in files.items() if not path.is_file()}
    if "margin" in settings.wanted_statistics and set(missing) & set(data.concepts):
        missing = {**missing, **{name: files[name] for name in data.protect}}  # they keep what the concepts chose
    if missing:
        score_missing(settings, folder, loaded, data, missing, console, ranks)
    return stored_scores(settings, folder)


def score_file(folder: Path, name: str) -> Path:
    return folder / "scores" / f"{name}.safetensors"


def stored_scores(settings: RunSettings, folder: Path) -> dict[str, dict[str, Scores]]:
    """The score files of a run, by role (`concepts`, `protect`) and name."""
    return {
        role: {name: load_scores(score_file(folder, name)) for name, _ in getattr(settings, role)}
        for role in ("concepts", "protect")
    }


def score_missing(
    settings: RunSettings,
    folder: Path,
    loaded: LoadedModel,
    data: RunData,
    files: Mapping[str, Path],
    console: Console,
    ranks: Ranks,
) -> None:
    """Plan once for all sets, then score them one after the other, the model loaded once."""
    statistics = settings.wanted_statistics
    pairs = {name: {**data.concepts, **data.protect}[name] for name in files}
    aware = {name: encode(settings, loaded, rows) for name, rows in pairs.items()}
    unaware = {name: encode(settings, loaded, data.unaware.get(name, ())) for name in files}
    matrices = editable_matrices(loaded.model, settings.target)
    for matrix in matrices:
        loaded.checkpoint.stored_name(matrix.name)  # an error now, not when all is scored
    if settings.target != "attention" and (coverage := mlp_coverage(loaded.model)) < 1:
        console.say(f"only {coverage:.0%} of the MLP weights are scored; the others are experts fused in another form")
    plan = make_plan(
        loaded,
        [batch for name in files for batch in make_batches(aware[name], unaware[name], matrices=matrices)],
        matrices,
        accumulators(statistics),
        statistics=len(statistics),
        budget=parse_bytes(settings.memory_budget) if settings.memory_budget else None,
        checkpoints=True,
    )
    console.say(plan.text())
    if settings.searches:
        tokens = sum(len(example.input_ids) for part in (aware, unaware) for rows in part.values() for example in rows)
        console.say(expected_text(settings, data, plan.seconds, tokens))
    for name, path in files.items():
        about = {"concept": name, "data_sha256": rows_sha256(pairs[name]), "seed": settings.seed}
        if truncated := sum(example.truncated > 0 for example in aware[name]):
            console.say(f"{name}: {truncated} prompts too long for --max-length or the model lost their start")
        total = len(plan.partitions) * (len(aware[name]) + len(unaware[name])) // ranks.world
        candidates = None
        if name in data.protect and "margin" in statistics:
            scored = {concept: load_scores(score_file(folder, concept)) for concept in data.concepts}
            candidates = candidate_entries(scored, [matrix.name for matrix in matrices], settings.at_least)
        with console.bar(f"scoring {name}", total) as advance:
            scores = score_concept(
                loaded,
                aware[name],
                unaware[name],
                target=settings.target,
                plan=plan,
                statistics=[s for s in statistics if unaware[name] or not STATISTICS[s].unaware],
                keep=settings.keep,
                granularity=settings.granularity,
                seed=settings.seed,
                candidates=candidates,
                about={**about, "template": settings.template},
                progress_folder=folder / "progress" / name,
                ranks=ranks,
                progress=advance,
            )
        if ranks.first:
            if silent := scores.metadata["silent"]:
                console.say(
                    f"{name}: nothing reached {len(silent)} matrices (experts without a token): {silent[0]}, ..."
                )
            save_scores(path, scores)
            shutil.rmtree(folder / "progress" / name, ignore_errors=True)
        ranks.wait()


def expected_text(settings: RunSettings, data: RunData, scoring: float, tokens: int) -> str:
    """What the run will take, from the time of scoring: a forward pass is a third of it, a token of an answer takes
    as long as four (measured in batches: docs/search.md), a verdict with the local judge as long as 60."""
    forward = scoring / max(tokens, 1) / 3
    budget, mean = (
        settings.budget,
        tokens / max(1, sum(map(len, (*data.concepts.values(), *data.unaware.values(), *data.protect.values())))),
    )
    pairs = 2 * budget.pairs + KL_PAIRS + sum(len(kind) for kinds in data.contrasts.values() for kind in kinds)
    asked, search = (sum(map(len, questions.values())) for questions in (data.questions, data.search))
    answers = asked * (2 + len(settings.wanted_controls)) + search * (1.0 + 0.75 * budget.survivors + 0.5)
    seconds = {
        "scoring": scoring,
        "search": budget.trials * pairs * mean * forward,
        "answers and verdicts": answers * (4 * settings.new_tokens + 60) * forward,
    }
    parts = ", ".join(f"{name} {value / 60:.1f}" for name, value in seconds.items())
    return f"effort {settings.effort}: about {sum(seconds.values()) / 60:.0f} minutes ({parts})"


def encode(settings: RunSettings, loaded: LoadedModel, pairs: Sequence[Pair]) -> list[Example]:
    """Examples of at most --max-length tokens, and no more than the model can see."""
    length = min(settings.max_length, loaded.context)
    return encode_all(loaded.tokenizer, pairs, template=settings.template, max_length=length)


def select_stage(
    settings: RunSettings,
    folder: Path,
    loaded: LoadedModel,
    data: RunData,
    scores: Mapping[str, Mapping[str, Scores]],
    console: Console,
) -> Patch:
    """Choose the ratio where it is to be chosen, select, and write patch.safetensors; read it when it is there."""
    path = folder / "patch.safetensors"
    if path.is_file():
        return _patch_of_run(settings, path)
    table: list[dict[str, Any]] = []
    if settings.rule == SEARCHED:
        recipe = search_stage(settings, folder, loaded, data, scores, console)
    elif settings.ratio is None:
        ratio, table = choose_ratio(
            loaded,
            scores["concepts"],
            scores["protect"],
            encode(settings, loaded, data.choose),
            recipe=usual_recipe(settings, settings.rule, 0.5),
            max_increase=settings.max_perplexity_increase,
            console=console,
        )
        recipe = usual_recipe(settings, settings.rule, ratio)
    else:
        recipe = usual_recipe(settings, settings.rule, settings.ratio)
    selection = recipe.select(scores["concepts"], scores["protect"])
    patch = patch_of(settings, loaded.checkpoint, selection, scores, recipe, table)
    save_patch(path, patch)
    console.say(f"{patch.weights:,} weights in {len(patch.edits)} matrices, ratio {recipe.ratio:g}; patch {path}")
    return load_patch(path)  # as a resumed run reads it


def usual_recipe(settings: RunSettings, rule: str, ratio: float) -> Recipe:
    """The recipe that these settings give, with this rule and ratio."""
    return Recipe(
        rule,
        ratio,
        protect_ratio=settings.protect_ratio,
        target=settings.target,
        granularity=settings.granularity,
        layers=(settings.layers[0], settings.layers[1]) if settings.layers else None,
        at_least=settings.at_least,
        scale=settings.scale,
    )


def bench_of(
    settings: RunSettings, loaded: LoadedModel, data: RunData, scores: Mapping[str, Mapping[str, Scores]]
) -> Bench:
    """What edits are tried on."""
    contrasts = {
        name: Contrast(encode(settings, loaded, aware), encode(settings, loaded, unaware))
        for name, (aware, unaware) in data.contrasts.items()
    }
    general = encode(settings, loaded, data.choose[: 2 * settings.budget.pairs])
    return Bench(loaded, scores["concepts"], scores["protect"], contrasts, general, settings.max_perplexity_increase)


def search_stage(
    settings: RunSettings,
    folder: Path,
    loaded: LoadedModel,
    data: RunData,
    scores: Mapping[str, Mapping[str, Scores]],
    console: Console,
) -> Recipe:
    """Search an edit into search.json; the pick of an earlier search is read."""
    path = folder / "search.json"
    if path.is_file():
        record = read_json(path)
        return recipe_of(next(row["recipe"] for row in record["trials"] if row["number"] == record["pick"]))
    bench = bench_of(settings, loaded, data, scores)
    questions = Evaluation(data.search, (), settings.template, settings.new_tokens, settings.seed)
    recipe, record = find_edit(
        bench,
        usual_recipe(settings, "coupled", min(settings.keep, 1e-4)),
        folder / "search",
        effort=settings.budget,
        questions=questions if settings.searches_answers else None,
        judges=lambda: (judge_of(settings, loaded), load_coherence_judge()),
        seed=settings.seed,
        console=console,
    )
    write_json(path, {"effort": settings.effort, **record})
    return recipe


def _patch_of_run(settings: RunSettings, path: Path) -> Patch:
    """The patch that this run wrote; SpinError when it is another one, put there by `spin-llm select` for instance."""
    patch = load_patch(path)
    about = patch.metadata
    same = ["target"] if settings.rule == SEARCHED else ["rule", "target", "scale"]
    if settings.rule == SEARCHED:
        by_run = bool(about.get("searched"))
    else:
        by_run = bool(about["ratio_table"]) if settings.ratio is None else about["ratio"] == settings.ratio
    if not by_run or any(about[name] != getattr(settings, name) for name in same):
        raise SpinError(
            f"{path} was not made by this run (rule {about['rule']}, ratio {about['ratio']:g}).",
            cause="`spin-llm select` wrote it there.",
            change="move it away; or compare it with `spin-llm eval MODEL --patch`.",
        )
    return patch


def patch_of(
    settings: RunSettings,
    checkpoint: Checkpoint,
    selection: Selection,
    scores: Mapping[str, Mapping[str, Scores]],
    recipe: Recipe,
    table: Sequence[Mapping[str, Any]] = (),
) -> Patch:
    """A patch whose metadata says where it is from, by which recipe, and where its weights lie."""
    everything = {**scores["concepts"], **scores["protect"]}
    about = {
        "base_model": settings.model,
        "data_sha256": {name: part.metadata["data_sha256"] for name, part in everything.items()},
        "candidates": selection.candidates,
        "shared": selection.shared,
        "targeted_weights": selection.targeted_weights,
        "ratio_table": list(table),
        "searched": settings.rule == SEARCHED,
        "granularity": recipe.granularity,
        "layers": recipe.layers,
        "at_least": recipe.at_least,
        "penalty": recipe.penalty,
        "fractions": recipe.fractions,
        "places": {
            checkpoint.stored_name(name): {"shape": list(place.shape), "layer": place.layer, "kind": place.kind}
            for name, place in selection.places.items()
        },
    }
    return make_patch(checkpoint, selection, scale=recipe.scale, about=about)


def evaluate_stage(
    settings: RunSettings,
    folder: Path,
    loaded: LoadedModel,
    data: RunData,
    scores: Mapping[str, Mapping[str, Scores]],
    patch: Patch,
    console: Console,
) -> dict[str, Any]:
    """Answers, verdicts, results.json."""
    recipe = recipe_of(patch.metadata)
    selection = recipe.select(scores["concepts"], scores["protect"])
    controls, left_out = control_patches(settings, loaded.checkpoint, scores, selection, patch, console)
    patches = {EDITED: patch, **controls}
    views: dict[str, View] = {BASE: lambda: nullcontext(loaded)}
    views |= {name: patched_view(loaded, other) for name, other in patches.items()}
    evaluation = evaluation_of(settings, loaded, data)
    measured = evaluate_judged(settings, views, evaluation, folder, console, loaded)
    for name, control in measured["controls"].items():
        shared = weights_in_common(patches[name], patch)
        measured["controls"][name] = {"weights": patches[name].weights, "shared": shared, **control}
    results = {"edit": edit_summary(patch), **measured, "ratio_table": patch.metadata["ratio_table"]}
    if recipe.rule != BY_MARGIN:
        results["overlap"] = overlap(selection, scores["concepts"], scores["protect"], recipe.granularity)
    if (folder / "search.json").is_file():
        results["search"] = read_json(folder / "search.json")
    if left_out:
        results["controls_left_out"] = left_out
    if (folder / "stability.json").is_file():
        results["stability"] = stability_summary(read_json(folder / "stability.json"))
    results |= capability_results(settings, views, folder, console)
    write_json(folder / "results.json", results)
    shutil.rmtree(folder / "progress", ignore_errors=True)
    return results


def check_capabilities(settings: RunSettings) -> None:
    """Before anything is done: the lm-eval tasks asked for can be run."""
    if settings.capabilities:
        check_tasks(named_tasks(settings.capabilities), settings.capability_tasks)


def capability_results(
    settings: RunSettings, views: Mapping[str, View], folder: Path, console: Console
) -> dict[str, Any]:
    """{"capabilities": ...} for results.json; {} when no task was asked for."""
    if not settings.capabilities:
        return {}
    found = measure_capabilities(
        views[BASE],
        views[EDITED],
        named_tasks(settings.capabilities),
        folder,
        task_folder=settings.capability_tasks,
        limit=settings.capabilities_limit,
        seed=settings.seed,
        console=console,
    )
    return {"capabilities": found}


def evaluation_of(settings: RunSettings, loaded: LoadedModel, data: RunData) -> Evaluation:
    """What the models of a comparison are asked, general pairs by the tokenizer of `loaded`."""
    return Evaluation(
        data.questions, encode(settings, loaded, data.final), settings.template, settings.new_tokens, settings.seed
    )


def evaluate_judged(
    settings: RunSettings,
    views: Mapping[str, View | Served],
    evaluation: Evaluation,
    folder: Path,
    console: Console,
    *models: LoadedModel,
) -> dict[str, Any]:
    """`evaluate` with the judges of these settings; `models` are those of this process, which may not judge."""
    judge, coherence = judge_of(settings, *models), load_coherence_judge()
    return evaluate(views, evaluation, judge, folder, coherence=coherence, console=console)


def judge_of(settings: RunSettings, *models: LoadedModel) -> Judge:
    """The judge of these settings; SpinError when it has the weights of one of the models under evaluation."""
    judge = load_judge(settings.judge, quality=settings.judge_quality, trust_remote_code=settings.trust_remote_code)
    refuse_fingerprint(judge, [model.checkpoint.fingerprint for model in models])
    return judge


def control_patches(
    settings: RunSettings,
    checkpoint: Checkpoint,
    scores: Mapping[str, Mapping[str, Scores]],
    selection: Selection,
    patch: Patch,
    console: Console,
) -> tuple[dict[str, Patch], dict[str, str]]:
    """(the controls asked for, why others are left out): those that select nothing, or what the edit selects."""

    def stored(matrix: str) -> torch.Tensor:
        tensor = checkpoint.tensors[checkpoint.stored_name(matrix)]
        return torch.frombuffer(tensor.read(), dtype=tensor.torch_dtype)

    made: dict[str, Patch] = {}
    left_out: dict[str, str] = {}
    recipe = recipe_of(patch.metadata)
    for name in settings.wanted_controls:
        try:
            control = control_selection(
                name, selection, recipe, scores["concepts"], scores["protect"], stored, seed=settings.seed
            )
            made[name] = patch_of(settings, checkpoint, control, scores, recipe)
        except SpinError as error:
            left_out[name] = error.what
            continue
        shared = weights_in_common(made[name], patch)
        if shared == made[name].weights == patch.weights:
            del made[name]
            left_out[name] = "It is the edit itself."
        else:
            console.say(f"control {name}: {made[name].weights:,} weights, {shared:,} of them in the edit")
    for name, why in left_out.items():
        console.say(f"control {name} is left out: {why}")
    if made:
        console.say(f"controls: {len(made)} more models answer the questions, beside base and edited")
    return made, left_out


def weights_in_common(one: Patch, other: Patch) -> int:
    return sum(
        int(torch.isin(edit.indices, other.edits[name].indices).sum())
        for name, edit in one.edits.items()
        if name in other.edits
    )


def stability_stage(
    settings: RunSettings,
    folder: Path,
    loaded: LoadedModel,
    data: RunData,
    scores: Mapping[str, Mapping[str, Scores]],
    patch: Patch,
    console: Console,
    *,
    resamples: int,
    seed: int,
    anew: bool = False,
) -> dict[str, Any]:
    """Select again from resampled scoring data into stability.json; unless `anew`, read it when it is there, made with
    the same `resamples` and `seed`."""
    path = folder / "stability.json"
    if path.is_file() and not anew:
        before = dict(read_json(path))
        if (before["resamples"], before["seed"]) == (resamples, seed):
            return before
    examples = {
        name: ScoredExamples(
            encode(settings, loaded, pairs),
            encode(settings, loaded, data.unaware.get(name, ()) if patch.metadata["rule"] == SIGNED else ()),
        )
        for name, pairs in {**data.concepts, **data.protect}.items()
    }
    recipe = recipe_of(patch.metadata)
    selection = recipe.select(scores["concepts"], scores["protect"])
    result = measure_stability(
        loaded,
        examples,
        Job(selection, scores["concepts"], scores["protect"], {}, recipe.granularity),
        target=settings.target,
        resamples=resamples,
        seed=seed,
        budget=parse_bytes(settings.memory_budget) if settings.memory_budget else None,
        folder=folder / "progress" / "stability",
        console=console,
    )
    write_json(path, result)
    shutil.rmtree(folder / "progress" / "stability")
    with suppress(OSError):  # a run that is not finished keeps other things there
        (folder / "progress").rmdir()
    return result


def stability(
    folder: Path, *, resamples: int, seed: int | None = None, overwrite: bool = False, console: Console = SILENT
) -> dict[str, Any]:
    """Whether other scoring data would have chosen a run's weights: what stability.json holds.

    Data and model are read as run.json records them, and must be the same. Where the run has results, their `stability`
    part and the report are written again. `seed` None is the run's own.
    """
    if not is_run(folder) or not (folder / "patch.safetensors").is_file():
        raise SpinError(f"{folder} is not a run with a patch.", change="finish `spin-llm run` in that folder first.")
    record = read_json(folder / "run.json")
    settings = settings_of_record(record)
    seed = settings.seed if seed is None else seed
    if (folder / "stability.json").is_file() and not overwrite:
        before = read_json(folder / "stability.json")
        if (before["resamples"], before["seed"]) != (resamples, seed):
            raise SpinError(
                f"{folder / 'stability.json'} has {before['resamples']} resamples, seed {before['seed']}.",
                change="give --overwrite to replace it.",
            )
    settings = replace(settings, questions=(), dtype=record["model"]["dtype"])
    patch = _patch_of_run(settings, folder / "patch.safetensors")
    if patch.metadata["rule"] == BY_MARGIN:
        raise SpinError(f"Stability cannot be measured here: {NO_STABILITY}.")
    data = read_data(settings, console)
    loaded = load_model(settings, console)
    model = model_record(settings, loaded)
    check_same_inputs(folder, record, model, data.record(settings), ("concept", "protect"))
    data = with_own_answers(settings, folder, loaded, data, console)
    scores = stored_scores(settings, folder)
    options: dict[str, Any] = {"resamples": resamples, "seed": seed, "anew": overwrite}
    result = stability_stage(settings, folder, loaded, data, scores, patch, console, **options)
    if (folder / "results.json").is_file():
        write_json(
            folder / "results.json",
            {**read_json(folder / "results.json"), "stability": stability_summary(result)},
        )
        write_report(folder)
    return result


def patched_view(loaded: LoadedModel, patch: Patch) -> View:
    """A view of the loaded model with the patch in it while it is looked at."""

    @contextmanager
    def view() -> Any:
        with patch.applied(loaded.model):
            yield loaded

    return view


def edit_summary(patch: Patch) -> dict[str, Any]:
    """The `edit` part of results.json."""
    about = patch.metadata
    places = about.get("places", {})
    return {
        **{
            key: about.get(key) for key in ("rule", "ratio", "protect_ratio", "target", "scale", "candidates", "shared")
        },
        "weights": patch.weights,
        "matrices": len(patch.edits),
        "share": patch.weights / about["targeted_weights"] if about.get("targeted_weights") else None,
        "per_matrix": {name: edit.indices.numel() for name, edit in patch.edits.items()},
        "shapes": {name: place["shape"] for name, place in places.items()},
        "layers": {name: place["layer"] for name, place in places.items()},
        "kinds": {name: place["kind"] for name, place in places.items()},
    }


def score(settings: RunSettings, folder: Path, *, overwrite: bool = False, console: Console = SILENT) -> list[Path]:
    """Only the scores: the score files written, in a folder that `select_from_folder` and `run` take up.

    Under `torchrun` or `accelerate launch` the examples are shared out over the processes; the first one writes.
    """
    with joined_ranks() as ranks:
        console = console if ranks.first else SILENT
        settings = with_rule(settings, console)
        data = read_data(settings, console, search=False)
        check_folder(settings, folder, overwrite=overwrite)
        loaded = load_model(settings, console)
        model = model_record(settings, loaded)
        ranks.wait()
        if ranks.first:
            write_record(settings, folder, model, data, overwrite=overwrite)
            with_own_answers(settings, folder, loaded, data, console)  # the others read what the first one wrote
        ranks.wait()
        data = with_own_answers(settings, folder, loaded, data, SILENT)
        score_stage(settings, folder, loaded, data, console, ranks)
    if not ranks.first:
        return []
    return [score_file(folder, name) for name in (*data.concepts, *data.protect)]


def select_from_folder(
    folder: Path, output: Path, recipe: Recipe, *, model: str | None = None, overwrite: bool = False
) -> Patch:
    """A patch from the scores of a run folder, for its model, or for another `model` of the same shapes (a fine-tuned
    one).

    The checkpoint is read for the old values of the touched tensors alone.
    """
    if output.exists() and not overwrite:
        raise SpinError(f"{output} exists.", change="choose another --output, or --overwrite.")
    if not is_run(folder):
        raise SpinError(f"{folder} is not a run folder: it has no run.json.", change="run `spin-llm score` first.")
    record = read_json(folder / "run.json")
    settings = settings_of_record(record)
    scores = stored_scores(settings, folder)
    recipe = replace(recipe, granularity=recipe.granularity or settings.granularity)
    checkpoint = Checkpoint(resolve(model) if model else Path(record["model"]["path"]))
    selection = recipe.select(scores["concepts"], scores["protect"])
    if model:
        check_same_shapes(checkpoint, selection, record["model"]["name"])
        settings = replace(settings, model=model)
    patch = patch_of(replace(settings, rule=recipe.rule, ratio=recipe.ratio), checkpoint, selection, scores, recipe)
    save_patch(output, patch)
    return patch


def check_same_shapes(checkpoint: Checkpoint, selection: Selection, scored: str) -> None:
    """SpinError when a matrix of the selection is not in the checkpoint, or has another shape there."""
    for name in selection.indices:
        place = selection.places[name]
        stored = checkpoint.tensors.get(checkpoint.stored_name(name))
        if stored is None or math.prod(stored.shape) != place.size:
            raise SpinError(
                f"{checkpoint.folder} is not of the same shape as {scored}: {name} differs.",
                change="give a model that was fine-tuned from the scored one; or score this model.",
            )


def settings_of_record(record: Mapping[str, Any]) -> RunSettings:
    """The settings of a run.json, also of another version's: what it lacks has its default."""
    known = {name: value for name, value in record["settings"].items() if name in RunSettings.__dataclass_fields__}
    return settings_from_json(known)


def settings_from_json(value: Mapping[str, Any]) -> RunSettings:
    """RunSettings as run.json records them."""
    pairs = {name: tuple(tuple(pair) for pair in value[name]) for name in ("concepts", "protect", "questions")}
    lists = ("controls", "statistics", "capabilities", "layers")
    return RunSettings(
        **{**value, **pairs, **{name: tuple(value[name]) for name in lists if name in value}},
    )


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
    write_record(settings, folder, model_record(settings, loaded), data, overwrite=overwrite, compared=compared)
    if patch:
        views: dict[str, View] = {BASE: lambda: nullcontext(loaded), EDITED: patched_view(loaded, patch)}
        compared_models = [loaded]
    else:
        base = load(str(baseline), **options)
        compared_models = [loaded, base]
        views = {BASE: lambda: nullcontext(base), EDITED: lambda: nullcontext(loaded)}
    evaluation = evaluation_of(settings, loaded, data)
    measured = evaluate_judged(settings, views, evaluation, folder, console, *compared_models)
    results = {"edit": edit_summary(patch) if patch else {}, **measured, "ratio_table": []}
    results |= capability_results(settings, views, folder, console)
    write_json(folder / "results.json", results)
    write_report(folder)
    return results


def answering(completer: ServerCompleter) -> Served:
    return lambda: nullcontext(completer)


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
    evaluation = Evaluation(data.questions, (), template, settings.new_tokens, settings.seed)
    measured = evaluate_judged(settings, views, evaluation, folder, console)
    results = {"edit": {}, **measured, "ratio_table": []}
    write_json(folder / "results.json", results)
    write_report(folder)
    return results
