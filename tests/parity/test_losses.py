"""Likelihoods row block by row block against torch's cross-entropy, and attention by products against the fused one."""

from __future__ import annotations

import pytest
import tiny
import torch
from conftest import TOLERANCE, TinyModel
from torch.nn.functional import cross_entropy

from spin_llm.models import editable_matrices, losses
from spin_llm.scores import importance

# One rounding to the dtype, of a value formed in float32 in another order.
CLOSE = {torch.float32: 2e-6, torch.bfloat16: 2**-8}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "block"), [(1, 1), (7, 3), (7, 7), (7, 100), (30, 10)])
def test_likelihoods_and_their_gradients(rows: int, block: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(losses, "WIDE_BYTES", block * 4 * 50)
    generator = torch.Generator().manual_seed(rows)
    values = (30 * torch.randn(rows, 50, generator=generator)).to(dtype)
    targets = torch.randint(0, 50, (rows,), generator=generator)
    upstream = torch.randn(rows, generator=generator)
    sides = []
    for function in (
        losses.LogLikelihoods.apply,
        lambda logits, targets: -cross_entropy(logits.float(), targets, reduction="none"),
    ):
        logits = values.clone().requires_grad_(True)
        found = function(logits, targets)
        found.backward(upstream)
        sides.append((found.detach(), logits.grad))
    assert sides[0][0].dtype == torch.float32
    torch.testing.assert_close(sides[0][0], sides[1][0], rtol=2e-6, atol=2e-5)
    assert sides[0][1].dtype == dtype
    torch.testing.assert_close(sides[0][1], sides[1][1], rtol=CLOSE[dtype], atol=1e-5)  # ulps of logits near 100
    assert torch.equal(logits, values), "the logits are as they were"


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral", "gemma3"])
def test_both_ways_of_attention_give_the_same_scores(name: str, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch):
    loaded, examples = tiny_model(name, dtype="bfloat16"), tiny.examples()
    matrices = editable_matrices(loaded.model, "all")
    before = loaded.model.config._attn_implementation
    seen = set()
    found = []
    for short in (0, 256):
        monkeypatch.setattr(losses, "SHORT", short)
        with losses.fast_attention(loaded, 60):
            seen.add(loaded.model.config._attn_implementation)
        found.append(importance(loaded, examples, matrices))
    assert seen == {before, "eager"}
    assert loaded.model.config._attn_implementation == before
    for matrix in matrices:
        one, other = (scores[matrix.name] for scores in found)
        assert (one - other).abs().max() <= TOLERANCE[torch.bfloat16] * other.max()


def test_attention_is_restored_after_an_error_and_untouched_in_float32(tiny_model: TinyModel):
    loaded = tiny_model("llama", dtype="bfloat16")
    with pytest.raises(ValueError, match="inside"), losses.fast_attention(loaded, 10):
        raise ValueError("inside")
    assert loaded.model.config._attn_implementation == "sdpa"
    loaded = tiny_model("llama", dtype="float32")
    with losses.fast_attention(loaded, 10):
        assert loaded.model.config._attn_implementation == "sdpa"
