"""What a GPU does with all this: the kernel, scoring, answers and patches, on random weights of real shapes.

    python benchmarks/gpu.py [--only kernel,scoring,...] [--models 1.5b,7b] [--budget 480]

In: nothing but a GPU; models are built from configurations of Qwen2's shapes with random weights, which cost what
trained ones do. torch and transformers suffice: what else this package imports and is absent is stood in for. Out: one
table, and results/gpu-NAME.json with device and versions. Sections run in this order while the budget of seconds lasts;
what it did not reach is named. Left out: what an edit does to a model, which random weights cannot tell. `--device cpu
--models tiny` tries the script itself.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))


class Absent(ModuleType):
    """Stands in for a module that is not there and that nothing measured here calls."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Exception,), {"__init__": lambda self, *some, **named: None})


STOOD_IN = [name for name in ("msgspec", "psutil") if importlib.util.find_spec(name) is None]
sys.modules.update({name: Absent(name) for name in STOOD_IN})

from baselines import released  # noqa: E402

from spin_llm.data import Example  # noqa: E402
from spin_llm.generation.batches import continuations  # noqa: E402
from spin_llm.models import LoadedModel, editable_matrices  # noqa: E402
from spin_llm.patch.patch import memory_patch  # noqa: E402
from spin_llm.results.edited import Recipe  # noqa: E402
from spin_llm.scores import passes, score_concept  # noqa: E402
from spin_llm.scores.accumulate import Accumulate, accumulation, by_operators  # noqa: E402
from spin_llm.selection import Selection  # noqa: E402

for absent in STOOD_IN:  # others ask whether these are there
    del sys.modules[absent]

SHAPES = {  # of Qwen2: hidden, between the MLP's matrices, layers, heads, heads of keys and values, tied
    "tiny": (64, 160, 2, 4, 2, True),
    "1.5b": (1536, 8960, 28, 12, 2, True),
    "7b": (3584, 18944, 28, 28, 4, False),
}
VOCABULARY = {"tiny": 500, "1.5b": 151936, "7b": 152064}
TOKENS, RESPONSE, CONCEPTS, EXAMPLES = 110, 80, 3, 128
ROUNDS = 5
TILES = ((128, 32, 8), (128, 64, 8), (64, 64, 4), (128, 32, 4))  # rows and columns, tokens at a time, warps


class Clock:
    """Seconds left of the budget, and seconds of a function on the device."""

    def __init__(self, device: torch.device, budget: float) -> None:
        self.device, self.end = device, time.monotonic() + budget

    def left(self) -> float:
        return self.end - time.monotonic()

    def seconds(self, run: Callable[[], object]) -> float:
        self.wait()
        start = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - start

    def median(self, run: Callable[[], object], rounds: int = ROUNDS) -> float:
        run()  # what is built or loaded at first use is
        return statistics.median(self.seconds(run) for _ in range(rounds))

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def homes(device: torch.device) -> dict[str, Accumulate]:
    """The ways of summing that are compared on this device."""
    if device.type != "cuda":
        return {"operators": by_operators, "compiled": accumulation(device, torch.float32)}
    from spin_llm.scores.triton_kernel import by_triton

    return {"operators": by_operators, "triton": by_triton}


def floors(clock: Clock) -> dict[str, float]:
    """What the device reaches: bytes a second of a sum into float32, FLOP a second of large bfloat16 products."""
    size = 2**28 if clock.device.type == "cuda" else 2**22
    one = torch.zeros(size, device=clock.device)
    side = 8192 if clock.device.type == "cuda" else 512
    matrix = torch.randn(side, side, device=clock.device, dtype=torch.bfloat16)
    return {
        "bytes_a_second": 8 * size / clock.median(lambda: one.add_(1.0)),
        "flop_a_second": 2 * side**3 / clock.median(lambda: matrix @ matrix),
    }


