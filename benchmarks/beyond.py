"""The paper's rule and the product's, at equal cost, on questions that nothing was searched on.

In: a folder of data (BeaverTails, Alpaca-cleaned, SALAD-Bench), seeds. Out: `results/beyond-SEED.json`: per seed, what
the search tried; for each rule the best edit by the proxy at each limit of perplexity; `auto`, the edit that the search
picked by its answers at the first limit; a random control of auto's size; all of them answering the same held-back
questions, with intervals against the base. The first seed has all limits, and the rounds (score, edit, score again).
A run that is cut off continues. `--table` prints what is in the results, at the first limit and over the seeds, as
Markdown; it needs no model. Left out: prompts and answers, which stay in --work.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine

from spin_llm import pipeline
from spin_llm.evaluate.answers import Evaluation
from spin_llm.evaluate.comparison import evaluate
from spin_llm.files import read_json, read_typed, write_json
from spin_llm.patch.patch import Patch, memory_patch
from spin_llm.pipeline.context import Run, encode
from spin_llm.progress import Console
from spin_llm.results.edited import Recipe
from spin_llm.results.file import written
from spin_llm.results.measured import BASE, EDITED
from spin_llm.results.searched import Trial
from spin_llm.scores import ScoreSet, Scoring, score_concept
from spin_llm.scores.storage import candidate_entries
from spin_llm.search.answered import ranked
from spin_llm.search.find import find_edit
from spin_llm.search.trials import Bench, Reference, attempt, measure_proxy, measure_reference
from spin_llm.selection import Selection, random_like, select
from spin_llm.settings import EFFORTS, RunSettings, default_sources

LIMITS = (0.01, 0.02, 0.05)
RATIOS = (2e-6, 1e-5, 5e-5, 1e-4, 5e-4)
RULES = ("coupled", "coupled-signed", "signed")
CONCEPTS = ("fairness", "privacy")
KEPT = ("n", "base", "edited", "delta", "ci95", "p")
AXES = (*CONCEPTS, "over_refusal", "coherence", "perplexity")


def settings_of(model: str, data_dir: str, seed: int, questions: int, effort: str) -> RunSettings:
    sources = default_sources(data_dir)
    asked = (*((name, sources["questions"]) for name in CONCEPTS), ("over_refusal", "starter"))
    return RunSettings(
        model,
        concepts=tuple((name, sources["concepts"]) for name in CONCEPTS),
        protect=(("general", sources["protect"]),),
        questions=asked,
        data_dir=data_dir,
        seed=seed,
        effort=effort,
        examples=EFFORTS[effort].examples,
        max_questions=questions,
        max_perplexity_increase=LIMITS[0],
    )


def tried_ratios(bench: Bench, rules: tuple[str, ...], keep: float) -> list[Trial]:
    """Every rule at every ratio, as the search's opening has them."""
    base = measure_reference(bench.loaded, bench.contrasts, bench.general)
    made = []
    for rule in rules:
        more: dict[str, Any] = {"granularity": "model", "protect_ratio": keep} if rule == "signed" else {}
        for ratio in RATIOS:
            made.append(attempt(bench, len(made), Recipe(rule, ratio, **more), base))
            print(made[-1].recipe.words(), made[-1].weights, made[-1].increase, made[-1].proxy, flush=True)
    return made


def rounds(bench: Bench, settings: RunSettings, data: Any, recipe: Recipe, parts: int) -> dict[str, Any]:
    """The same number of weights in `parts` rounds: score, suppress a part, score again with it suppressed."""
    base = measure_reference(bench.loaded, bench.contrasts, bench.general)
    whole = select(bench.scores, recipe)
    chosen: dict[str, Any] = {}
    scores = bench.scores
    names = list(whole.places)
    for part in range(parts):
        step = select(scores, replace(recipe, ratio=recipe.ratio / parts))
        for name, indices in step.indices.items():
            chosen[name] = indices if name not in chosen else chosen[name].new_tensor(
                sorted({*chosen[name].tolist(), *indices.tolist()})
            )  # fmt: skip
        if part + 1 == parts:
            break
        with memory_patch(bench.loaded, replace(whole, indices=chosen)).applied(bench.loaded):
            encoded = {n: encode(settings, bench.loaded, rows) for n, rows in data.concepts.items()}
            unaware = {n: encode(settings, bench.loaded, rows) for n, rows in data.unaware.items()}
            how = Scoring(("taylor", "margin"), keep=settings.keep)
            concepts = {n: score_concept(bench.loaded, rows, unaware[n], how) for n, rows in encoded.items()}
            entries = candidate_entries(concepts, names)
            protected = {
                n: score_concept(
                    bench.loaded,
                    encode(settings, bench.loaded, rows),
                    how=Scoring(keep=settings.keep),
                    candidates=entries,
                )
                for n, rows in data.protect.items()
            }
            scores = ScoreSet(concepts, protected)
    found = {"weights": sum(map(len, chosen.values())), "rounds": parts}
    for name, selection in (("rounds", replace(whole, indices=chosen)), ("at once", whole)):
        found[name] = measured(bench, selection, base)
    return found


