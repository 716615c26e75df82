"""What the command would do with a model, found out in a minute, before anything long is started.

In: run settings. Out: a report as plain values: modules found and their share, template and special tokens, the compute
dtype and why, whether examples scored together get the scores that they get alone, the plan of the default run with
disk, free memory and versions; and the same as lines of text. Left out: scoring, and mending anything.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from spin_llm.data import Rendering, encode_all, load_pairs, render_prompt, rendering_of, resolve_template
from spin_llm.data import chat as chats
from spin_llm.data.reasoning import closing_of, divided
from spin_llm.errors import SpinError
from spin_llm.judges.quality.reading import family_of
from spin_llm.models import LoadedModel, Matrix, editable_matrices, mlp_coverage, unknown_modules, unknown_text
from spin_llm.pipeline.context import Run, Shelf
from spin_llm.pipeline.folder import KEPT_BYTES
from spin_llm.pipeline.inputs import fitting, read_data, with_rule
from spin_llm.pipeline.score_stage import encoded_sets, scoring_of
from spin_llm.progress import SILENT, Console
from spin_llm.records import versions
from spin_llm.scores import Sides, count, importance, top_entries
from spin_llm.scores.plan import free_memory
from spin_llm.scores.sets import plan_sets
from spin_llm.settings import RunSettings

Report = dict[str, Any]
INVARIANCE_EXAMPLES = 3
TOP = 1e-3  # the ratio at which top sets are compared
# What batching may change: (largest difference relative to a matrix's largest score, least share of a top set). float32
# sums in another order; bfloat16 rounds activations and gradients to 2**-9, and another batch shape rounds differently.
# Measured on SmolLM2: 2e-6 and all of it; 8e-3 and 99.6%.
BOUNDS = {torch.float32: (1e-5, 0.99), torch.bfloat16: (0.1, 0.9)}
MARK, OTHER_MARK = "Xq7", "Yz3"
PROBE = "Xq7 <b>&amp; 'Yz3' \"two\"</b> {{ it }} {% if %} \\n [INST] #1\n\n  *three* " * 20


def examine(settings: RunSettings, *, console: Console = SILENT) -> Report:
    """Everything that `lines` prints.

    Raises SpinError when the model cannot be loaded or edited.
    """
    run = Run(settings, Path(), console)
    _ = run.scored_checkpoint  # an error now for an adapter
    loaded = run.model
    matrices = editable_matrices(loaded.model, settings.target)
    dtype = str(loaded.dtype).removeprefix("torch.")
    if settings.dtype != "auto":
        why = "asked for"
    elif loaded.dtype == torch.bfloat16:
        why = "this device multiplies bfloat16 natively; scores are summed in float32"
    else:
        why = "this device does not multiply bfloat16 natively"
    about = {
        "name": loaded.name,
        "class": type(loaded.model).__name__,
        "folder": str(loaded.checkpoint.folder),
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "family": family_of(loaded.model.config, loaded.tokenizer),
        "device": str(loaded.device),
        "notes": list(loaded.notes),
    }
    return {
        "model": about,
        "modules": modules(loaded, settings.target),
        "tokens": tokens(loaded.tokenizer, rendering_of(settings)),
        "dtype": {"dtype": dtype, "why": why},
        "batching": batching(loaded, matrices, rendering_of(settings)),
        "plan": plan(settings, loaded, matrices),
        "versions": versions(),
    }


def modules(loaded: LoadedModel, target: str) -> Report:
    """Editable matrices by kind: how many, in how many layers, how many weights, and what their modules are called."""
    kinds: dict[str, Report] = {}
    every = editable_matrices(loaded.model, "all")
    for kind in sorted({matrix.kind for matrix in every}):
        here = [matrix for matrix in every if matrix.kind == kind]
        names = Counter(matrix.name.removesuffix(".weight").rpartition(".")[2] for matrix in here)
        kinds[kind] = {
            "matrices": len(here),
            "layers": len({matrix.layer for matrix in here}),
            "weights": sum(matrix.weight.numel() for matrix in here),
            "names": dict(names),
        }
    unknown = unknown_modules(loaded.model)
    return {
        "target": target,
        "kinds": kinds,
        "mlp_coverage": mlp_coverage(loaded.model),
        "unknown": unknown_text(unknown) if unknown else "",
    }


def tokens(tokenizer: Any, template: str | Rendering) -> Report:
    """What the tokenizer and its chat template do of their own: system prompt, BOS, EOS."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    alone = list(tokenizer("a")["input_ids"])
    rendering = chats.as_rendering(template)
    used = rendering if rendering.name not in ("raw", "released") else replace(rendering, name="chat", options=())
    rendered, failure = chat_text(tokenizer, [{"role": "user", "content": MARK}], used), ""
    raw_bos = bos is not None and alone[:1] == [bos]
    chat_bos = bool(rendered and tokenizer.bos_token and rendered.startswith(tokenizer.bos_token))
    resolved = resolve_template(tokenizer, template)
    try:
        if resolved not in ("raw", "released"):  # a text with everything that a template may get wrong
            chats.chat_text(tokenizer, [{"role": "user", "content": PROBE}], used)
    except SpinError as error:
        failure = error.what
    return {
        "chat_template": bool(getattr(tokenizer, "chat_template", None)),
        "named_templates": list(chats.named_templates(tokenizer)),
        "chat_template_works": rendered is not None,
        "chat_template_failure": failure,
        **(own_ways(tokenizer, used, rendered) if rendered is not None else {}),
        "template": resolved,
        "system_prompt": system_prompt(tokenizer, used) if rendered else None,
        "bos": tokenizer.bos_token,
        "tokenizer_adds_bos": raw_bos,
        "template_writes_bos": chat_bos,
        "bos_doubled_by_naive_use": raw_bos and chat_bos,
        "prompt_starts_with_bos": bos is not None and render_prompt(tokenizer, MARK, rendering)[:1] == [bos],
        "tokenizer_adds_eos": eos is not None and alone[-1:] == [eos],
        "released_template_loses_a_token": not raw_bos,
    }