def kernel(clock: Clock, name: str, rates: dict[str, float]) -> dict[str, Any]:
    """Parity with float64 on a corner of an MLP matrix, and seconds for a batch, of each home and tile."""
    hidden, between, *_ = SHAPES[name]
    examples = 14 if name != "tiny" else 3
    tokens = [TOKENS - s for s in range(examples)]
    result: dict[str, Any] = {"rows": between, "columns": hidden, "examples": examples}
    for dtype in (torch.bfloat16, torch.float32):
        left = torch.randn(examples, TOKENS, between, device=clock.device).to(dtype)
        right = torch.randn(examples, TOKENS, hidden, device=clock.device).to(dtype)
        corner = (left[..., -200:].double(), right[..., -150:].double())
        expected = sum((corner[0][s, :n].T @ corner[1][s, :n]).abs() for s, n in enumerate(tokens))
        flop = 2.0 * sum(tokens) * between * hidden
        rows: dict[str, Any] = {"floor_of_bytes": 8 * between * hidden / rates["bytes_a_second"]}
        rows["floor_of_flop"] = flop / rates["flop_a_second"]
        for home, add in homes(clock.device).items():
            for tile in TILES if home == "triton" else (None,):
                total = torch.zeros(between, hidden, device=clock.device)
                run = partial(add, {"absolute": total}, left, right, tokens, 1.0)
                label = home if tile is None else f"{home} {'x'.join(map(str, tile))}"
                try:
                    with tiles(tile):
                        run()
                        error = float((total[-200:, -150:] - expected).abs().max() / expected.max())
                        rows[label] = {"error": error, "seconds": clock.median(run)}
                except Exception as failed:  # noqa: BLE001 - a tile may not fit the device; the others are still measured
                    rows[label] = {"failed": f"{type(failed).__name__}: {failed}"[:300]}
        result[str(dtype).removeprefix("torch.")] = rows
    return result


def tiles(tile: tuple[int, int, int] | None) -> Any:
    if tile is None:
        return mock.patch.dict({})
    return mock.patch.multiple("spin_llm.scores.triton_kernel", TILE=tile[0], DEPTH=tile[1], WARPS=tile[2])


def random_model(name: str, device: torch.device) -> LoadedModel:
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

    hidden, between, layers, heads, groups, tied = SHAPES[name]
    config = Qwen2Config(
        vocab_size=VOCABULARY[name],
        hidden_size=hidden,
        intermediate_size=between,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        tie_word_embeddings=tied,
        eos_token_id=None,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="a")
    checkpoint: Any = SimpleNamespace(fingerprint=f"random weights, {name}")
    return LoadedModel(name, model, tokenizer, checkpoint)


def random_examples(loaded: LoadedModel, count: int, seed: int) -> list[Example]:
    """About TOKENS tokens each."""
    generator = torch.Generator().manual_seed(seed)
    lengths = (TOKENS + torch.randint(-15, 16, (count,), generator=generator)).tolist()
    drawn = [torch.randint(0, 400, (length,), generator=generator).tolist() for length in lengths]
    return [Example(tuple(ids), min(RESPONSE, len(ids) - 1), 0, f"{n}") for n, ids in enumerate(drawn)]


def scoring(clock: Clock, loaded: LoadedModel, count: int) -> dict[str, Any]:
    """Seconds and peak memory of CONCEPTS concepts of `count` examples each, by each home; beside them two layers of
    the released algorithm on two examples, extrapolated to all layers and examples."""
    sets = [random_examples(loaded, count, seed) for seed in range(CONCEPTS)]
    result: dict[str, Any] = {"examples": CONCEPTS * count, "parameters": loaded.model.num_parameters()}
    for home, add in homes(clock.device).items():
        with mock.patch.object(passes, "accumulation", lambda device, dtype, add=add: add):
            score_concept(loaded, sets[0][:2])  # kernels are built
            reset_peak(clock)
            taken = [clock.seconds(lambda rows=rows: score_concept(loaded, rows)) for rows in sets]
        result[home] = {"seconds": sum(taken), "seconds_by_concept": taken, "peak_bytes": peak(clock)}
    layers = sorted({matrix.layer for matrix in editable_matrices(loaded.model, "mlp")})
    some = [layers[0], layers[-1]]
    released(loaded, sets[0][:1], some)
    seconds = clock.seconds(lambda: released(loaded, sets[0][:2], some))
    scale = len(layers) / len(some) * CONCEPTS * count / 2
    result["released, extrapolated from two layers and two examples"] = {"seconds": seconds * scale}
    return result


def answers(clock: Clock, loaded: LoadedModel, count: int) -> dict[str, Any]:
    """Answers of 64 new tokens each, to prompts of some 30 tokens."""
    prompts = [list(example.input_ids[:30]) for example in random_examples(loaded, count, 9)]
    run = lambda some: [made for batch in continuations(loaded, some, 64) for made in batch]  # noqa: E731
    run(prompts[:2])
    reset_peak(clock)
    seconds = clock.seconds(lambda: run(prompts))
    return {"answers": count, "seconds": seconds, "answers_a_second": count / seconds, "peak_bytes": peak(clock)}


