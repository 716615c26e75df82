"""How fast scoring is, and how much memory it takes, beside the released algorithm and a plain training pass.

    python benchmarks/scoring.py [--only speed,memory,...] [--rounds 3] [--model smollm2-135m]

In: a model, pairs of the starter set (about 80 tokens each), the MLP matrices as the target. Out: tables, and
results/scoring.json, section by section. Sections: speed, memory, passes, plan, examples, length, ranks, work, sums,
profile, checkpoint. What is compared runs in interleaved rounds of one process (memory, passes, plan, ranks: of their
own); numbers are medians with their range. Left out: GPUs (gpu.py).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from baselines import plain, released
from common import (
    RESULTS,
    divided,
    examples_of_about,
    examples_of_exactly,
    interleaved,
    machine,
    mebibytes,
    recorded,
    span,
    store,
    timing,
)
from work import Product, measured_rate, seconds_of_sums, unavoidable

from spin_llm.data import Example, load_questions
from spin_llm.generation.batches import Answer, generate
from spin_llm.judges.named import load_judge
from spin_llm.models import LoadedModel, Matrix, editable_matrices, load
from spin_llm.models.loading import load_empty
from spin_llm.models.losses import fast_attention, mean_loss
from spin_llm.pipeline.estimate import measured_rates
from spin_llm.pipeline.machines import counted
from spin_llm.scores import Passes, Plan, importance, make_batches, make_plan, ranks, score_concept
from spin_llm.scores import concept as scoring_module
from spin_llm.scores import plan as plan_module
from spin_llm.scores.accumulate import accumulation, by_operators
from spin_llm.scores.importance import new_totals
from spin_llm.scores.passes import scoring
from spin_llm.scores.plan import memory_now, peak_memory
from spin_llm.settings import RunSettings

PROFILED = 12
SEVERAL = ("lengths", "dtypes")  # settings that take several words
PLAN_TRIES = 8


@dataclass(frozen=True)
class Settings:
    """What is measured, and how much of it."""

    model: str = "smollm2-135m"
    rounds: int = 3
    threads: int = os.cpu_count() or 1
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    tokens: int = 80
    examples: int = 64
    released_examples: int = 2
    plain_examples: int = 8
    layers: int = 0  # of the released algorithm, evenly spread; 0 is all of them
    passes: int = 4
    pass_examples: int = 32
    plan_models: tuple[str, ...] = ("smollm2-135m",)
    plan_questions: int = 16
    lengths: tuple[int, ...] = (40, 80, 160, 320)
    length_examples: int = 16
    checkpoint_examples: int = 768
    output: str = str(RESULTS / "scoring.json")


@cache
def loaded_model(model: str, dtype: str) -> LoadedModel:
    return load(model, dtype=dtype)


def spread_layers(settings: Settings, loaded: LoadedModel) -> list[int]:
    """The layers that the released algorithm is timed on."""
    layers = sorted({matrix.layer for matrix in editable_matrices(loaded.model, "mlp")})
    if not 0 < settings.layers < len(layers):
        return layers
    return [layers[round(place * (len(layers) - 1) / max(settings.layers - 1, 1))] for place in range(settings.layers)]


def ours(loaded: LoadedModel, examples: Sequence[Example]) -> None:
    importance(loaded, examples, editable_matrices(loaded.model, "mlp"))


def algorithms(settings: Settings) -> dict[str, tuple[Callable[[LoadedModel, Sequence[Example]], object], int, float]]:
    """By name: the function, on how many examples it is timed, and by what its seconds are multiplied (the released
    algorithm on a part of the layers)."""
    layers = spread_layers(settings, loaded_model(settings.model, settings.dtypes[0]))
    everywhere = spread_layers(replace(settings, layers=0), loaded_model(settings.model, settings.dtypes[0]))
    return {
        "released": (partial(released, layers=layers), settings.released_examples, len(everywhere) / len(layers)),
        "plain": (plain, settings.plain_examples, 1.0),
        "ours": (ours, settings.examples, 1.0),
    }


def speed(settings: Settings) -> dict[str, Any]:
    """Seconds an example of the three algorithms in float32 and bfloat16, and the ratios that matter."""
    runs: dict[str, Callable[[], object]] = {}
    scale: dict[str, float] = {}
    for name, (function, count, factor) in algorithms(settings).items():
        for dtype in settings.dtypes:
            loaded = loaded_model(settings.model, dtype)
            examples = examples_of_about(loaded, settings.tokens, count)
            function(loaded, examples[:1])  # kernels are loaded
            runs[f"{name} {dtype}"] = partial(function, loaded, examples)
            scale[f"{name} {dtype}"] = count / factor
    measured = {name: divided(value, scale[name]) for name, value in interleaved(runs, settings.rounds).items()}
    median = {name: value["median"] for name, value in measured.items()}
    scored = examples_of_about(loaded_model(settings.model, settings.dtypes[0]), settings.tokens, settings.examples)
    ratios = {
        f"released / ours, {dtype}": median[f"released {dtype}"] / median[f"ours {dtype}"] for dtype in settings.dtypes
    }
    ratios |= {
        f"ours {dtype} / plain float32": median[f"ours {dtype}"] / median["plain float32"] for dtype in settings.dtypes
    }
    print(f"{'seconds an example':24} median (range)")
    for name, value in measured.items():
        print(f"{name:24} {span(value)}")
    for name, ratio in ratios.items():
        print(f"{name:32} {ratio:.2f}")
    return {
        "seconds_an_example": measured,
        "ratios": ratios,
        "mean_tokens": sum(len(example.input_ids) for example in scored) / len(scored),
        "mean_response_tokens": sum(example.response_tokens for example in scored) / len(scored),
        "examples_timed": {name: count for name, (_, count, _) in algorithms(settings).items()},
        "released_is_extrapolated_from_layers": settings.layers or None,
    }


def memory(settings: Settings) -> dict[str, Any]:
    """Peak memory of each algorithm, each in a process of its own."""
    found = {}
    for name in ("released", "plain", "ours"):
        for dtype in settings.dtypes:
            found[f"{name} {dtype}"] = in_process("memory", settings, algorithm=name, dtype=dtype)
    print(f"{'peak memory':24} {'in all':>12} {'beside the loaded model':>24}")
    for name, value in found.items():
        print(f"{name:24} {mebibytes(value['peak']):>12} {mebibytes(value['peak'] - value['loaded']):>24}")
    return {"bytes": found}


def memory_job(settings: Settings, algorithm: str, dtype: str) -> dict[str, Any]:
    loaded = load(settings.model, dtype=dtype)
    function, count, _ = {
        "released": (partial(released, layers=spread_layers(replace(settings, layers=2), loaded)), 2, 0),
        "plain": (plain, 2, 0),
        "ours": (ours, settings.pass_examples, 0),
    }[algorithm]
    examples = examples_of_about(loaded, settings.tokens, count)
    touch(loaded)
    before = memory_now(loaded.device)
    with peak_memory(loaded.device) as peak:
        function(loaded, examples)
        return {"loaded": before, "peak": peak()}


def touch(loaded: LoadedModel) -> None:
    """Read every weight once: those mapped from the file are not in memory before."""
    for parameter in loaded.model.parameters():
        parameter.sum()


def passes(settings: Settings) -> dict[str, Any]:
    """One pass against several by memory budget: time, accumulator bytes, and the plan's peak beside the measured."""
    found: dict[int, list[dict[str, Any]]] = {1: [], settings.passes: []}
    for _ in range(settings.rounds):
        for wanted, rows in found.items():
            rows.append(in_process("passes", settings, wanted=wanted))
    result: dict[str, Any] = {}
    for wanted, rows in found.items():
        result[str(wanted)] = {
            "seconds": timing([row["seconds"] for row in rows]),
            "planned_seconds": timing([row["planned_seconds"] for row in rows]),
            "accumulators": rows[0]["accumulators"],
            "planned_peak": [row["planned_peak"] for row in rows],
            "measured_peak": [row["measured_peak"] for row in rows],
            "plan_over_measured": timing([row["planned_peak"] / row["measured_peak"] for row in rows]),
        }
    one, many = result["1"], result[str(settings.passes)]
    result["time_ratio"] = many["seconds"]["median"] / one["seconds"]["median"]
    result["accumulators_ratio"] = many["accumulators"] / one["accumulators"]
    print(f"{'passes':8} {'seconds':>24} {'planned':>10} {'accumulators':>14} {'peak planned/measured':>24}")
    for name in ("1", str(settings.passes)):
        row = result[name]
        print(
            f"{name:8} {span(row['seconds'], 1):>24} {row['planned_seconds']['median']:>10.1f} "
            f"{mebibytes(row['accumulators']):>14} {span(row['plan_over_measured'], 2):>24}"
        )
    print(f"time {result['time_ratio']:.2f} times, accumulators {result['accumulators_ratio']:.2f} of one pass's")
    return result


