"""The sums of accumulate.py on CUDA, in one Triton kernel: no gradient of an example is ever written to memory.

In: the factors of one matrix's gradients, and its accumulators. Out: the sums added, in float32; products of float32
factors in float32 proper (not TF32). A program owns a tile of the matrix, forms each example's gradient there in
registers, and reads and writes the accumulators once a batch: 8 bytes a weight and batch, where torch's operators move
16 a weight and example. Left out: CPUs (accumulate.c); it runs on them in Triton's interpreter, for tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from spin_llm.scores.accumulate import KINDS, Totals, checked

TILE, DEPTH, WARPS = 128, 32, 8  # rows and columns of the matrix; tokens at a time; warps of a program


@triton.jit
def _add_tile(  # type: ignore[no-untyped-def]
    left, right, tokens, examples, absolute, squared, signed, share, rows, columns,
    left_example, left_token, right_example, right_token,
    ABSOLUTE: tl.constexpr, SQUARED: tl.constexpr, SIGNED: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    depth = tl.arange(0, DEPTH)
    sum_absolute = tl.zeros((TILE, TILE), tl.float32)
    sum_squared = tl.zeros((TILE, TILE), tl.float32)
    sum_signed = tl.zeros((TILE, TILE), tl.float32)
    for example in range(examples):
        length = tl.load(tokens + example)
        gradient = tl.zeros((TILE, TILE), tl.float32)
        for start in range(0, length, DEPTH):
            token = start + depth
            real = token < length
            one = tl.load(
                left + example * left_example + token[None, :] * left_token + row[:, None],
                mask=real[None, :] & (row[:, None] < rows),
                other=0.0,
            )
            other = tl.load(
                right + example * right_example + token[:, None] * right_token + column[None, :],
                mask=real[:, None] & (column[None, :] < columns),
                other=0.0,
            )
            gradient = tl.dot(one, other, gradient, input_precision="ieee")
        if ABSOLUTE:
            sum_absolute += tl.abs(gradient)
        if SQUARED:
            sum_squared += gradient * gradient
        if SIGNED:
            sum_signed += share * gradient
    place = row[:, None].to(tl.int64) * columns + column[None, :]
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    if ABSOLUTE:
        tl.store(absolute + place, tl.load(absolute + place, mask=inside) + sum_absolute, mask=inside)
    if SQUARED:
        tl.store(squared + place, tl.load(squared + place, mask=inside) + sum_squared, mask=inside)
    if SIGNED:
        tl.store(signed + place, tl.load(signed + place, mask=inside) + sum_signed, mask=inside)


def by_triton(totals: Totals, left: torch.Tensor, right: torch.Tensor, tokens: Sequence[int], share: float) -> None:
    """An `Accumulate` (accumulate.py); TypeError for other accumulators."""
    left, right = checked(totals, left, right)
    rows, columns = left.shape[-1], right.shape[-1]
    counts = torch.tensor(tokens, dtype=torch.int32, device=left.device)
    sums = [totals.get(kind) for kind in KINDS]
    some = next(total for total in sums if total is not None)
    _add_tile[triton.cdiv(rows, TILE), triton.cdiv(columns, TILE)](
        left, right, counts, len(tokens), *(some if total is None else total for total in sums), share, rows, columns,
        left.stride(0), left.stride(1), right.stride(0), right.stride(1),
        *(total is not None for total in sums), TILE=TILE, DEPTH=DEPTH, num_warps=WARPS,
    )  # fmt: skip
