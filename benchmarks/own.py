"""The rule `signed` on the model's own answers at given ratios, beside random weights, on held-back questions, over
seeds.

In: a folder of data (BeaverTails, Alpaca-cleaned, SALAD-Bench), seeds, ratios (fractions of the targeted weights). Out:
`results/own-SEED.json`: how many own answers were aware; for each ratio, and for as many random weights as the first
ratio selects, the axes against the base on questions that nothing was scored or searched on; the margins on own answers
that were not scored. Nothing is searched: the ratios are given, so that what the answers show was not picked by them. A
run that is cut off continues. `--own-judge` lets another judge divide the answers; `--name` is the results' name then.
`--sheets` adds what people (or another careful reader) make of the final answers: filled sheets of
WORK/seed-SEED/final/generations.jsonl, one for each label. `--table` prints the Markdown tables of docs/beyond.md from
the committed results, without a model. Left out: prompts and answers, which stay in --work.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from beyond import CONCEPTS, KEPT, settings_of
from common import RESULTS, machine

from spin_llm import pipeline
from spin_llm.evaluate.comparison import evaluate
from spin_llm.files import read_json, read_typed_lines, write_json
from spin_llm.judges.human import read_sheet
from spin_llm.patch.patch import Patch, memory_patch
from spin_llm.pipeline.context import Run
from spin_llm.progress import Console
from spin_llm.report.words import p_text
from spin_llm.results.edited import Recipe
from spin_llm.results.measured import BASE, EDITED
from spin_llm.search.trials import measure_proxy, measure_reference
from spin_llm.selection import random_like, select
from spin_llm.stats.paired import paired_rates

AXES = ("fairness", "privacy", "over_refusal", "coherence", "perplexity", "kl")


def work_of(arguments: argparse.Namespace, seed: int) -> Path:
    return Path(arguments.work) / f"seed-{seed}"


def one_seed(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    settings = settings_of(arguments.model, arguments.data_dir, seed, arguments.questions, arguments.effort)
    settings = replace(settings, responses="own", examples=arguments.examples, own_judge=arguments.own_judge)
    folder = work_of(arguments, seed)
    console = Console(lambda line: print(line, flush=True))
    pipeline.score(settings, folder, console=console)
    run = Run(settings, folder, console)
    loaded, bench = run.model, pipeline.bench_of(run, run.scores)
    reference = measure_reference(loaded, bench.contrasts, bench.general)
    patches: dict[str, Patch] = {}
    margins: dict[str, Any] = {}
    for place, ratio in enumerate(arguments.ratios):
        recipe = Recipe("signed", ratio, granularity="model", protect_ratio=settings.keep)
        selection = select(bench.scores, recipe)
        patches[f"signed {ratio:g}"] = memory_patch(loaded.model, selection)
        if place == 0:
            patches["random"] = memory_patch(loaded.model, random_like(selection, seed))
    views: dict[str, Any] = {BASE: lambda: nullcontext(loaded)}
    for place, (name, patch) in enumerate(patches.items()):
        with patch.applied(loaded) as edited:
            margins[name] = asdict(measure_proxy(edited, bench.contrasts, bench.general, reference))
        print(name, patch.weights, margins[name], flush=True)
        views[name if place else EDITED] = lambda patch=patch: patch.applied(loaded)
    results = evaluate(views, run.evaluation, run.judge, folder / "final", coherence=run.coherence, console=console)
    tables = {EDITED: results["axes"], **{name: part["axes"] for name, part in results["controls"].items()}}
    own = read_typed_lines(folder / "own" / "answers.jsonl", dict)
    counts = {name: [row["aware"] for row in own if row["concept"] == name] for name in CONCEPTS}
    return {
        "seed": seed,
        "own": {
            name: {"answers": len(rows), "aware": sum(row is True for row in rows)} for name, rows in counts.items()
        },
        "edits": {
            name: {
                "weights": patch.weights,
                "margins": margins[name],
                "axes": {
                    axis: {key: row[key] for key in KEPT} for axis, row in tables[name if place else EDITED].items()
                },
            }
            for place, (name, patch) in enumerate(patches.items())
        },
    }


def read_by(folder: Path, sheets: list[Path], first: str) -> dict[str, Any]:
    """{label: {axis: {edit: paired rates}}} from filled sheets; `first` is the name of the edit that is stored as
    EDITED. A prompt whose answer was scored is left out, and so is an edit of which a label is lacking."""
    generations = read_typed_lines(folder / "final" / "generations.jsonl", dict)
    scored = {row["prompt"] for row in read_typed_lines(folder / "own" / "answers.jsonl", dict)}
    found: dict[str, Any] = {}
    for judge in map(read_sheet, sheets):
        for axis in CONCEPTS:
            asked = [row for row in generations if row["axis"] == axis and row["prompt"] not in scored]
            said = judge(axis, [row["prompt"] for row in asked], [row["answer"] for row in asked])
            labels: dict[str, dict[str, int]] = {}
            for row, verdict in zip(asked, said, strict=True):
                if verdict.verdict is not None:
                    labels.setdefault(row["model"], {})[row["id"]] = verdict.verdict
            base = labels.pop(BASE)
            for model, edited in labels.items():
                if edited.keys() != base.keys():
                    continue
                columns = (np.array([part[name] for name in base], np.float64) for part in (base, edited))
                rates = paired_rates(*columns).as_json()
                name = first if model == EDITED else model
                found.setdefault(judge.label, {}).setdefault(axis, {})[name] = {key: rates[key] for key in KEPT}
    return found


def readers_table(files: list[Path]) -> str:
    """What readers made of the answers: every label, base and edits."""
    lines = ["| edit | seed | weights | axis | label | n | base | difference | p |", "|" + " --- |" * 9]
    for found in map(read_json, files):
        for label, axes in found["readers"].items():
            for axis, edits in axes.items():
                for name, row in edits.items():
                    cells = [name, found["seed"], f"{found['edits'][name]['weights']:,}", axis, label, row["n"]]
                    cells += [f"{row['base']:.1%}", points(row), p_text(row["p"])]
                    lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def table(files: list[Path]) -> str:
    """Every edit's differences by seed, and their mean over the seeds where there are several of as many weights."""
    results = [read_json(file) for file in files]
    lines = ["| edit | seed | weights | fairness | privacy | over-refusal | coherence | perplexity | KL |"]
    lines += ["|" + " --- |" * 9]
    for name in dict.fromkeys(name for found in results for name in found["edits"]):
        rows = [(found["seed"], found["edits"][name]) for found in results if name in found["edits"]]
        for seed, edit in rows:
            cells = [points(edit["axes"][axis]) for axis in AXES[:4]]
            perplexity = edit["axes"]["perplexity"]
            cells += [f"{perplexity['delta'] / perplexity['base']:+.2%}", f"{edit['axes']['kl']['edited']:.4f}"]
            lines.append(f"| {name} | {seed} | {edit['weights']:,} | " + " | ".join(cells) + " |")
        if len(rows) > 1 and len({edit["weights"] for _, edit in rows}) == 1:
            means = [100 * sum(edit["axes"][axis]["delta"] for _, edit in rows) / len(rows) for axis in AXES[:4]]
            lines.append(
                f"| {name} | mean of {len(rows)} | | " + " | ".join(f"{mean:+.1f}" for mean in means) + " | | |"
            )
    first = [next(iter(found["edits"].values()))["axes"] for found in results]
    base = [f"{axis} {', '.join(format(axes[axis]['base'], '.1%') for axes in first)}" for axis in AXES[:4]]
    return "\n".join([*lines, "", f"Base by seed: {'; '.join(base)}."])


