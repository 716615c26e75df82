"""The search on the model's own answers, beside random weights and beside the paper's rule, over seeds.

In: a folder of data (BeaverTails, Alpaca-cleaned, SALAD-Bench), seeds. Out: `results/own-SEED.json`: what the search
tried and picked with `--responses own`, and the final axes of the pick, of as many random weights and of the paper's
rule with as many candidates, on questions that nothing was searched on. The work is `spin-llm run`'s own; a run that is
cut off continues. `--table` prints the Markdown tables of docs/beyond.md from the committed results, without a model.
Left out: prompts and answers, which stay in --work.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from beyond import KEPT, settings_of
from common import RESULTS, machine

from spin_llm import pipeline
from spin_llm.files import read_json, read_jsonl, write_json
from spin_llm.progress import Console

AXES = ("fairness", "privacy", "over_refusal", "coherence", "perplexity", "kl")
LABELS = {"edited": "own answers (the search)", "random": "random weights, as many", "coupled": "the paper's rule"}


def one_seed(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    settings = settings_of(arguments.model, arguments.data_dir, seed, arguments.questions, arguments.effort)
    settings = replace(
        settings,
        responses="own",
        examples=arguments.examples,
        trials=arguments.trials,
        survivors=arguments.survivors,
        max_perplexity_increase=arguments.limit,
        controls=tuple(arguments.controls),
    )
    folder = Path(arguments.work) / f"seed-{seed}"
    results = pipeline.run(settings, folder, console=Console(lambda line: print(line, flush=True)))
    tables = {"edited": results["axes"], **{name: part["axes"] for name, part in results["controls"].items()}}
    weights = {"edited": results["edit"]["weights"]}
    weights |= {name: part["weights"] for name, part in results["controls"].items()}
    own = read_jsonl(folder / "own" / "answers.jsonl")
    return {
        "seed": seed,
        "own": {
            name: {"answers": len(rows), "aware": sum(row["aware"] is True for row in rows)}
            for name, rows in {n: [r for r in own if r["concept"] == n] for n in ("fairness", "privacy")}.items()
        },
        "search": results["search"],
        "edits": {
            name: {
                "weights": weights[name],
                "axes": {axis: {key: axes[axis][key] for key in KEPT} for axis in AXES if axis in axes},
            }
            for name, axes in tables.items()
        },
    }


def table(files: list[Path]) -> str:
    """Every edit's differences by seed, and their mean over the seeds."""
    results = [read_json(file) for file in files]
    lines = ["| edit | seed | weights | fairness | privacy | over-refusal | coherence | perplexity | KL |"]
    lines += ["|" + " --- |" * 9]
    for name, label in LABELS.items():
        rows = [(found["seed"], found["edits"][name]) for found in results if name in found["edits"]]
        for seed, edit in rows:
            cells = [points(edit["axes"][axis]) for axis in AXES[:4]]
            cells += [relative(edit["axes"]["perplexity"]), f"{edit['axes']['kl']['edited']:.4f}"]
            lines.append(f"| {label} | {seed} | {edit['weights']:,} | " + " | ".join(cells) + " |")
        if len(rows) > 1:
            means = [sum(edit["axes"][axis]["delta"] for _, edit in rows) / len(rows) for axis in AXES[:4]]
            lines.append(f"| {label} | mean | | " + " | ".join(f"**{100 * mean:+.1f}**" for mean in means) + " | | |")
    base = [
        f"{axis} {', '.join(format(found['edits']['edited']['axes'][axis]['base'], '.1%') for found in results)}"
        for axis in AXES[:4]
    ]
    return "\n".join([*lines, "", f"Base by seed: {'; '.join(base)}."])


def points(axis: dict[str, Any]) -> str:
    low, high = axis["ci95"]
    return f"{100 * axis['delta']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def relative(axis: dict[str, Any]) -> str:
    return f"{axis['delta'] / axis['base']:+.2%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir")
    parser.add_argument("--work", help="folder for scores and answers")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--effort", default="quick")
    parser.add_argument("--examples", type=int, default=96)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--survivors", type=int, default=3)
    parser.add_argument("--questions", type=int, default=150, help="held-back questions an axis, at most")
    parser.add_argument("--limit", type=float, default=0.01, help="allowed relative rise of perplexity")
    parser.add_argument("--controls", nargs="*", default=["random"])
    parser.add_argument("--table", action="store_true", help="print the tables of the committed results")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(sorted(RESULTS.glob("own-*.json"))))
        return
    for seed in arguments.seeds:
        file = RESULTS / f"own-{seed}.json"
        found = one_seed(arguments, seed)
        told = {name: value for name, value in vars(arguments).items() if name not in ("work", "data_dir", "table")}
        write_json(file, {**machine(torch.get_num_threads()), "arguments": told, **found})
        print(file, flush=True)
    print(table([RESULTS / f"own-{seed}.json" for seed in arguments.seeds]))


if __name__ == "__main__":
    main()