def passes_job(settings: Settings, wanted: int) -> dict[str, Any]:
    loaded = load(settings.model)
    examples = examples_of_about(loaded, settings.tokens, settings.pass_examples)
    plan = plan_of_passes(loaded, examples, wanted)
    with peak_memory(loaded.device) as peak:
        start = time.perf_counter()
        score_concept(loaded, examples, passes=Passes(plan))
        seconds = time.perf_counter() - start
        measured = peak()
    return {
        "seconds": seconds,
        "planned_seconds": plan.seconds,
        "accumulators": plan.accumulators,
        "planned_peak": plan.peak,
        "measured_peak": measured,
    }


def plan_of_passes(loaded: LoadedModel, examples: Sequence[Example], wanted: int) -> Plan:
    """A plan of `wanted` passes, asked for by a memory budget; all matrices together are measured once, as a run
    would, and not again at each try."""
    matrices = editable_matrices(loaded.model, "mlp")
    batches, kinds = make_batches(examples), ("absolute",)
    measure = plan_module.measure
    everything = measure(loaded, batches, matrices, kinds)

    def measured(_: LoadedModel, __: Any, some: Sequence[Matrix], ___: Any) -> tuple[int, int, float]:
        return everything if len(some) == len(matrices) else measure(loaded, batches, some, kinds)

    with mock.patch.object(plan_module, "measure", measured):
        make = partial(make_plan, loaded, batches, matrices, kinds, statistics=1)
        plan = whole = make()
        for attempt in range(PLAN_TRIES):
            if len(plan.partitions) == wanted:
                return plan
            share = whole.accumulators * (1 + 0.02 * attempt) / wanted  # whole matrices do not fill a share exactly
            plan = make(budget=max(whole.batch, whole.finishing) + math.ceil(share))
    raise SystemExit(f"No budget gave {wanted} passes; the last gave {len(plan.partitions)}.")


