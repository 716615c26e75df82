"""The scoring pass against a slow, obvious oracle: one example at a time, full logits, autograd's `.grad`, and one pass
per layer with only that layer's weights asking for a gradient, as the released code does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import tiny
import torch
from conftest import TOLERANCE, TinyModel

from spin_llm.data import Example
from spin_llm.errors import SpinError
from spin_llm.models import LoadedModel, Matrix, editable_matrices
from spin_llm.models.losses import mean_loss, response_losses
from spin_llm.scores import importance, top_entries
from spin_llm.scores.passes import length_sorted_batches, scoring_mode

Scores = dict[str, torch.Tensor]
FLOAT32 = TOLERANCE[torch.float32]
WANTED_CUTS = (1, 3, 10, 50, 200)


def loss_by_hand(model: Any, example: Example) -> torch.Tensor:
    """Mean over response tokens of -log p(token | what precedes it), token by token."""
    logits = model(torch.tensor([example.input_ids])).logits[0].float()
    first = len(example.input_ids) - example.response_tokens
    terms = [
        -torch.log_softmax(logits[place - 1], dim=-1)[example.input_ids[place]]
        for place in range(first, len(example.input_ids))
    ]
    return torch.stack(terms).mean()


def oracle(loaded: LoadedModel, examples: Sequence[Example], matrices: Sequence[Matrix]) -> tuple[Scores, Scores]:
    """(mean over examples of |W * gradient|, |W * mean over examples of the gradient|), layer by layer."""
    absolute = {matrix.name: torch.zeros(matrix.weight.shape) for matrix in matrices}
    signed = {matrix.name: torch.zeros(matrix.weight.shape) for matrix in matrices}
    for layer in sorted({matrix.layer for matrix in matrices}):
        here = [matrix for matrix in matrices if matrix.layer == layer]
        loaded.model.requires_grad_(False)
        for matrix in here:
            matrix.weight.requires_grad_(True)
        for example in examples:
            loss_by_hand(loaded.model, example).backward()
            for matrix in here:
                term = (matrix.weight * matrix.weight.grad).detach() / len(examples)
                absolute[matrix.name] += term.abs()
                signed[matrix.name] += term
                matrix.weight.grad = None
    loaded.model.requires_grad_(False)
    return absolute, {name: total.abs() for name, total in signed.items()}


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    """Largest difference of two tensors relative to the largest entry of the second."""
    return float((left - right).abs().max() / right.abs().max())


def clear_cuts(scores: torch.Tensor) -> list[int]:
    """For each wanted k, the largest k' <= k at which the top k' is decided by more than twice the tolerance."""
    values = scores.flatten().sort(descending=True).values
    clear = (values[:-1] - values[1:]) > 2 * FLOAT32 * values[0]
    return sorted({k for wanted in WANTED_CUTS for k in (clear[:wanted].nonzero()[-1:, 0] + 1).tolist()})


def footprint(model: Any) -> list[Any]:
    """All that a scoring pass could leave behind: modes, hooks, gradient flags, gradients."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = [(name, m.training, *(list(getattr(m, hook)) for hook in hooks)) for name, m in model.named_modules()]
    return modules + [(name, p.requires_grad, p.grad is None) for name, p in model.named_parameters()]


@pytest.mark.parametrize("target", ["mlp", "attention", "all"])
@pytest.mark.parametrize("name", tiny.DENSE)
def test_scores_and_top_sets_are_the_oracles(name: str, target: str, tiny_model: TinyModel):
    loaded = tiny_model(name)
    matrices = editable_matrices(loaded.model, target)
    expected, _ = oracle(loaded, tiny.examples(), matrices)
    found = importance(loaded, tiny.examples(), matrices, batch_tokens=100)
    assert list(found) == [matrix.name for matrix in matrices]
    for matrix in matrices:
        one, other = found[matrix.name], expected[matrix.name]
        assert one.dtype == torch.float32
        assert one.shape == matrix.weight.shape
        assert distance(one, other) <= FLOAT32, matrix.name
        cuts = clear_cuts(other)
        assert len(cuts) >= 3, "too few sizes at which the top set is decided"
        for k in cuts:
            assert set(top_entries(one, k)[0].tolist()) == set(top_entries(other, k)[0].tolist()), (matrix.name, k)