def patching(clock: Clock, loaded: LoadedModel) -> dict[str, Any]:
    """Some weights of every MLP matrix to zero and back: every parameter bit for bit as before."""
    before = [parameter.clone() for parameter in loaded.model.parameters()]
    matrices = editable_matrices(loaded.model, "mlp")
    sizes = {matrix.name: matrix.weight.numel() for matrix in matrices}
    chosen = {name: torch.arange(0, size, max(1, size // 1000)) for name, size in sizes.items()}
    patch = memory_patch(loaded, Selection(chosen, Recipe("chosen by place", 1e-3), {}))
    changed = sum(int((edit.old != 0).sum()) for edit in patch.edits.values())
    start = time.perf_counter()
    with patch.applied(loaded):
        clock.wait()
        on = time.perf_counter() - start
        pairs = list(zip(before, loaded.model.parameters(), strict=True))
        differ = sum(int((one != other).sum()) for one, other in pairs)
        start = time.perf_counter()
    clock.wait()
    off = time.perf_counter() - start
    same = all(torch.equal(one.view(torch.int16), other.view(torch.int16)) for one, other in pairs)
    assert differ == changed, "the edit did not reach every weight"
    assert same, "the revert left a difference"
    return {"weights": changed, "apply_seconds": on, "revert_seconds": off, "reverted_bit_for_bit": same}


def suite() -> dict[str, Any]:
    """The tests of the kernels, on this machine."""
    command = [sys.executable, "-m", "pytest", "-q", "-k", "sums", str(ROOT / "tests/parity/test_accumulate.py")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    lines = (result.stdout + result.stderr).strip().splitlines()
    return {"code": result.returncode, "closing": lines[-1] if lines else ""}


def reset_peak(clock: Clock) -> None:
    if clock.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(clock.device)


def peak(clock: Clock) -> int | None:
    return torch.cuda.max_memory_allocated(clock.device) if clock.device.type == "cuda" else None


def about(device: torch.device) -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"device": platform.processor(), "python": platform.python_version(), "stood_in": STOOD_IN}
    if device.type == "cuda":
        found |= {"device": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    for package in ("torch", "transformers", "triton"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def table(result: dict[str, Any]) -> str:
    """Every number, a line each."""

    def lines(value: Any, path: tuple[str, ...]) -> list[str]:
        if isinstance(value, dict):
            return [line for key, inner in value.items() for line in lines(inner, (*path, str(key)))]
        return [f"{' / '.join(path):78} {f'{value:,.4g}' if isinstance(value, float) else value}"]

    return "\n".join(lines(result, ()))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(arguments.device)
    clock = Clock(device, arguments.budget)
    result: dict[str, Any] = {"about": about(device), "rates": floors(clock)}
    wanted = arguments.only.split(",")

    def section(name: str, run: Callable[[], dict[str, Any]]) -> None:
        if name.split(" ")[0] not in wanted:
            return
        if clock.left() <= 0:
            result[name] = {"not reached": f"the budget of {arguments.budget:.0f} s was used up"}
            return
        start = time.monotonic()
        try:
            result[name] = run()
        except Exception as failed:  # noqa: BLE001 - one section that breaks must not cost the others on a lent machine
            result[name] = {"failed": f"{type(failed).__name__}: {failed}"[:2000]}
        result[name]["section_seconds"] = time.monotonic() - start
        print(f"{name}: {result[name]['section_seconds']:.0f} s", flush=True)

    for name in arguments.models.split(","):
        section(f"kernel {name}", partial(kernel, clock, name, result["rates"]))
    for name in arguments.models.split(","):
        count = EXAMPLES if name != "tiny" else 8
        loaded = random_model(name, device)
        section(f"scoring {name}", partial(scoring, clock, loaded, count))
        section(f"answers {name}", partial(answers, clock, loaded, 2 * count))
        section(f"patch {name}", partial(patching, clock, loaded))
        del loaded
    section("suite", suite)
    return result


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="kernel,scoring,answers,patch,suite")
    parser.add_argument("--models", default="1.5b,7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--budget", type=float, default=420, help="seconds after which no further section begins")
    parser.add_argument("--output", type=Path, help="default: results/gpu-NAME.json beside this file")
    arguments = parser.parse_args(given)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("No CUDA device is here: this measures one. --device cpu --models tiny tries the script.")
    result = measure(arguments)
    name = re.sub(r"[^a-z0-9]+", "-", str(result["about"]["device"]).lower()).strip("-")
    output = arguments.output or Path(__file__).parent / "results" / f"gpu-{name}.json"
    output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{table(result)}\n{os.path.relpath(output)}")
    if broken := [name for name, found in result.items() if isinstance(found, dict) and "failed" in found]:
        raise SystemExit(f"failed: {', '.join(broken)}")


if __name__ == "__main__":
    main()