def measured(bench: Bench, selection: Selection, base: Reference) -> dict[str, Any]:
    with memory_patch(bench.loaded, selection).applied(bench.loaded) as edited:
        return asdict(measure_proxy(edited, bench.contrasts, bench.general, base))


def one_seed(arguments: argparse.Namespace, seed: int, limits: tuple[float, ...]) -> dict[str, Any]:
    settings = settings_of(arguments.model, arguments.data_dir, seed, arguments.questions, arguments.effort)
    folder = Path(arguments.work) / f"seed-{seed}"
    console = Console(lambda line: print(line, flush=True))
    pipeline.score(settings, folder, console=console)
    run = Run(settings, folder)
    data, loaded = run.read, run.model
    bench = pipeline.bench_of(run, run.scores)
    search = {axis: asked[: arguments.search] for axis, asked in data.search.items()}
    effort = replace(settings.budget, trials=arguments.trials, survivors=arguments.survivors)
    record = find_edit(
        bench,
        pipeline.usual_recipe(settings, "coupled", 1e-4),
        folder / "search",
        effort=effort,
        questions=Evaluation(search, (), settings.template, settings.new_tokens, seed),
        judges=lambda: (run.judge, run.coherence),
        seed=seed,
        console=console,
    )
    rules = RULES if len(limits) > 1 else ("coupled", "signed")
    grid_file = folder / "grid.json"
    if not grid_file.is_file():
        write_json(
            grid_file,
            [written(trial) for trial in tried_ratios(replace(bench, max_increase=max(limits)), rules, settings.keep)],
        )
    grid, recipe = read_typed(grid_file, list[Trial]), record.recipe
    auto = select(bench.scores, recipe)
    patches: dict[str, tuple[Patch, str]] = {}
    patches[EDITED] = (memory_patch(loaded.model, auto, scale=recipe.scale), recipe.words())
    for limit in limits:
        for rule in rules:
            best = ranked([trial for trial in grid if trial.recipe.rule == rule], CONCEPTS, limit)
            if best:
                selection = select(bench.scores, best[0].recipe)
                name = f"{rule} at {limit:.0%}"
                patches[name] = (memory_patch(loaded.model, selection), best[0].recipe.words())
    patches["random"] = (memory_patch(loaded.model, random_like(auto, seed), scale=recipe.scale), "as many as auto")
    views: dict[str, Any] = {BASE: lambda: nullcontext(loaded)}
    distinct: dict[tuple[str, int], str] = {}
    alias = {}
    for name, (patch, words) in patches.items():
        key = (words, patch.weights)
        alias[name] = distinct.setdefault(key, name)
        if alias[name] == name:
            views[name] = lambda patch=patch: patch.applied(loaded)
    asked = Evaluation(
        data.questions,
        encode(settings, loaded, data.final),
        settings.template,
        settings.new_tokens,
        seed,
    )
    results = evaluate(views, asked, run.judge, folder / "final", coherence=run.coherence, console=console)
    tables = {EDITED: results["axes"], **{name: part["axes"] for name, part in results["controls"].items()}}
    edits = {
        ("auto" if name == EDITED else name): {
            "recipe": words,
            "weights": patch.weights,
            "axes": {
                axis: {key: row[key] for key in KEPT} | {"corrected": row.get("corrected")}
                for axis, row in tables[alias[name]].items()
            },
        }
        for name, (patch, words) in patches.items()
    }
    found: dict[str, Any] = {"seed": seed, "search": written(record), "grid": [written(trial) for trial in grid]}
    found["edits"] = edits
    if arguments.rounds and seed == arguments.seeds[0]:
        most = Recipe("signed", 5e-5, granularity="model", protect_ratio=settings.keep)
        found["rounds"] = rounds(bench, settings, data, most, arguments.rounds)
    return found


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """The edits at the first limit, a row for each edit and seed, then their mean over the seeds with its range; and
    what each seed's search said of its pick.

    Differences from the base with 95% intervals, bold where the interval is on one side of 0: points, and percent of
    the base's for perplexity. Rules that a seed did not try have no row there.
    """
    limit = f" at {LIMITS[0]:.0%}"
    titles = [axis.replace("_", "-") for axis in AXES]
    rows = [["edit", "seed", "recipe", "weights", *titles], ["---"] * (len(AXES) + 4)]
    for name in ("auto", *(rule + limit for rule in RULES), "random"):
        rule = name.removesuffix(limit)
        having = [found for found in results if name in found["edits"]]
        for found in results:
            if found in having:
                edit = found["edits"][name]
                cells = [cell(axis, edit["axes"][axis]) for axis in AXES]
                rows.append([rule, str(found["seed"]), edit["recipe"], f"{edit['weights']:,}", *cells])
            elif any(trial["recipe"]["rule"] == rule for trial in found["grid"]):
                rows.append([rule, str(found["seed"]), "none fits", *[""] * (len(AXES) + 1)])
        if len(having) > 1:
            every = [[part(axis, found["edits"][name]["axes"][axis], "delta") for found in having] for axis in AXES]
            cells = [f"{with_sign(sum(v) / len(v))} ({with_sign(min(v))} to {with_sign(max(v))})" for v in every]
            rows.append([rule, f"mean of {len(having)} (range)", "", "", *cells])
    said = [
        f"- seed {r['seed']}: `found` is {str(r['search']['found']).lower()}. {r['search']['why']}" for r in results
    ]
    return "\n".join([*("| " + " | ".join(row) + " |" for row in rows), "", *said])


