"""Every statistic against a slow, obvious oracle, all formed in one pass; the margin against real suppressions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from conftest import TOLERANCE, TinyModel
from test_importance import distance, footprint, loss_by_hand
from tiny import score_concept, select

from spin_llm.data import Example
from spin_llm.errors import SpinError
from spin_llm.models import LoadedModel, Matrix, editable_matrices
from spin_llm.models.losses import response_losses
from spin_llm.scores import (
    SELECTORS,
    STATISTICS,
    MatrixScores,
    Scores,
    accumulators,
    count,
    load_scores,
    make_batches,
    save_scores,
    top_entries,
)
from spin_llm.scores.importance import new_totals
from spin_llm.scores.passes import scoring

Dense = dict[str, dict[str, torch.Tensor]]  # by statistic, then by matrix
ALL = tuple(STATISTICS)
FLOAT32 = TOLERANCE[torch.float32]
BY_GRADIENT = ("taylor", "gradient", "fisher", "margin")
# A gradient in bfloat16 is off by TOLERANCE of the largest one; its square, to first order, by twice that.
BFLOAT16 = {"taylor": 1, "gradient": 1, "fisher": 2, "margin": 1}


def gradients(loaded: LoadedModel, example: Example, matrices: Sequence[Matrix]) -> dict[str, torch.Tensor]:
    """dL/dW of one example by autograd, with full logits and one example at a time."""
    for matrix in matrices:
        matrix.weight.requires_grad_(True)
        matrix.weight.grad = None
    loss_by_hand(loaded.model, example).backward()
    found = {}
    for matrix in matrices:
        grad = matrix.weight.grad
        assert grad is not None
        found[matrix.name] = grad.float()
        matrix.weight.grad = None
        matrix.weight.requires_grad_(False)
    return found


def squared_inputs(
    loaded: LoadedModel, examples: Sequence[Example], matrices: Sequence[Matrix]
) -> Mapping[str, torch.Tensor]:
    """Sum over all tokens of X_j^2, (in,) by matrix, in float64, one example at a time."""
    sums = {matrix.name: torch.zeros((), dtype=torch.float64) for matrix in matrices}

    def add(name: str):
        def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            sums[name] = sums[name] + args[0].double().flatten(0, -2).square().sum(0)

        return hook

    handles = [matrix.module.register_forward_pre_hook(add(matrix.name)) for matrix in matrices]
    with torch.no_grad():
        for example in examples:
            loaded.model(torch.tensor([example.input_ids]))
    for handle in handles:
        handle.remove()
    return sums


def oracle(
    loaded: LoadedModel, aware: Sequence[Example], unaware: Sequence[Example], matrices: Sequence[Matrix]
) -> Dense:
    """Every statistic, written out from its definition in the docstring of scores/statistics.py."""
    loaded.model.requires_grad_(False)
    ours = [gradients(loaded, example, matrices) for example in aware]
    theirs = [gradients(loaded, example, matrices) for example in unaware]
    inputs = squared_inputs(loaded, aware, matrices)
    tokens = sum(len(example.input_ids) for example in aware)
    dense: Dense = {name: {} for name in ALL}
    for matrix in matrices:
        name, weight = matrix.name, matrix.weight.detach().float()
        here = torch.stack([gradient[name] for gradient in ours]).double()
        there = torch.stack([gradient[name] for gradient in theirs]).double()
        columns = inputs[name][:, None] if matrix.transposed else inputs[name][None, :]
        diagonal = columns / tokens
        values = {
            "taylor": (weight * here).abs().mean(0),
            "gradient": here.abs().mean(0),
            "fisher": (here**2).mean(0),
            "margin": (weight * here).mean(0) - (weight * there).mean(0),
            "wanda": weight.abs() * columns.sqrt(),
            "sparsegpt": weight**2 * (diagonal + 0.01 * diagonal.mean()),
            "magnitude": weight.abs(),
        }
        for statistic, value in values.items():
            dense[statistic][name] = value.float()
    return dense


def dense_of(scores: Scores, statistic: str) -> dict[str, torch.Tensor]:
    """Dense scores out of score files that keep everything."""
    made = {}
    for name, matrix in scores.matrices.items():
        kept = matrix if statistic == scores.info.selector else matrix.others[statistic]
        assert kept.indices.numel() == matrix.size
        flat = torch.empty(matrix.size)
        flat[kept.indices] = kept.values
        made[name] = flat.view(matrix.shape)
    return made


def same(one: MatrixScores, other: MatrixScores) -> bool:
    """Bit for bit."""
    pairs = [(one.indices, other.indices), (one.values, other.values)]
    for kept in one.others.keys() | other.others.keys():
        mine, its = one.others[kept], other.others[kept]
        pairs += [(mine.indices, its.indices), (mine.values, its.values)]
    pairs += [(one.at[key], other.at[key]) for key in one.at.keys() | other.at.keys()]
    placed = (one.shape, one.layer, one.kind) == (other.shape, other.layer, other.kind)
    return placed and all(torch.equal(left, right) for left, right in pairs)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_all_statistics_of_one_pass_are_the_oracles(name: str, tiny_model: TinyModel):
    loaded, aware, unaware = tiny_model(name), tiny.examples(1), tiny.examples(2)[:7]
    matrices = editable_matrices(loaded.model, "all")
    expected = oracle(loaded, aware, unaware, matrices)
    scores = score_concept(loaded, aware, unaware, target="all", statistics=ALL, keep=1.0)
    assert scores.info.statistics == tuple(ALL)
    for statistic in ALL:
        if statistic == "random":
            continue
        for matrix_name, found in dense_of(scores, statistic).items():
            assert distance(found, expected[statistic][matrix_name]) <= FLOAT32, (statistic, matrix_name)
    assert any((margin < 0).any() and (margin > 0).any() for margin in expected["margin"].values())


def test_random_is_uniform_and_a_function_of_seed_and_name(tiny_model: TinyModel):
    one, same_again, other = (
        dense_of(
            score_concept(tiny_model("llama"), tiny.examples(n), statistics=("random",), keep=1.0, seed=s), "random"
        )
        for n, s in ((1, 3), (2, 3), (1, 4))
    )
    everything = torch.cat([values.flatten() for values in one.values()])
    assert ((everything >= 0) & (everything < 1)).all()
    assert abs(float(everything.mean()) - 0.5) < 0.01
    assert len(everything.unique()) > 0.99 * len(everything), "another draw for each matrix"
    assert all(torch.equal(one[name], same_again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("wanted", "kinds"),
    [
        (("taylor",), {"absolute"}),
        (("gradient", "taylor"), {"absolute"}),
        (("fisher",), {"squared"}),
        (("margin", "taylor"), {"absolute", "signed"}),
        (("wanda", "sparsegpt"), {"inputs"}),
        (("magnitude", "random"), set()),
        (ALL, {"absolute", "squared", "signed", "inputs"}),
    ],
)
def test_accumulators_are_allocated_when_asked_for(
    wanted: tuple[str, ...], kinds: set[str], tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
):
    made: list[dict[str, torch.Tensor]] = []

    def spy(*args, **options):
        made.append(new_totals(*args, **options))
        return made[-1]

    loaded = tiny_model("gpt2")
    monkeypatch.setattr("spin_llm.scores.concept.new_totals", spy)
    score_concept(loaded, tiny.examples(1)[:3], tiny.examples(2)[:3], statistics=wanted)
    matrices = editable_matrices(loaded.model, "mlp")
    assert set(accumulators(wanted)) == kinds
    assert len(made) == len(matrices)
    for matrix, totals in zip(matrices, made, strict=True):
        assert set(totals) == kinds
        inputs = matrix.weight.shape[0 if matrix.transposed else 1]
        sizes = {kind: inputs if kind == "inputs" else matrix.weight.numel() for kind in kinds}
        assert {kind: total.numel() for kind, total in totals.items()} == sizes
        assert all(total.dtype == torch.float32 for total in totals.values())


@pytest.mark.parametrize("selector", SELECTORS)
def test_a_statistic_is_the_same_alone_and_among_others(selector: str, tiny_model: TinyModel):
    loaded, aware, unaware = tiny_model("llama"), tiny.examples(1), tiny.examples(2)
    others = [name for name in ALL if name != selector]
    alone = score_concept(loaded, aware, unaware, statistics=(selector,), keep=0.05)
    among = score_concept(loaded, aware, unaware, statistics=(selector, *others), keep=0.05)
    assert among.info.selector == selector
    for name, matrix in alone.matrices.items():
        assert not matrix.others
        assert not matrix.at
        assert torch.equal(matrix.indices, among.matrices[name].indices)
        assert torch.equal(matrix.values, among.matrices[name].values)
        assert set(among.matrices[name].others) == set(others)


def test_values_at_the_kept_entries_of_the_others_and_a_round_trip(tiny_model: TinyModel, tmp_path: Path):
    loaded, aware, unaware = tiny_model("gpt2"), tiny.examples(1), tiny.examples(2)
    statistics = ("taylor", "margin", "fisher", "wanda")
    everything = score_concept(loaded, aware, unaware, statistics=statistics, keep=1.0)
    scores = score_concept(loaded, aware, unaware, statistics=statistics, keep=0.03)
    dense = {statistic: dense_of(everything, statistic) for statistic in statistics}
    for name, matrix in scores.matrices.items():
        k = count(0.03, matrix.size)
        tops = {"taylor": matrix.indices, **{other: kept.indices for other, kept in matrix.others.items()}}
        for statistic, indices in tops.items():
            assert torch.equal(indices, top_entries(dense[statistic][name], k)[0]), (name, statistic)
        places = {f"{s}@{t}": dense[s][name].flatten()[tops[t]] for s in statistics for t in statistics if s != t}
        assert matrix.at.keys() == places.keys()
        assert all(torch.equal(matrix.at[place], values) for place, values in places.items())
    save_scores(tmp_path / "a.safetensors", scores)
    save_scores(tmp_path / "b.safetensors", load_scores(tmp_path / "a.safetensors"))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    found = load_scores(tmp_path / "a.safetensors")
    assert found.info == scores.info
    assert list(found.matrices) == list(scores.matrices)
    assert all(same(found.matrices[name], scores.matrices[name]) for name in scores.matrices)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_bfloat16_is_within_the_stated_bound(name: str, tiny_model: TinyModel):
    """The same weights and bfloat16 compute: accumulators and statistics stay float32, and near float32's."""
    exact, rounded = tiny_model(name, seed=1), tiny_model(name, dtype="bfloat16", seed=1)
    with torch.no_grad():
        for left, right in zip(exact.model.parameters(), rounded.model.parameters(), strict=True):
            left.copy_(right)
    aware, unaware = tiny.examples(1), tiny.examples(2)
    expected, found = (
        score_concept(loaded, aware, unaware, statistics=ALL, keep=1.0, target="all") for loaded in (exact, rounded)
    )
    assert (expected.info.dtype, found.info.dtype) == ("float32", "bfloat16")
    for statistic, factor in BFLOAT16.items():
        left, right = dense_of(found, statistic), dense_of(expected, statistic)
        errors = {name: distance(left[name], right[name]) for name in left}
        assert max(errors.values()) <= factor * TOLERANCE[torch.bfloat16], (statistic, errors)
        assert max(errors.values()) > FLOAT32, "bfloat16 was in use"
    assert all(
        torch.equal(one, dense_of(expected, "magnitude")[name]) for name, one in dense_of(found, "magnitude").items()
    )