def own_ways(tokenizer: Any, rendering: Rendering, rendered: str) -> Report:
    """What the chat template does beside writing messages down: reasoning and its switches, a clock, content in parts.

    `thinks`: off (switched off), on (asked for), opened (it opens reasoning and knows no switch), by itself (it knows
    markers and no switch), or "" for a template that knows nothing of reasoning.
    """
    chat = chats.chat_template(tokenizer, rendering)
    switches = [*(chat.switches or {}), *([chats.NO_THINK] if chat.by_system else [])]
    opens = bool(closing_of(rendered))
    if switches:
        thinks = "on" if rendering.thinking else "off"
    else:
        thinks = "opened" if opens else "by itself" if divided(chat.source) else ""
    told = dict(chat.values)
    return {"thinks": thinks, "switches": switches, "told": told, "clock": chat.clock, "parts": chat.as_parts}


def chat_text(tokenizer: Any, messages: Sequence[dict[str, str]], rendering: Rendering) -> str | None:
    """The chat template's text; None without a template, or where it fails on these messages."""
    try:
        return chats.chat_text(tokenizer, messages, rendering)
    except SpinError:
        return None


def system_prompt(tokenizer: Any, rendering: Rendering) -> str:
    """What the template puts before the first user message and not before the second, BOS aside; "" when nothing."""
    user = {"role": "user", "content": MARK}
    first = chat_text(tokenizer, [user], rendering)
    again = [user, {"role": "assistant", "content": "a"}, {**user, "content": OTHER_MARK}]
    twice = chat_text(tokenizer, again, rendering)
    if first is None or twice is None:
        return ""
    before, between = first.partition(MARK)[0], twice.partition(MARK)[2].partition(OTHER_MARK)[0]
    shared = 0
    while shared < min(len(before), len(between)) and before[-1 - shared] == between[-1 - shared]:
        shared += 1
    return before[: len(before) - shared].removeprefix(tokenizer.bos_token or "").strip()