def plan_section(settings: Settings) -> dict[str, Any]:
    """What a plan says beside what is measured, in the same minutes: each kind of a run's work, and peak memory."""
    result: dict[str, Any] = {}
    for model in settings.plan_models:
        rows = [in_process("plan", settings, model=model) for _ in range(settings.rounds)]
        kinds = {kind: timing([row[kind][0] / row[kind][1] for row in rows]) for kind in rows[0]}
        result[Path(model).stem] = {"planned_over_measured": kinds, "rounds": rows}
        print(f"{Path(model).stem}: " + ", ".join(f"{kind} {span(value, 2)}" for kind, value in kinds.items()))
    return result


def plan_job(settings: Settings, model: str) -> dict[str, Any]:
    """(planned, measured) by kind of work: seconds, and of memory bytes; and the arithmetic for other machines."""
    loaded = load(model)
    examples = examples_of_about(loaded, settings.tokens, settings.pass_examples)
    asked = {"fairness": load_questions("starter", concept="fairness").questions[: settings.plan_questions]}
    own = RunSettings(model, template="raw")
    plan = plan_of_passes(loaded, examples, 1)
    with peak_memory(loaded.device) as peak:
        found: dict[str, list[float]] = {
            "scoring": [plan.seconds, seconds_of(lambda: score_concept(loaded, examples, passes=Passes(plan)))]
        }
        memory = [plan.peak, peak()]
    rates = measured_rates(own, loaded, examples, asked)
    tokens = sum(len(example.input_ids) for example in examples)
    found["reading"] = [rates.token * tokens, seconds_of(lambda: mean_loss(loaded, examples))]
    prompts = [question.asked for question in asked["fairness"]]
    made: list[Answer] = []
    answering = seconds_of(lambda: made.extend(a for b in generate(loaded, prompts, template="raw") for a in b))
    found["answers"] = [rates.answer * len(prompts), answering]
    judge = load_judge("local")
    judge("fairness", ["Why?"], ["So."])  # it is loaded
    said = [answer.answer or "-" for answer in made], [question.prompt for question in asked["fairness"]]
    found["verdicts"] = [rates.verdict * len(prompts), seconds_of(lambda: judge("fairness", said[1], said[0]))]
    found["in all"] = [sum(row[place] for row in found.values()) for place in (0, 1)]
    empty = load_empty(model)
    with fast_attention(loaded, settings.tokens):
        empty.model.set_attn_implementation(loaded.model.config._attn_implementation)
    work = counted(empty, make_batches(examples), editable_matrices(empty.model, "mlp"), ("absolute",))
    flops, _ = work.flops_and_bytes(work.matrices)
    counts = {"GFLOP by arithmetic / second": [flops / 1e9, found["scoring"][1]]}
    return {**found, "peak memory": memory, **counts, "batch by arithmetic": [work.batch, plan.batch]}