@pytest.mark.parametrize("name", tiny.DENSE)
def test_the_mean_is_of_absolute_values(name: str, tiny_model: TinyModel):
    """|mean of gradients| is another statistic, so the parity test above would notice it."""
    loaded = tiny_model(name)
    matrices = editable_matrices(loaded.model, "all")
    absolute, signed = oracle(loaded, tiny.examples(), matrices)
    for matrix in matrices:
        assert (signed[matrix.name] <= absolute[matrix.name] * 1.001 + 1e-9).all()
        assert distance(signed[matrix.name], absolute[matrix.name]) > 0.05
    found = importance(loaded, tiny.examples(), matrices)
    assert all(distance(found[name], signed[name]) > 0.05 for name in found)


@pytest.mark.parametrize("name", tiny.DENSE)
def test_a_batch_of_n_is_n_batches_of_one(name: str, tiny_model: TinyModel):
    loaded, examples = tiny_model(name), tiny.examples()
    matrices = editable_matrices(loaded.model, "all")
    batches: dict[int, list[int]] = {1: [], 150: [], 10**6: []}
    found = {
        size: importance(loaded, examples, matrices, batch_tokens=size, progress=batches[size].append)
        for size in batches
    }
    assert batches[1] == [1] * len(examples)
    assert 1 < len(batches[150]) < len(examples)
    assert batches[10**6] == [len(examples)]
    for matrix in matrices:
        assert distance(found[10**6][matrix.name], found[1][matrix.name]) <= FLOAT32
        assert distance(found[150][matrix.name], found[1][matrix.name]) <= FLOAT32


def test_the_order_of_the_examples_does_not_matter(tiny_model: TinyModel):
    loaded, examples = tiny_model("llama"), tiny.examples()
    matrices = editable_matrices(loaded.model, "mlp")
    one, other = (importance(loaded, order, matrices) for order in (examples, examples[::-1]))
    assert all(distance(one[name], other[name]) <= FLOAT32 for name in one)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_bfloat16_is_near_float32_on_the_same_weights(name: str, tiny_model: TinyModel):
    exact = tiny_model(name, dtype="float32", seed=1)
    rounded = tiny_model(name, dtype="bfloat16", seed=1)
    with torch.no_grad():
        for left, right in zip(exact.model.parameters(), rounded.model.parameters(), strict=True):
            left.copy_(right)
    assert rounded.dtype == torch.bfloat16
    matrices = editable_matrices(rounded.model, "all")
    expected, _ = oracle(exact, tiny.examples(), editable_matrices(exact.model, "all"))
    plain, _ = oracle(rounded, tiny.examples(), matrices)
    found = importance(rounded, tiny.examples(), matrices)
    assert all(scores.dtype == torch.float32 for scores in found.values())
    error, plain_error = (max(distance(one[name], expected[name]) for name in expected) for one in (found, plain))
    assert error <= TOLERANCE[torch.bfloat16]
    assert error <= 1.5 * plain_error, "more than what bfloat16 itself costs a plain pass"


@pytest.mark.parametrize("name", tiny.DENSE)
def test_losses_are_those_of_a_hand_computation(name: str, tiny_model: TinyModel):
    loaded, examples = tiny_model(name), tiny.examples()
    with torch.no_grad():
        losses = response_losses(loaded, examples)
        expected = torch.stack([loss_by_hand(loaded.model, example) for example in examples])
    assert losses.shape == (len(examples),)
    torch.testing.assert_close(losses, expected, rtol=FLOAT32, atol=FLOAT32)
    tokens = torch.tensor([example.response_tokens for example in examples])
    per_token = float((expected * tokens).sum() / tokens.sum())
    for batch_tokens in (1, 4096):
        assert mean_loss(loaded, examples, batch_tokens=batch_tokens) == pytest.approx(per_token, rel=FLOAT32)


@pytest.mark.parametrize("name", tiny.DENSE)
def test_the_head_sees_response_positions_only(name: str, tiny_model: TinyModel):
    loaded, examples = tiny_model(name), tiny.examples()
    shapes: list[tuple[int, ...]] = []
    head = loaded.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    importance(loaded, examples, editable_matrices(loaded.model, "mlp"), batch_tokens=10**6)
    handle.remove()
    responses = sum(example.response_tokens for example in examples)
    assert shapes == [(1, responses, tiny.VOCABULARY)]
    assert responses < len(examples) * max(len(example.input_ids) for example in examples)


