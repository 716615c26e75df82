"""How much arithmetic scoring cannot avoid, and how fast this machine does it.

In: a loaded model, the targeted matrices, examples. Out: GFLOP an example by purpose (a multiply-add counts two), and
measured GFLOP/s of matrix products of the very shapes, so that a time bound follows. Counted: every linear map of the
decoder forward; gradients with respect to inputs wherever something targeted lies below; weight gradients of the
targeted matrices; causal attention (half of the square); the head on response positions, forward and to its input.
Left out: everything elementwise, and that only response positions matter above the last layer's attention.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from spin_llm.data import Example
from spin_llm.models import LoadedModel, Matrix, editable_matrices


@dataclass(frozen=True)
class Product:
    """`count` matrix products (rows, inner) @ (inner, columns) an example, for one `purpose`."""

    purpose: str
    rows: int
    inner: int
    columns: int
    count: float = 1.0

    @property
    def gflop(self) -> float:
        return 2e-9 * self.rows * self.inner * self.columns * self.count


def unavoidable(loaded: LoadedModel, matrices: Sequence[Matrix], examples: Sequence[Example]) -> list[Product]:
    """The products of one example of mean length, the same shapes and purposes gathered."""
    tokens = round(sum(len(example.input_ids) for example in examples) / len(examples))
    responses = round(sum(example.response_tokens for example in examples) / len(examples))
    targeted = {matrix.name for matrix in matrices}
    lowest = min(matrix.layer for matrix in matrices)
    hidden = loaded.model.get_output_embeddings().weight.shape[1]
    found: list[Product] = []
    for matrix in editable_matrices(loaded.model, "all"):
        out, inner = matrix.weight.shape[::-1] if matrix.transposed else matrix.weight.shape
        found.append(Product("forward", tokens, inner, out))
        # in the lowest targeted layer, what reads the residual stream has nothing targeted below it
        reads_stream = inner == hidden
        if matrix.layer > lowest or (matrix.layer == lowest and matrix.kind == "mlp" and not reads_stream):
            found.append(Product("gradients of inputs", tokens, out, inner))
        if matrix.name in targeted:
            found.append(Product("gradients of weights", out, tokens, inner))
    vocabulary = loaded.model.get_output_embeddings().weight.shape[0]
    found.append(Product("head, forward", responses, hidden, vocabulary))
    found.append(Product("head, gradients of inputs", responses, vocabulary, hidden))
    return gathered(found + attention(loaded.model.config, tokens, lowest))


def attention(config: Any, tokens: int, lowest: int) -> list[Product]:
    """Queries times keys and probabilities times values, and the four products of their backward pass."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    layers = config.num_hidden_layers
    half = 0.5 * (1 + 1 / tokens) * heads
    return [
        Product("attention", tokens, width, tokens, 2 * half * layers),
        Product("attention, backward", tokens, width, tokens, 4 * half * (layers - lowest - 1)),
    ]


def gathered(products: Sequence[Product]) -> list[Product]:
    counts: dict[Product, float] = {}
    for product in products:
        key = Product(product.purpose, product.rows, product.inner, product.columns)
        counts[key] = counts.get(key, 0.0) + product.count
    return [Product(key.purpose, key.rows, key.inner, key.columns, count) for key, count in counts.items()]


def measured_rate(product: Product, dtype: torch.dtype, batch: int, seconds: float = 0.2) -> float:
    """GFLOP/s of this product as scoring does it: token rows of `batch` examples together, weight gradients one
    example at a time. The best of the repetitions that fit `seconds`: a bound is asked for."""
    rows = product.rows if product.purpose == "gradients of weights" else product.rows * batch
    if product.purpose.startswith("attention"):
        left = torch.randn(batch, product.rows, product.inner).to(dtype)
        right = torch.randn(batch, product.inner, product.columns).to(dtype)
        gflop = 2e-9 * batch * product.rows * product.inner * product.columns
    else:
        left = torch.randn(rows, product.inner).to(dtype)
        right = torch.randn(product.inner, product.columns).to(dtype)
        if product.purpose == "gradients of weights":
            left = left.t().contiguous().t()
        elif product.purpose in ("forward", "head, forward"):  # weights are stored (out, in)
            right = right.t().contiguous().t()
        gflop = 2e-9 * rows * product.inner * product.columns
    out = torch.matmul(left, right)
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        torch.matmul(left, right, out=out)
        best = min(best, time.perf_counter() - start)
    return gflop / best


def seconds_of_sums(matrices: Sequence[Matrix], dtype: torch.dtype, seconds: float = 0.2) -> float:
    """Seconds an example for |.| of a gradient and its sum into float32, over all `matrices`: the elementwise work."""
    total = 0.0
    shapes = [tuple(matrix.weight.shape) for matrix in matrices]
    for shape in set(shapes):
        gradient, sums = torch.randn(shape).to(dtype), torch.zeros(shape)
        best, until = float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < until:
            start = time.perf_counter()
            sums.add_(gradient.abs_())
            best = min(best, time.perf_counter() - start)
        total += best * shapes.count(shape)
    return total
