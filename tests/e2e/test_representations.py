"""Hidden states of tiny models: the batched pass against one example at a time, and before and after an edit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from spin_llm.analysis.layers import PLACES, framed_pairs, representations, shuffled_pairs
from spin_llm.data import Pair
from spin_llm.errors import SpinError
from spin_llm.models import LoadedModel
from spin_llm.patch.patch import memory_patch
from tests import tiny


def loaded_model(name: str) -> LoadedModel:
    checkpoint: Any = SimpleNamespace(folder=Path(), fingerprint="tiny")
    return LoadedModel(name, tiny.build(name), tiny.tokenizer(), checkpoint)


@pytest.mark.parametrize("name", [*tiny.DENSE, "qwen3_moe", "mamba"])
def test_a_batch_gives_what_single_examples_give(name: str):
    loaded, examples = loaded_model(name), tiny.examples()
    layers = loaded.model.config.num_hidden_layers
    found = representations(loaded, examples, batch_tokens=200)
    assert found.last_prompt.shape == found.mean_response.shape == (layers + 1, len(examples), 32)
    assert found.last_prompt.dtype == torch.float32
    for place, example in enumerate(examples):
        with torch.no_grad():
            states = loaded.model(torch.tensor([example.input_ids]), output_hidden_states=True).hidden_states
        prompt = len(example.input_ids) - example.response_tokens
        for layer in range(layers + 1):
            torch.testing.assert_close(found.last_prompt[layer, place], states[layer][0, prompt - 1], atol=1e-4, rtol=0)
            mean = states[layer][0, prompt:].mean(0)
            torch.testing.assert_close(found.mean_response[layer, place], mean, atol=1e-4, rtol=0)


def test_an_edit_changes_what_is_above_it_and_is_gone_afterwards():
    loaded, examples = loaded_model("llama"), tiny.examples()
    weights = {name: value.clone() for name, value in loaded.model.named_parameters()}
    selection = tiny.mlp_selection(loaded.model, per_matrix=200)
    base = representations(loaded, examples)
    patch = memory_patch(loaded, selection)
    with patch.applied(loaded):
        after = representations(loaded, examples)
    for place in PLACES:
        before_edit, after_edit = getattr(base, place), getattr(after, place)
        assert torch.equal(before_edit[0], after_edit[0])  # the embedding
        assert all(not torch.allclose(before_edit[layer], after_edit[layer]) for layer in (1, 2, 3))
    with pytest.raises(RuntimeError), patch.applied(loaded):
        raise RuntimeError
    assert all(torch.equal(weights[name], value) for name, value in loaded.model.named_parameters())
    assert torch.equal(representations(loaded, examples).mean_response, base.mean_response)


def test_equal_examples_keep_their_places():
    loaded, examples = loaded_model("llama"), tiny.examples()
    twice = representations(loaded, [*examples, *examples], batch_tokens=64)
    n = len(examples)
    torch.testing.assert_close(twice.last_prompt[:, :n], twice.last_prompt[:, n:], atol=1e-5, rtol=0)


def test_states_that_are_not_finite_are_refused():
    loaded = loaded_model("llama")
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight.fill_(float("inf"))
    with pytest.raises(SpinError, match="not finite"):
        representations(loaded, tiny.examples())


def test_pairings():
    first = [Pair(f"a{i}", "x") for i in range(9)]
    second = [Pair(f"b{i}", "y") for i in range(5)]
    left, right = shuffled_pairs(first, second, seed=1)
    assert len(left) == len(right) == 5
    assert set(right) == set(second)
    assert set(left) < set(first)
    assert (left, right) == shuffled_pairs(first, second, seed=1)
    assert (left, right) != shuffled_pairs(first, second, seed=2)
    fair, private = framed_pairs([Pair("Why {x}?", "Because.")], ["fairness", "privacy"])
    assert fair[0].response == private[0].response == "Because."
    assert fair[0].prompt != private[0].prompt
    assert fair[0].prompt.endswith("Why {x}?")
    assert private[0].prompt.endswith("Why {x}?")
    with pytest.raises(SpinError, match="framing of the concept 'honesty'"):
        framed_pairs(first, ["fairness", "honesty"])