def seconds_of(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def examples_section(settings: Settings) -> dict[str, Any]:
    """Seconds by number of examples, in bfloat16 where it is fast."""
    loaded = loaded_model(settings.model, "auto")
    counts = [settings.examples // 4, settings.examples // 2, settings.examples]
    sets = {str(count): examples_of_about(loaded, settings.tokens, count) for count in counts}
    return scaling("examples", loaded, sets, settings.rounds)


def length_section(settings: Settings) -> dict[str, Any]:
    """Seconds by tokens an example."""
    loaded = loaded_model(settings.model, "auto")
    sets = {str(tokens): examples_of_exactly(loaded, tokens, settings.length_examples) for tokens in settings.lengths}
    return scaling("tokens", loaded, sets, settings.rounds)


def scaling(what: str, loaded: LoadedModel, sets: dict[str, list[Example]], rounds: int) -> dict[str, Any]:
    ours(loaded, next(iter(sets.values()))[:2])
    measured = interleaved({name: partial(ours, loaded, examples) for name, examples in sets.items()}, rounds)
    rows = {}
    print(f"{what:10} {'seconds an example':>24} {'tokens a second':>18}")
    for name, examples in sets.items():
        each = divided(measured[name], len(examples))
        tokens = sum(len(example.input_ids) for example in examples)
        rows[name] = {"seconds_an_example": each, "tokens_a_second": tokens / measured[name]["median"]}
        print(f"{name:10} {span(each):>24} {rows[name]['tokens_a_second']:>18,.0f}")
    return rows


def ranks_section(settings: Settings) -> dict[str, Any]:
    """One process with all threads against two with half of them each."""
    if settings.threads < 2:
        print("ranks: skipped, there is one thread")
        return {"skipped": "one thread"}
    found: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(settings.rounds):
        for count, seconds in found.items():
            threads = settings.threads // count
            seconds.append(in_process("ranks", replace(settings, threads=threads), processes=count)["seconds"])
    rows = {str(count): divided(timing(seconds), settings.examples) for count, seconds in found.items()}
    for count, row in rows.items():
        print(f"{count} ranks of {settings.threads // int(count)} threads: {span(row)} seconds an example")
    return {"seconds_an_example": rows, "speed_up": rows["1"]["median"] / rows["2"]["median"]}


def ranks_job(settings: Settings) -> dict[str, Any] | None:
    with ranks() as joined:
        loaded = load(settings.model)
        examples = examples_of_about(loaded, settings.tokens, settings.examples)
        score_concept(loaded, examples[: 2 * joined.world], passes=Passes(ranks=joined))
        joined.wait()
        start = time.perf_counter()
        score_concept(loaded, examples, passes=Passes(ranks=joined))
        return {"seconds": time.perf_counter() - start} if joined.first else None


def work_section(settings: Settings) -> dict[str, Any]:
    """Unavoidable GFLOP, the rate of this machine on their shapes, and how near the scoring pass comes."""
    results: dict[str, Any] = {}
    for dtype in settings.dtypes:
        loaded = loaded_model(settings.model, dtype)
        matrices = editable_matrices(loaded.model, "mlp")
        examples = examples_of_about(loaded, settings.tokens, settings.examples)
        batch = len(make_batches(examples)[0].examples)
        products = unavoidable(loaded, matrices, examples)
        rates = {product: measured_rate(product, loaded.dtype, batch) for product in products}
        sums = seconds_of_sums(matrices, loaded.dtype)
        ours(loaded, examples[:1])
        measured = interleaved({"ours": partial(ours, loaded, examples)}, settings.rounds)["ours"]
        results[dtype] = accounted(products, rates, sums, measured["median"] / len(examples))
        print_work(dtype, results[dtype])
    return results


def accounted(products: Sequence[Product], rates: dict[Product, float], sums: float, seconds: float) -> dict[str, Any]:
    """Work, rate and time bound by purpose, and the fraction of the bound that `seconds` an example reach."""
    purposes: dict[str, dict[str, float]] = {}
    for product in products:
        row = purposes.setdefault(product.purpose, {"gflop": 0.0, "seconds": 0.0})
        row["gflop"] += product.gflop
        row["seconds"] += product.gflop / rates[product]
    gflop, bound = (sum(row[key] for row in purposes.values()) for key in ("gflop", "seconds"))
    return {
        "purposes": purposes,
        "gflop_an_example": gflop,
        "seconds_of_products": bound,
        "seconds_of_sums": sums,
        "seconds_measured": seconds,
        "gflops_achieved": gflop / seconds,
        "gflops_of_the_machine": gflop / bound,
        "fraction_of_bound": bound / seconds,
    }


def print_work(dtype: str, result: dict[str, Any]) -> None:
    print(f"{dtype:28} {'GFLOP':>8} {'GFLOP/s':>9} {'seconds':>9}")
    for purpose, row in result["purposes"].items():
        print(f"{purpose:28} {row['gflop']:>8.2f} {row['gflop'] / row['seconds']:>9.0f} {row['seconds']:>9.4f}")
    print(
        f"{'all products, at best':28} {result['gflop_an_example']:>8.2f} {result['gflops_of_the_machine']:>9.0f} "
        f"{result['seconds_of_products']:>9.4f}\n"
        f"{'|.| and float32 sums':28} {'':>8} {'':>9} {result['seconds_of_sums']:>9.4f}\n"
        f"{'measured':28} {'':>8} {result['gflops_achieved']:>9.0f} {result['seconds_measured']:>9.4f}   "
        f"{result['fraction_of_bound']:.0%} of the products' bound"
    )


def sums_section(settings: Settings) -> dict[str, Any]:
    """Seconds for the sums of one batch at each shape of MLP matrix: compiled, by torch's operators, and the products
    alone, which are written to memory. In turn, so that a slow spell meets all."""
    results: dict[str, Any] = {}
    print(f"{'ms a batch':34} {'compiled':>22} {'operators':>22} {'products alone':>22}")
    for dtype in settings.dtypes:
        loaded = loaded_model(settings.model, dtype)
        examples = make_batches(examples_of_about(loaded, settings.tokens, settings.examples))[0].examples
        tokens = [len(example.input_ids) for example in examples]
        for shape in sorted({tuple(m.weight.shape) for m in editable_matrices(loaded.model, "mlp")}):
            left, right = (torch.randn(len(tokens), max(tokens), width).to(loaded.dtype) for width in shape)
            totals = {"absolute": torch.zeros(shape)}
            runs: dict[str, Callable[[], object]] = {
                "compiled": partial(accumulation(loaded.device, loaded.dtype), totals, left, right, tokens, 1.0),
                "operators": partial(by_operators, totals, left, right, tokens, 1.0),
                "products alone": partial(by_operators, {}, left, right, tokens, 1.0),
            }
            for run in runs.values():
                run()
            measured = interleaved(runs, max(settings.rounds, 5))
            name = f"{dtype} {shape[0]} x {shape[1]}"
            gflop = 2e-9 * sum(tokens) * shape[0] * shape[1]
            results[name] = {"examples": len(tokens), "gflop": gflop, **measured}
            times = [span(divided(row, 1e-3), 1) for row in measured.values()]
            print(f"{name:34} " + " ".join(f"{time:>22}" for time in times))
    return results


def profile_section(settings: Settings) -> dict[str, Any]:
    """Where the time of one full batch goes: operators by their own time."""
    results = {}
    for dtype in settings.dtypes:
        loaded = loaded_model(settings.model, dtype)
        matrices = editable_matrices(loaded.model, "mlp")
        batch = make_batches(examples_of_about(loaded, settings.tokens, settings.examples))[0]
        totals = {m.name: new_totals(("absolute",), m.weight, transposed=m.transposed) for m in matrices}
        with scoring(loaded, matrices, totals) as add:
            add(batch)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                add(batch)
        events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
        total = sum(event.self_cpu_time_total for event in events)
        rows = [
            {"operator": e.key, "share": e.self_cpu_time_total / total, "calls": e.count} for e in events[:PROFILED]
        ]
        results[dtype] = {"seconds": total / 1e6, "examples": len(batch.examples), "operators": rows}
        print(f"{dtype}: {total / 1e6:.1f} s for a batch of {len(batch.examples)}")
        for row in rows:
            print(f"  {row['share']:>6.1%} {row['calls']:>6} {row['operator'][:80]}")
    return results


def checkpoint_section(settings: Settings) -> dict[str, Any]:
    """The part of a long concept's time that writing its progress takes."""
    loaded = loaded_model(settings.model, "auto")
    once = examples_of_about(loaded, settings.tokens, min(settings.checkpoint_examples, settings.examples))
    examples = (once * (settings.checkpoint_examples // len(once) + 1))[: settings.checkpoint_examples]
    spent: list[float] = []
    write = scoring_module._checkpoint

    def timed(*arguments: Any) -> None:
        start = time.perf_counter()
        write(*arguments)
        spent.append(time.perf_counter() - start)

    with (
        tempfile.TemporaryDirectory(dir=RESULTS.parent) as folder,
        mock.patch.object(scoring_module, "_checkpoint", timed),
    ):
        start = time.perf_counter()
        score_concept(loaded, examples, passes=Passes(folder=Path(folder)))
        seconds = time.perf_counter() - start
    print(f"{len(spent)} checkpoints in {seconds:.0f} s took {sum(spent):.2f} s: {sum(spent) / seconds:.2%}")
    return {"seconds": seconds, "checkpoints": spent, "share": sum(spent) / seconds, "examples": len(examples)}


JOBS: dict[str, Callable[..., dict[str, Any] | None]] = {
    "memory": memory_job,
    "passes": passes_job,
    "plan": plan_job,
    "ranks": ranks_job,
}
SECTIONS: dict[str, Callable[[Settings], dict[str, Any]]] = {
    "speed": speed,
    "memory": memory,
    "passes": passes,
    "plan": plan_section,
    "examples": examples_section,
    "length": length_section,
    "ranks": ranks_section,
    "work": work_section,
    "sums": sums_section,
    "profile": profile_section,
    "checkpoint": checkpoint_section,
}


def in_process(job: str, settings: Settings, *, processes: int = 1, **options: Any) -> dict[str, Any]:
    """What one of JOBS returns in a new process, or on rank 0 of several."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    task = json.dumps({"job": job, "settings": asdict(settings), "options": options})
    result = subprocess.run(
        [sys.executable, *launcher, __file__, "--task", task],
        env={**os.environ, "OMP_NUM_THREADS": str(settings.threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    if result.returncode or not lines:
        raise SystemExit(f"The job {job} failed:\n{result.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def settled(given: dict[str, Any]) -> Settings:
    return Settings(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def do_task(text: str) -> None:
    task = json.loads(text)
    settings = settled(task["settings"])
    torch.set_num_threads(settings.threads)
    result = JOBS[task["job"]](settings, **task["options"])
    if result is not None:
        print(json.dumps(result), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    defaults = Settings()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"sections, of {','.join(SECTIONS)}")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    for name, value in asdict(defaults).items():
        several = {"type": type(value[0]), "nargs": "+"} if isinstance(value, tuple) else {"type": type(value)}
        parser.add_argument(f"--{name.replace('_', '-')}", default=value, **several)
    given = vars(parser.parse_args(arguments))
    only, task = given.pop("only").split(","), given.pop("task")
    if task:
        do_task(task)
        return
    if unknown := set(only) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    settings = settled(given)
    torch.set_num_threads(settings.threads)
    for name in only:
        print(f"\n== {name}", flush=True)
        made = machine(settings.threads)
        result = SECTIONS[name](settings)
        store(Path(settings.output), name, {"made": made, "settings": recorded(settings), **result})
    print(f"\n{settings.output}")


if __name__ == "__main__":
    main()
