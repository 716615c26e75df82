"""The proxy of an edit against one example at a time on a tiny model, and the margin against its first-order change."""

from __future__ import annotations

import math
from contextlib import nullcontext

import numpy as np
import pytest
import tiny
import torch
from tiny import score_concept

from spin_llm.evaluate.likelihood import compare_likelihoods
from spin_llm.models import editable_matrices
from spin_llm.models.losses import mean_loss, response_losses
from spin_llm.patch.patch import memory_patch
from spin_llm.results.edited import Recipe
from spin_llm.scores import ScoreSet, Sides
from spin_llm.scores.storage import candidate_entries
from spin_llm.search.trials import (
    Bench,
    attempt,
    contrast_losses,
    gains_of,
    measure_proxy,
    measure_reference,
    response_means,
)
from spin_llm.selection import select


@pytest.fixture(scope="module")
def loaded(tiny_model):
    return tiny_model("llama")


def test_means_are_those_of_single_examples(loaded):
    examples = tiny.examples(4)
    with torch.inference_mode():
        alone = [float(response_losses(loaded, [example])[0]) for example in examples]
    np.testing.assert_allclose(response_means(loaded, examples), alone, rtol=1e-5)


def test_the_proxy_is_what_single_examples_give(loaded):
    contrasts = {"fairness": Sides(tiny.examples(1), tiny.examples(2)[:7])}
    general = tiny.examples(3)
    before = contrast_losses(loaded, contrasts)
    patch = memory_patch(loaded.model, tiny.mlp_selection(loaded.model, per_matrix=40))
    reference = measure_reference(loaded, contrasts, general)
    with patch.applied(loaded):
        found = measure_proxy(loaded, contrasts, general, reference)
    whole = compare_likelihoods(lambda: nullcontext(loaded), lambda: patch.applied(loaded), general)
    with patch.applied(loaded):
        assert measure_proxy(loaded, contrasts, general, reference) == found, "the reference is not used up"
    assert found.kl == pytest.approx(whole.kl.sum() / whole.tokens.sum(), rel=1e-4)
    base = mean_loss(loaded, general)
    with patch.applied(loaded):
        after = contrast_losses(loaded, contrasts)
        assert found.increase == pytest.approx(math.expm1(mean_loss(loaded, general) - base), rel=1e-4)
    aware, unaware = (after["fairness"][kind] - before["fairness"][kind] for kind in (0, 1))
    gain = found.gains["fairness"]
    assert gain.gain == pytest.approx(unaware.mean() - aware.mean(), abs=1e-6)
    assert gain.error == pytest.approx(math.hypot(aware.std(ddof=1) / 11**0.5, unaware.std(ddof=1) / 7**0.5), rel=1e-5)
    assert gain.aware == pytest.approx(aware.mean(), abs=1e-6)
    assert found.kl > 0
    same = gains_of(before, before)["fairness"]
    assert (same.gain, same.error) == (0, 0)


def test_weights_chosen_by_signed_raise_the_margins_they_were_chosen_for(loaded):
    """On the scored examples themselves: the sign and the size agree with first order for a small edit."""
    sets = {name: (tiny.examples(seed), tiny.examples(seed + 50)) for seed, name in enumerate(("fairness", "privacy"))}
    statistics = ("taylor", "margin")
    concepts = {
        name: score_concept(loaded, aware, unaware, statistics=statistics, keep=0.2)
        for name, (aware, unaware) in sets.items()
    }
    names = [matrix.name for matrix in editable_matrices(loaded.model, "mlp")]
    general = score_concept(loaded, tiny.examples(9), keep=0.2, candidates=candidate_entries(concepts, names))
    contrasts = {name: Sides(*parts) for name, parts in sets.items()}
    bench = Bench(loaded, ScoreSet(concepts, {"general": general}), contrasts, tiny.examples(8), 9.0)
    before = {name: parameter.clone() for name, parameter in loaded.model.state_dict().items()}
    recipe = Recipe("signed", 5e-4, granularity="model", scale=0.99)
    tried = attempt(bench, 0, recipe, measure_reference(loaded, contrasts, bench.general))
    assert tried.proxy is not None
    assert tried.weights == 6
    selection = select(bench.scores, recipe)
    for name, scores in concepts.items():
        first_order = 0.01 * sum(
            float(margin)
            for matrix, chosen in selection.indices.items()
            for entry, margin in zip(*_margins(scores, matrix), strict=True)
            if entry in chosen
        )
        assert first_order > 0
        assert tried.proxy.gains[name].gain == pytest.approx(first_order, rel=0.05, abs=1e-6)
    assert all(torch.equal(before[name], value) for name, value in loaded.model.state_dict().items()), "restored"


def _margins(scores, matrix):
    kept = scores.matrices[matrix].others["margin"]
    return kept.indices, kept.values