def raise_interrupt(examples_done: int) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("ending", ["success", "error", "interrupt"])
def test_the_model_is_left_as_it_was(name: str, ending: str, tiny_model: TinyModel):
    loaded = tiny_model(name)
    model, matrices = loaded.model, editable_matrices(loaded.model, "mlp")
    model.train()
    matrices[0].module.eval()
    matrices[1].weight.requires_grad_(True)
    before, weights = footprint(model), [parameter.clone() for parameter in model.parameters()]
    if ending == "success":
        importance(loaded, tiny.examples(), matrices)
    elif ending == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            importance(loaded, tiny.examples(), matrices, progress=raise_interrupt)
    else:
        with torch.no_grad():
            matrices[2].weight[0, 0] = weights[-1].flatten()[0] = float("nan")
        with pytest.raises(SpinError, match="not finite on the example 'prompt "):
            importance(loaded, tiny.examples(), matrices)
    assert footprint(model) == before
    assert torch.is_grad_enabled()
    if ending != "error":
        assert all(torch.equal(now, then) for now, then in zip(model.parameters(), weights, strict=True))


def test_dropout_is_off_while_scoring(tiny_model: TinyModel):
    loaded = tiny_model("gpt2")
    matrices = editable_matrices(loaded.model, "mlp")
    expected = importance(loaded, tiny.examples(), matrices)
    loaded.model.train()
    found = importance(loaded, tiny.examples(), matrices)
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_no_parameter_gets_a_gradient_and_no_flag_is_set_inside(tiny_model: TinyModel):
    loaded = tiny_model("llama")
    seen: list[bool] = []

    def look(examples_done: int) -> None:
        seen.append(any(p.requires_grad or p.grad is not None for p in loaded.model.parameters()))

    importance(loaded, tiny.examples(), editable_matrices(loaded.model, "all"), batch_tokens=100, progress=look)
    assert len(seen) > 1
    assert not any(seen)


def test_scoring_works_inside_no_grad(tiny_model: TinyModel):
    loaded = tiny_model("llama")
    matrices = editable_matrices(loaded.model, "mlp")
    with torch.no_grad():
        found = importance(loaded, tiny.examples(), matrices)
        assert not torch.is_grad_enabled()
    assert all(scores.max() > 0 for scores in found.values())


def test_the_error_names_the_example_that_is_not_finite(tiny_model: TinyModel):
    """A damaged embedding row that one example alone uses."""
    loaded, examples = tiny_model("llama"), tiny.examples()
    used = [set(example.input_ids) for example in examples]
    bad = 4
    token = next(iter(used[bad] - set().union(*used[:bad], *used[bad + 1 :]) - {examples[bad].input_ids[-1]}))
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[token] = float("nan")
    matrices = editable_matrices(loaded.model, "mlp")
    for batch_tokens in (1, 10**6):
        with pytest.raises(SpinError, match=f"not finite on the example 'prompt {bad}'"):
            importance(loaded, examples, matrices, batch_tokens=batch_tokens)
    with pytest.raises(SpinError, match="not finite"):
        mean_loss(loaded, examples)


def test_a_gradient_that_is_not_finite_is_an_error(tiny_model: TinyModel):
    """The loss can be finite where a gradient overflows; a NaN score would silently win every top set."""
    loaded = tiny_model("llama")
    matrices = editable_matrices(loaded.model, "mlp")

    def poison(module: Any, gradients_in: Any, gradients_out: Any) -> Any:
        return tuple(gradient * float("inf") for gradient in gradients_in)

    handle = matrices[-1].module.register_full_backward_hook(poison)
    with pytest.raises(SpinError, match="not finite"):
        importance(loaded, tiny.examples(), matrices)
    handle.remove()


def test_no_example_is_an_error(tiny_model: TinyModel):
    loaded = tiny_model("llama")
    with pytest.raises(SpinError, match="no example"):
        importance(loaded, [], editable_matrices(loaded.model, "mlp"))


@pytest.mark.parametrize("budget", [1, 30, 150, 10**6])
def test_batches_hold_every_example_once_within_the_budget(budget: int):
    examples = tiny.examples()
    batches = list(length_sorted_batches(examples, budget))
    assert sorted(example.prompt for batch in batches for example in batch) == sorted(e.prompt for e in examples)
    for batch in batches:
        padded = len(batch) * max(len(example.input_ids) for example in batch)
        assert padded <= budget or len(batch) == 1


def test_scoring_mode_restores_after_an_exception(tiny_model: TinyModel):
    model = tiny_model("qwen2").model.train()
    model.requires_grad_(True)
    before = footprint(model)

    def fail() -> None:
        with scoring_mode(model):
            assert not model.training
            assert not any(parameter.requires_grad for parameter in model.parameters())
            raise ValueError("inside")

    check: Callable[[], None] = fail
    with pytest.raises(ValueError, match="inside"):
        check()
    assert footprint(model) == before