def batching(loaded: LoadedModel, matrices: Sequence[Matrix], template: str | Rendering) -> Report:
    """Score three short starter examples together and one by one, on the matrices of three layers at most.

    `difference` is the largest, relative to the largest score of its matrix; `agreement` the share of the top TOP of
    each matrix (one entry at least) that both have.
    """
    short = sorted(load_pairs("starter", concept="fairness").pairs, key=lambda pair: len(pair.response))
    pairs = short[:INVARIANCE_EXAMPLES]
    examples = encode_all(loaded.tokenizer, pairs, template=template, max_length=loaded.context)
    layers = sorted({matrix.layer for matrix in matrices})
    looked_at = {layers[0], layers[len(layers) // 2], layers[-1]}
    some = [matrix for matrix in matrices if matrix.layer in looked_at]
    together, alone = (importance(loaded, examples, some, batch_tokens=tokens) for tokens in (10**9, 1))
    differences, same, entries = [0.0], 0, 0
    for name, scores in alone.items():
        if largest := float(scores.max()):
            differences.append(float((together[name] - scores).abs().max()) / largest)
        k = max(1, count(TOP, scores.numel()))
        tops = [top_entries(one, k)[0] for one in (together[name], scores)]
        same += int(torch.isin(*tops).sum())
        entries += k
    most, least = BOUNDS[loaded.dtype]
    return {
        "examples": len(examples),
        "lengths": [len(example.input_ids) for example in examples],
        "matrices": len(some),
        "difference": max(differences),
        "agreement": same / entries,
        "bounds": {"difference": most, "agreement": least},
        "good": max(differences) <= most and same / entries >= least,
    }


def plan(settings: RunSettings, loaded: LoadedModel, matrices: Sequence[Matrix]) -> Report:
    """The scoring plan of a run with these settings, or why there is none; disk that it takes, and what is free."""
    weights = sum(matrix.weight.numel() for matrix in matrices)
    report: Report = {
        "free_memory": free_memory(loaded.device),
        "free_disk": shutil.disk_usage(Path.cwd()).free,
        "score_files": int(settings.keep * weights) * KEPT_BYTES * (len(settings.concepts) + len(settings.protect)),
    }
    try:
        settings, sets = scored_sets(settings, loaded)
        made = plan_sets(loaded, sets, scoring_of(settings), settings.memory_budget, checkpoints=True)
    except SpinError as error:
        return {**report, "text": f"plan: none. {error.what}", "passes": 0}
    return {
        **report,
        "text": made.text(),
        "passes": len(made.partitions),
        "peak": made.peak,
        "resident": made.resident,
        "accumulators": made.accumulators,
        "disk": made.disk,
        "seconds": made.seconds,
    }


def scored_sets(settings: RunSettings, loaded: LoadedModel) -> tuple[RunSettings, Mapping[str, Sides]]:
    """(the settings with the rule that their data allow, the examples that a run would score)."""
    rows = Shelf().rows
    settings = with_rule(settings, rows=rows)
    data = read_data(settings, rows=rows, search=False)
    data = fitting(settings, replace(data, choose=(), final=(), questions={}, search={}, own={}), loaded)
    return settings, encoded_sets(settings, loaded, data, (*data.concepts, *data.protect))


def lines(report: Report) -> list[str]:
    """The report, a finding a line; what deserves a look starts with `!`."""
    return [*_model_lines(report), *_token_lines(report["tokens"]), *_work_lines(report)]


def _model_lines(report: Report) -> Iterator[str]:
    model, found, dtype = report["model"], report["modules"], report["dtype"]
    yield f"model      {model['name']}: {model['class']}, {model['parameters'] / 1e6:,.1f}M parameters"
    yield f"family     {model['family']} (what labelled answers are filed under: docs/judge.md)"
    yield f"compute    {dtype['dtype']} on {model['device']}: {dtype['why']}"
    for kind, row in found["kinds"].items():
        names = ", ".join(f"{name} {number}" for name, number in row["names"].items())
        mark = " (target)" if found["target"] in ("all", kind) else ""
        yield (
            f"{kind:10} {row['matrices']} matrices in {row['layers']} layers, {row['weights'] / 1e6:,.1f}M weights"
            f"{mark}: {names}"
        )
    look = "" if found["mlp_coverage"] == 1 else "! "
    yield f"{look}coverage   {found['mlp_coverage']:.0%} of the MLP weights can be edited"
    if found["unknown"]:
        yield f"! unknown   {found['unknown']}"
    yield from (f"! load      {note}" for note in model["notes"])


def _token_lines(found: Report) -> Iterator[str]:
    named = found["named_templates"]
    if found["chat_template"] and not found["chat_template_works"] and len(named) > 1:
        yield f"! template  the tokenizer has several chat templates: --template {'|'.join(named)}, or raw"
    elif found["chat_template"] and not found["chat_template_works"]:
        yield "! template  the chat template fails on one user message: give --template raw"
    else:
        has = "has a chat template" if found["chat_template"] else "has no chat template: a base model, it seems"
        yield f"{'' if found['chat_template'] else '! '}template   {found['template']} (the tokenizer {has})"
    if found["chat_template_failure"] and found["chat_template_works"]:
        yield f"! template  not every text passes: {found['chat_template_failure']}"
    if found.get("clock"):
        yield "! clock     the template prints the date: a run keeps the date that it began with, or --date"
    if found.get("parts"):
        yield "content    the template takes content as a list of parts, and gets it so"
    yield from _reasoning_lines(found)
    if found["system_prompt"]:
        yield f"system     the template adds a system prompt: {found['system_prompt'][:120]!r}"
    if found["bos"] is None:
        yield "BOS        the tokenizer has none"
    else:
        by = [who for who in ("tokenizer_adds_bos", "template_writes_bos") if found[who]]
        words = {"tokenizer_adds_bos": "the tokenizer (raw text)", "template_writes_bos": "the chat template"}
        starts = "starts with it" if found["prompt_starts_with_bos"] else "does not start with it"
        adds = " and ".join(words[who] for who in by) or "nothing"
        yield f"BOS        {found['bos']!r}, added by {adds}; a prompt {starts}"
    if found["bos_doubled_by_naive_use"]:
        yield "! BOS       tokenising the template's text would double it; here it is kept once"
    if found["tokenizer_adds_eos"]:
        yield "! EOS       the tokenizer ends a text with EOS; it is taken off prompts"
    if found["released_template_loses_a_token"]:
        mark = "! released  " if found["template"] == "released" else "released   "
        yield f"{mark}raw text gets no BOS: --template released loses the first token of each response"


def _reasoning_lines(found: Report) -> Iterator[str]:
    thinks, switches = found.get("thinks", ""), ", ".join(found.get("switches", ()))
    told = ", ".join(f"{name} {value}" for name, value in found.get("told", {}).items())
    if thinks == "off":
        yield f"reasoning  the template has a switch, {switches}: off ({told or 'by a system message'}); --thinking: on"
    elif thinks == "on":
        yield f"reasoning  the template has a switch, {switches}: on, by --thinking ({told or 'its default'})"
    elif thinks == "opened":
        yield (
            "! reasoning the template opens a block of reasoning and has no switch: an answer needs --thinking-tokens; "
            "reasoning that does not end is no verdict"
        )
    elif thinks:
        yield (
            "! reasoning the template knows reasoning and has no switch: an answer may need --thinking-tokens; "
            "reasoning that does not end is no verdict"
        )


def _work_lines(report: Report) -> Iterator[str]:
    found, planned = report["batching"], report["plan"]
    most, least = found["bounds"]["difference"], found["bounds"]["agreement"]
    verdict = "as good as one by one" if found["good"] else "NOT as good as one by one: give --dtype float32"
    yield (
        f"{'' if found['good'] else '! '}batching   {found['examples']} examples together are {verdict}: scores differ "
        f"by {found['difference']:.1e} at most (bound {most:g}), {found['agreement']:.1%} of the top sets agree (bound "
        f"{least:.0%})"
    )
    yield planned["text"] if planned["passes"] else f"! {planned['text']}"
    short = planned["passes"] and planned["disk"] + planned["score_files"] > planned["free_disk"]
    yield (
        f"{'! ' if short else ''}free       {planned['free_memory'] / 2**30:.1f} GiB of memory, "
        f"{planned['free_disk'] / 2**30:.1f} GiB of disk; score files take {planned['score_files'] / 2**20:,.1f} MiB"
    )
    yield "versions   " + ", ".join(f"{name} {version}" for name, version in report["versions"].items())