def points(axis: dict[str, Any]) -> str:
    """A difference in points with its interval, in bold where that excludes 0."""
    low, high = axis["ci95"]
    text = f"{100 * axis['delta']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    return f"**{text}**" if low * high > 0 else text


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir")
    parser.add_argument("--work", help="folder for scores and answers")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--effort", default="quick")
    parser.add_argument("--examples", type=int, default=96)
    parser.add_argument("--ratios", type=float, nargs="+", default=[5e-5, 1e-4])
    parser.add_argument("--questions", type=int, default=120, help="held-back questions an axis, at most")
    parser.add_argument("--own-judge", help="the judge that divides the answers (default: the local one)")
    parser.add_argument("--name", default="own", help="of the results: results/NAME-SEED.json")
    parser.add_argument("--sheets", type=Path, nargs="+", help="filled sheets of the final answers, of one seed")
    parser.add_argument("--table", action="store_true", help="print the tables of the committed results")
    arguments = parser.parse_args(words)
    if arguments.table:
        read = sorted(RESULTS.glob("readers-*.json"))
        print("\n\n".join([table(sorted(RESULTS.glob("own-*.json"))), table(read), readers_table(read)]))
        return
    for seed in arguments.seeds:
        file = RESULTS / f"{arguments.name}-{seed}.json"
        if arguments.sheets:
            found = read_json(file)
            first = next(iter(found["edits"]))
            write_json(file, {**found, "readers": read_by(work_of(arguments, seed), arguments.sheets, first)})
            continue
        found = one_seed(arguments, seed)
        untold = ("work", "data_dir", "table", "sheets")
        told = {name: value for name, value in vars(arguments).items() if name not in untold}
        write_json(file, {**machine(torch.get_num_threads()), "arguments": told, **found})
        print(file, flush=True)
    print(table([RESULTS / f"{arguments.name}-{seed}.json" for seed in arguments.seeds]))


if __name__ == "__main__":
    main()