def test_small_gradients_are_not_lost_beside_large_sums_in_bfloat16(tiny_model: TinyModel):
    """A bfloat16 accumulator would stop growing after 256 equal terms; a float32 one does not."""
    loaded, repeated = tiny_model("llama", dtype="bfloat16"), tiny.examples(1)[5:6] * 600
    few = dense_of(score_concept(loaded, repeated[:1], statistics=("taylor", "fisher"), keep=1.0), "fisher")
    many = dense_of(score_concept(loaded, repeated, statistics=("taylor", "fisher"), keep=1.0), "fisher")
    # a batch of many rows may round otherwise than a batch of one
    assert all(distance(many[name], few[name]) <= TOLERANCE[torch.bfloat16] for name in few)


# The margin


def gap(loaded: LoadedModel, aware: Sequence[Example], unaware: Sequence[Example]) -> float:
    """Mean loss of the unaware responses less that of the aware ones, in nats per response token."""
    with torch.no_grad():
        mean = [float(response_losses(loaded, examples).double().mean()) for examples in (unaware, aware)]
    return mean[0] - mean[1]


def train(loaded: LoadedModel, examples: Sequence[Example], steps: int) -> None:
    loaded.model.requires_grad_(True)
    optimiser = torch.optim.Adam(loaded.model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        response_losses(loaded, examples).mean().backward()
        optimiser.step()
    loaded.model.requires_grad_(False)


@pytest.mark.parametrize(
    ("name", "trained", "removed", "agreement", "correlation"),
    [
        ("llama", False, 1.0, 0.95, 0.9),
        ("gpt2", False, 0.1, 0.99, 0.99),
        ("gpt2", True, 0.1, 0.95, 0.9),
    ],
)
def test_the_margin_is_the_change_when_a_weight_is_suppressed(
    name: str, trained: bool, removed: float, agreement: float, correlation: float, tiny_model: TinyModel
):
    """With L_u and L_a the mean losses of the unaware and the aware responses, and M = L_u - L_a: to multiply a weight
    W by 1 - removed changes it by dW = -removed * W, so to first order

        M' - M = dW * (dL_u/dW - dL_a/dW) = removed * (mean_aware W * G - mean_unaware W * G) = removed * margin.

    Positive: the aware responses become likelier beside the unaware ones. The eight largest and the eight smallest
    margins of each matrix, one weight at a time, on random models (where whole weights can be removed) and on trained
    ones, which lie in a narrow valley of the loss: there the first order holds for a smaller part of the weight.
    """
    loaded, aware, unaware = tiny_model(name), tiny.examples(1), tiny.examples(2)
    if trained:
        train(loaded, [*aware, *unaware], 20)
    scores = score_concept(loaded, aware, unaware, statistics=("margin",), keep=1.0)
    before = gap(loaded, aware, unaware)
    predicted, true = [], []
    for matrix in editable_matrices(loaded.model, "mlp"):
        kept = scores.matrices[matrix.name]
        flat = matrix.weight.detach().view(-1)
        for place in [*range(8), *range(-8, 0)]:
            index = int(kept.indices[place])
            weight = flat[index].clone()
            flat[index] *= 1 - removed
            predicted.append(float(kept.values[place]))
            true.append((gap(loaded, aware, unaware) - before) / removed)
            flat[index] = weight
    both = torch.tensor([predicted, true])
    assert (both[0] > 0).any()
    assert (both[0] < 0).any()
    assert float((both[0].sign() == both[1].sign()).float().mean()) >= agreement
    assert float(torch.corrcoef(both)[0, 1]) >= correlation


def test_the_margin_of_the_same_responses_is_zero(tiny_model: TinyModel):
    loaded, examples = tiny_model("llama"), tiny.examples(1)
    found = dense_of(score_concept(loaded, examples, examples, statistics=("taylor", "margin"), keep=1.0), "margin")
    size = dense_of(score_concept(loaded, examples, keep=1.0), "taylor")
    assert all(float(found[name].abs().max() / size[name].max()) <= FLOAT32 for name in found)


def test_swapping_the_responses_turns_the_margin_round(tiny_model: TinyModel):
    loaded, aware, unaware = tiny_model("llama"), tiny.examples(1), tiny.examples(2)[:6]
    one, other = (
        dense_of(score_concept(loaded, *sides, statistics=("margin",), keep=1.0), "margin")
        for sides in ((aware, unaware), (unaware, aware))
    )
    assert all(distance(one[name], -other[name]) <= FLOAT32 for name in one)


def test_coupled_signed_keeps_the_coupled_weights_with_every_margin_positive(tiny_model: TinyModel):
    loaded = tiny_model("llama")
    concepts, dense = {}, {}
    for number, name in enumerate(("fairness", "privacy")):
        aware, unaware = tiny.examples(10 + number), tiny.examples(20 + number)
        concepts[name] = score_concept(loaded, aware, unaware, statistics=("taylor", "margin"), keep=0.2)
        everything = score_concept(loaded, aware, unaware, statistics=("taylor", "margin"), keep=1.0)
        dense[name] = dense_of(everything, "margin")
    protected = {"general": score_concept(loaded, tiny.examples(30), keep=0.2)}
    options = {"ratio": 0.2, "protect_ratio": 0.05}
    plain = select(concepts, protected, rule="coupled", **options)
    signed = select(concepts, protected, rule="coupled-signed", **options)
    wanted = {
        name: [i for i in chosen.tolist() if all(dense[c][name].flatten()[i] > 0 for c in concepts)]
        for name, chosen in plain.indices.items()
    }
    assert {name: chosen.tolist() for name, chosen in signed.indices.items()} == {n: w for n, w in wanted.items() if w}
    assert 0 < signed.weights < plain.weights
    assert (signed.candidates, signed.shared) == (plain.candidates, plain.shared)


def test_coupled_signed_needs_the_margin_of_every_concept(tiny_model: TinyModel):
    loaded = tiny_model("llama")
    with_margin = score_concept(loaded, tiny.examples(1), tiny.examples(2), statistics=("taylor", "margin"), keep=0.2)
    without = score_concept(loaded, tiny.examples(1), keep=0.2)
    for concepts in ({"fairness": without}, {"privacy": with_margin, "fairness": without}):
        with pytest.raises(SpinError, match=r"'fairness' hold no margin(.|\n)*--statistics margin"):
            select(concepts, {}, rule="coupled-signed", ratio=0.2)
    # a protected set has no unaware responses, and needs none
    assert select(
        {"privacy": with_margin}, {"general": without}, rule="coupled-signed", ratio=0.2, protect_ratio=0.01
    ).weights


# Awkward examples


def with_lengths(prompt: int, response: int, seed: int = 0) -> Example:
    ids = torch.randint(3, tiny.VOCABULARY, (prompt + response,), generator=torch.Generator().manual_seed(seed))
    return Example(tuple(ids.tolist()), response, 0, f"{prompt}+{response}")


@pytest.mark.parametrize("lengths", [[(1, 1)], [(200, 1)], [(1, 200)], [(1, 1), (200, 56)], [(1, 1)] * 5])
def test_the_shortest_and_the_longest_examples(lengths: list[tuple[int, int]], tiny_model: TinyModel):
    loaded = tiny_model("gpt2")  # a context of 256 tokens
    aware = [with_lengths(*pair, seed) for seed, pair in enumerate(lengths)]
    matrices = editable_matrices(loaded.model, "mlp")
    expected = oracle(loaded, aware, aware[:1], matrices)
    scores = score_concept(loaded, aware, aware[:1], statistics=BY_GRADIENT, keep=1.0)
    for statistic in ("taylor", "gradient", "fisher"):
        found = dense_of(scores, statistic)
        assert all(distance(found[name], expected[statistic][name]) <= FLOAT32 for name in found)
    assert scores.info.response_tokens == sum(response for _, response in lengths)


def test_truncated_tokens_are_counted_in_the_metadata(tiny_model: TinyModel):
    aware = [replace(example, truncated=number % 3) for number, example in enumerate(tiny.examples(1))]
    scores = score_concept(tiny_model("llama"), aware)
    assert scores.info.truncated_tokens == sum(example.truncated for example in aware) > 0


def test_no_example_is_an_error(tiny_model: TinyModel):
    with pytest.raises(SpinError, match="no example"):
        score_concept(tiny_model("llama"), [])


@pytest.mark.parametrize("side", ["aware", "unaware"])
def test_a_loss_that_is_not_a_number_names_its_example(side: str, tiny_model: TinyModel):
    """A damaged row of the embedding that one example alone uses, among the aware or among the unaware ones."""
    loaded, sides = tiny_model("llama"), {"aware": tiny.examples(1), "unaware": tiny.examples(2)}
    sides = {name: [replace(e, prompt=f"{name} {e.prompt}") for e in rows] for name, rows in sides.items()}
    everything = [*sides["aware"], *sides["unaware"]]
    bad = sides[side][9]
    elsewhere = set().union(*(example.input_ids for example in everything if example is not bad))
    token = next(token for token in bad.input_ids[:-1] if token not in elsewhere)
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[token] = float("nan")
    before = footprint(loaded.model)
    with pytest.raises(SpinError, match=f"not finite on the example '{bad.prompt}'"):
        score_concept(loaded, sides["aware"], sides["unaware"], statistics=("taylor", "margin"))
    assert footprint(loaded.model) == before


@pytest.mark.parametrize("statistics", [("taylor",), ALL, ("wanda",)])
@pytest.mark.parametrize("ending", ["success", "interrupt"])
def test_the_model_is_left_as_it_was(statistics: tuple[str, ...], ending: str, tiny_model: TinyModel):
    loaded, aware, unaware = tiny_model("llama"), tiny.examples(1), tiny.examples(2)
    model = loaded.model.train()
    first = editable_matrices(model, "mlp")[0]
    first.module.eval()
    first.weight.requires_grad_(True)
    before, weights = footprint(model), [parameter.clone() for parameter in model.parameters()]

    def interrupt(done: int) -> None:
        if done and ending == "interrupt":
            raise KeyboardInterrupt

    if ending == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            score_concept(loaded, aware, unaware, statistics=statistics, progress=interrupt)
    else:
        score_concept(loaded, aware, unaware, statistics=statistics, progress=interrupt)
    assert footprint(model) == before
    assert all(torch.equal(now, then) for now, then in zip(model.parameters(), weights, strict=True))


def test_an_interrupt_inside_the_backward_pass_leaves_the_model_as_it_was(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
):
    loaded = tiny_model("llama")
    before, calls = footprint(loaded.model), []

    def interrupt(*args, **options):
        calls.append(args)
        raise KeyboardInterrupt

    monkeypatch.setattr("spin_llm.scores.passes.add_batch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        score_concept(loaded, tiny.examples(1))
    assert len(calls) == 1
    assert footprint(loaded.model) == before


def test_a_batch_that_reaches_no_targeted_matrix_adds_nothing(tiny_model: TinyModel):
    """As with an expert that no token is sent to, in a pass over that expert alone."""
    loaded = tiny_model("llama")
    asleep = Matrix("asleep", torch.nn.Linear(4, 4), 0, "mlp", False)
    totals = {"asleep": new_totals(("absolute",), asleep.weight, transposed=False)}
    with scoring(loaded, [asleep], totals) as add:
        add(make_batches(tiny.examples(1))[0])
    assert not totals["asleep"]["absolute"].any()
    assert asleep.weight.grad is None