def cell(axis: str, row: Mapping[str, Any]) -> str:
    low, high = (part(axis, {"base": row["base"], "end": end}, "end") for end in row["ci95"])
    text = f"{with_sign(part(axis, row, 'delta'))} ({with_sign(low)} to {with_sign(high)})"
    return f"**{text}**" if low > 0 or high < 0 else text


def with_sign(number: float) -> str:
    return f"{number:+.1f}" if round(number, 1) else "0.0"


def part(axis: str, row: Mapping[str, Any], name: str) -> float:
    """A difference in points; of perplexity in percent of the base's."""
    return 100 * row[name] / (row["base"] if axis == "perplexity" else 1)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="print the results of the seeds and do nothing else")
    parser.add_argument("--data-dir")
    parser.add_argument("--work", help="folder for scores and answers")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--effort", default="standard")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--survivors", type=int, default=5)
    parser.add_argument("--search", type=int, default=50, help="search questions an axis")
    parser.add_argument("--questions", type=int, default=150, help="held-back questions an axis, at most")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args(words)
    if arguments.table:
        print(table([read_json(RESULTS / f"beyond-{seed}.json") for seed in arguments.seeds]))
        return
    if not (arguments.data_dir and arguments.work):
        parser.error("--data-dir and --work are needed, or --table")
    for place, seed in enumerate(arguments.seeds):
        file = RESULTS / f"beyond-{seed}.json"
        found = one_seed(arguments, seed, LIMITS if place == 0 else LIMITS[:1])
        told = {name: value for name, value in vars(arguments).items() if name not in ("work", "data_dir", "table")}
        write_json(file, {**machine(torch.get_num_threads()), "arguments": told, **found})
        print(file, flush=True)
        for name, edit in found["edits"].items():
            rows = {axis: row for axis, row in edit["axes"].items() if row["delta"] is not None}
            cells = [f"{axis} {row['delta']:+.3f} {row['ci95']}" for axis, row in rows.items()]
            print(name, edit["recipe"], edit["weights"], *cells, sep=" | ", flush=True)


if __name__ == "__main__":
    main()
