"""The three homes of the sums over examples give the same sums: torch's operators, the C function, the Triton kernel.

The oracle is a loop in float64 over the factors as they are in their dtype. Triton runs in its interpreter, in a
process of its own, where there is no GPU; the interpreter does not multiply bfloat16.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from conftest import TOLERANCE, TinyModel

from spin_llm.models import editable_matrices
from spin_llm.scores import make_batches, score_concept
from spin_llm.scores.accumulate import KINDS, Accumulate, accumulation, by_operators, compiled, compiler, slow_sums
from spin_llm.scores.plan import make_plan

CPU = torch.device("cpu")
FLOAT32 = TOLERANCE[torch.float32]
# examples, tokens, rows, columns: less than a tile, a tile and one more, many tiles; one token, an odd number of them
SHAPES = [(1, 1, 1, 1), (3, 7, 5, 3), (2, 2, 49, 65), (4, 33, 100, 131), (5, 16, 7, 700), (1, 64, 300, 64)]
SHARE = -0.25


def drawn(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    examples, tokens, rows, columns = shape
    generator = torch.Generator().manual_seed(sum(shape))
    left = torch.randn(examples, tokens, rows, generator=generator).to(dtype)
    right = torch.randn(examples, tokens, columns, generator=generator).to(dtype)
    return left, right, [max(1, tokens - 3 * example) for example in range(examples)]


def oracle(left: torch.Tensor, right: torch.Tensor, tokens: list[int]) -> dict[str, torch.Tensor]:
    gradients = [left[s, :n].double().t() @ right[s, :n].double() for s, n in enumerate(tokens)]
    everything = torch.stack(gradients)
    return {
        "absolute": everything.abs().sum(0),
        "squared": everything.square().sum(0),
        "signed": SHARE * everything.sum(0),
    }


def added(home: Accumulate, left: torch.Tensor, right: torch.Tensor, tokens: list[int], kinds=KINDS) -> dict:
    """What `home` adds to accumulators that held ones."""
    totals = {kind: torch.ones(left.shape[-1], right.shape[-1]) for kind in kinds}
    home(totals, left, right, tokens, SHARE)
    return {kind: total - 1 for kind, total in totals.items()}


def compiled_home(dtype: torch.dtype) -> Accumulate:
    """The C function; where this processor does not multiply bfloat16 itself, what is used instead, which says so."""
    home = accumulation(CPU, dtype)
    assert home is not by_operators or (dtype == torch.bfloat16 and "bfloat16" in slow_sums(CPU, dtype))
    return home


def agree(found: dict[str, torch.Tensor], left: torch.Tensor, right: torch.Tensor, tokens: list[int], bound: float):
    for kind, expected in oracle(left, right, tokens).items():
        scale = oracle(left, right, tokens)["absolute"].max() if kind == "signed" else expected.max()
        assert (found[kind].double() - expected).abs().max() <= bound * max(float(scale), 1), kind


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_sums_are_the_oracles(shape: tuple[int, ...], dtype: torch.dtype):
    left, right, tokens = drawn(shape, dtype)
    home = compiled_home(dtype)
    agree(added(home, left, right, tokens), left, right, tokens, 2**-7 if home is by_operators else FLOAT32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, FLOAT32), (torch.bfloat16, 2**-7), (torch.float16, 2**-10)]
)
def test_operators_sums_are_the_oracles(shape: tuple[int, ...], dtype: torch.dtype, bound: float):
    left, right, tokens = drawn(shape, dtype)
    agree(added(by_operators, left, right, tokens), left, right, tokens, bound)


@pytest.mark.parametrize("kinds", [("absolute",), ("signed",), ("squared",), ("absolute", "signed")])
def test_only_what_is_asked_for_is_summed(kinds: tuple[str, ...]):
    left, right, tokens = drawn((3, 9, 70, 90), torch.float32)
    for home in (by_operators, compiled_home(torch.float32)):
        found = added(home, left, right, tokens, kinds)
        assert set(found) == set(kinds)
        whole = added(home, left, right, tokens)
        assert all(torch.equal(found[kind], whole[kind]) for kind in kinds)


def test_factors_may_be_views():
    """Padding behind an example's tokens is not looked at; a slice of fused experts' gradients is taken as it is."""
    left, right, tokens = drawn((3, 12, 80, 70), torch.float32)
    home = compiled_home(torch.float32)
    expected = added(home, left[..., 10:60].contiguous(), right, tokens)
    spoilt = left.clone()
    for example, length in enumerate(tokens):
        spoilt[example, length:] = float("nan")
    turned = right.transpose(1, 2).contiguous().transpose(1, 2)
    found = added(home, spoilt[..., 10:60], turned, tokens)
    assert all(torch.equal(found[kind], expected[kind]) for kind in KINDS)


def test_sums_do_not_depend_on_the_number_of_threads():
    left, right, tokens = drawn((4, 40, 500, 600), torch.float32)
    home, before = compiled_home(torch.float32), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(added(home, left, right, tokens))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(other[kind], found[0][kind]) for other in found[1:] for kind in KINDS)


def test_what_is_not_finite_stays_seen():
    left, right, tokens = drawn((2, 4, 10, 10), torch.float32)
    left[1, 0, 3] = float("nan")
    found = added(compiled_home(torch.float32), left, right, tokens)
    assert all(found[kind][3].isnan().all() and found[kind][4].isfinite().all() for kind in KINDS)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
@pytest.mark.parametrize("missing", ["", "/bin/false"])
def test_without_a_compiler_the_scores_are_the_same(
    name: str, missing: str, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
):
    """The same selections in float32, values to the last bits; the plan says that it takes longer, and why."""
    loaded, rows = tiny_model(name), (tiny.examples(1), tiny.examples(2))
    fast = score_concept(loaded, *rows)
    monkeypatch.setenv("CC", missing)
    assert accumulation(CPU, torch.float32) is by_operators
    matrices = editable_matrices(loaded.model)
    plan = make_plan(loaded, make_batches(*rows, matrices=matrices), matrices, ("absolute",), statistics=1)
    assert ("could not build" if missing else "no C compiler") in plan.text()
    slow = score_concept(loaded, *rows)
    for matrix, found in slow.matrices.items():
        expected = fast.matrices[matrix]
        assert set(found.indices.tolist()) == set(expected.indices.tolist())
        assert torch.allclose(found.values, expected.values, rtol=1e-5, atol=0)


def test_the_compiler_that_is_there_is_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CC", raising=False)
    assert compiler() is not None
    assert compiled(compiler()) is accumulation(CPU, torch.float32)
    assert slow_sums(CPU, torch.float32) == ""
    assert "float16" in slow_sums(CPU, torch.float16)
    monkeypatch.setenv("CC", str(Path("no", "such", "compiler")))
    assert compiler() is None


def test_no_memory_for_the_factors_is_an_error(monkeypatch: pytest.MonkeyPatch):
    home = compiled_home(torch.float32)
    monkeypatch.setattr(home, "function", lambda *arguments: 1)
    with pytest.raises(MemoryError):
        added(home, *drawn((1, 2, 3, 4), torch.float32))


def test_no_token_adds_nothing():
    """An expert that no token reached."""
    left, right, _ = drawn((1, 2, 70, 80), torch.float32)
    for home in (by_operators, compiled_home(torch.float32)):
        assert not any(total.any() for total in added(home, left[:, :0], right[:, :0], [0]).values())


def test_other_accumulators_are_refused():
    home, (left, right, tokens) = compiled_home(torch.float32), drawn((1, 2, 3, 4), torch.float32)
    for total in (torch.zeros(3, 4, dtype=torch.bfloat16), torch.zeros(4, 3), torch.zeros(4, 3).t()):
        with pytest.raises(TypeError, match="contiguous float32"):
            home({"absolute": total}, left, right, tokens, 1.0)
    with pytest.raises(TypeError, match="one dtype"):
        home({"absolute": torch.zeros(3, 4)}, left, right.bfloat16(), tokens, 1.0)


def test_triton_sums_are_the_oracles():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.split() == ["agreed", str(2 * len(SHAPES))]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_triton_sums_on_a_gpu_are_the_oracles(shape: tuple[int, ...], dtype: torch.dtype):
    from spin_llm.scores.triton_kernel import by_triton

    left, right, tokens = drawn(shape, dtype)
    totals = {kind: torch.zeros(shape[2], shape[3], device="cuda") for kind in KINDS}
    by_triton(totals, left.cuda(), right.cuda(), tokens, SHARE)
    agree({kind: total.cpu() for kind, total in totals.items()}, left, right, tokens, FLOAT32)


def in_the_interpreter() -> None:
    from spin_llm.scores.triton_kernel import by_triton

    count = 0
    for dtype in (torch.float32, torch.float16):
        for shape in SHAPES:
            left, right, tokens = drawn(shape, dtype)
            agree(added(by_triton, left, right, tokens), left, right, tokens, FLOAT32)
            count += 1
    print("agreed", count)


if __name__ == "__main__":
    in_the_interpreter()
