"""Importances example by example against autograd, one example at a time; resampled scores against scoring the
resampled examples; the selection of all examples against the selection itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import TOLERANCE, TinyModel
from test_importance import distance, footprint, loss_by_hand
from tiny import score_concept

from spin_llm.analysis import stability
from spin_llm.analysis.stability import Job, all_examples, fitting_candidates, measure_stability, select_again
from spin_llm.data import Example
from spin_llm.errors import SpinError
from spin_llm.models import LoadedModel, Matrix, editable_matrices
from spin_llm.pipeline import patch_of, usual_recipe
from spin_llm.pipeline.evaluate_stage import control_patches
from spin_llm.progress import Console
from spin_llm.results.edited import PENALTY, Recipe
from spin_llm.scores import CANDIDATES, Scores, ScoreSet, Sides, gather, reweighted
from spin_llm.scores.accumulate import accumulation, by_operators
from spin_llm.scores.per_example import gradient_at, load_per_example, save_per_example
from spin_llm.scores.storage import candidate_entries
from spin_llm.selection import select
from spin_llm.selection.rules.signed import FLOOR
from spin_llm.settings import RunSettings

FLOAT32 = TOLERANCE[torch.float32]
NAMES = ("llama", "gpt2", "gpt_neox", "gemma3", "qwen3_moe", "mixtral")
KEEP, RATIO = 0.3, 0.05


def some_of(matrices: Sequence[Matrix]) -> dict[str, torch.Tensor]:
    """A fifth of the entries of every matrix but the first."""
    generator = torch.Generator().manual_seed(3)
    sizes = {matrix.name: matrix.weight.numel() for matrix in matrices[1:]}
    return {n: torch.randperm(size, generator=generator)[: size // 5].sort().values for n, size in sizes.items()}


def by_autograd(loaded: LoadedModel, example: Example, matrices: Sequence[Matrix]) -> dict[str, torch.Tensor]:
    """W * dL/dW of one example, shaped as the matrices are stored."""
    loaded.model.requires_grad_(True)
    loaded.model.zero_grad()
    loss_by_hand(loaded.model, example).backward()
    found = {}
    for matrix in matrices:
        parameter = matrix.module.weight if matrix.part is None else getattr(matrix.module, matrix.part.parameter)
        gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        if matrix.part is not None:
            gradient = gradient[matrix.part.expert, matrix.part.start : matrix.part.stop]
        found[matrix.name] = (matrix.weight * gradient).detach().clone()
    loaded.model.zero_grad()
    loaded.model.requires_grad_(False)
    return found


def in_batch_order(examples: Sequence[Example]) -> list[Example]:
    return sorted(examples, key=lambda example: len(example.input_ids), reverse=True)


@pytest.mark.parametrize("target", ["mlp", "attention"])
@pytest.mark.parametrize("name", NAMES)
def test_each_example_s_importances_are_autograd_s(name: str, target: str, tiny_model: TinyModel):
    loaded = tiny_model(name)
    matrices = editable_matrices(loaded.model, target)
    before = footprint(loaded.model)
    places, aware, unaware = some_of(matrices), tiny.examples(), tiny.examples(1)[:4]
    found = gather(loaded, matrices, places, aware, unaware)
    assert footprint(loaded.model) == before
    assert (found.examples, found.unaware) == (len(aware), len(unaware))
    assert set(found.importance) == set(places)
    rows = [by_autograd(loaded, example, matrices) for part in (aware, unaware) for example in in_batch_order(part)]
    for matrix, indices in places.items():
        expected = torch.stack([row[matrix].flatten()[indices] for row in rows])
        assert expected.abs().max() > 0
        assert distance(found.signed[matrix], expected) <= FLOAT32, matrix
        assert distance(found.importance[matrix], expected[: len(aware)].abs()) <= FLOAT32, matrix


@pytest.mark.parametrize("selector", ["taylor", "gradient"])
@pytest.mark.parametrize("name", NAMES)
def test_the_mean_over_examples_is_the_stored_score(name: str, selector: str, tiny_model: TinyModel):
    loaded = tiny_model(name)
    scores = score_concept(loaded, tiny.examples(), statistics=(selector,), keep=KEEP)
    kept = {name: matrix.indices.sort().values for name, matrix in scores.matrices.items()}
    per_example = gather(loaded, editable_matrices(loaded.model), kept, tiny.examples(), selector=selector)
    again = reweighted(scores, per_example, torch.ones(per_example.examples), torch.ones(0))
    for matrix, stored in scores.matrices.items():
        assert torch.allclose(again.matrices[matrix].values, stored.values, rtol=FLOAT32, atol=1e-12), matrix


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
@pytest.mark.parametrize("compiled", [True, False])
def test_bfloat16_gradients_are_the_scoring_pass_s(
    name: str, compiled: bool, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
):
    """To sums in another order where they are compiled; torch's operators round each gradient to bfloat16."""
    if not compiled:
        monkeypatch.setenv("CC", "")
    loaded = tiny_model(name, dtype="bfloat16")
    bound = 2**-8 if accumulation(loaded.device, loaded.dtype) is by_operators else FLOAT32
    scores = score_concept(loaded, tiny.examples(), keep=KEEP)
    kept = {name: matrix.indices.sort().values for name, matrix in scores.matrices.items()}
    per_example = gather(loaded, editable_matrices(loaded.model), kept, tiny.examples())
    for matrix, stored in scores.matrices.items():
        mean = per_example.importance[matrix].mean(0)
        expected = stored.values[stored.indices.argsort()]
        assert ((mean - expected).abs() <= bound * expected).all(), matrix


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
def test_a_resample_s_scores_are_those_of_scoring_the_resampled_examples(name: str, tiny_model: TinyModel):
    loaded = tiny_model(name)
    aware, unaware = in_batch_order(tiny.examples()), in_batch_order(tiny.examples(1)[:5])
    counts, unaware_counts = [2, 0, 1, 3, 0, 1, 0, 1, 2, 0, 1], [0, 2, 1, 1, 1]
    repeated = [e for e, times in zip(aware, counts, strict=True) for _ in range(times)]
    unaware_repeated = [e for e, times in zip(unaware, unaware_counts, strict=True) for _ in range(times)]
    options: dict[str, Any] = {"statistics": ("taylor", "margin"), "keep": KEEP}
    expected = score_concept(loaded, repeated, unaware_repeated, **options)
    original = score_concept(loaded, aware, unaware, **options)
    kept = {name: matrix.indices.sort().values for name, matrix in expected.matrices.items()}
    per_example = gather(loaded, editable_matrices(loaded.model), kept, aware, unaware)
    found = reweighted(original, per_example, torch.tensor(counts).float(), torch.tensor(unaware_counts).float())
    for matrix, other in expected.matrices.items():
        one = found.matrices[matrix]
        assert distance(one.values, other.values) <= FLOAT32
        order, other_order = one.indices.argsort(), other.indices.argsort()
        assert torch.equal(one.indices[order], other.indices[other_order])
        margins = one.at["margin@taylor"][order], other.at["margin@taylor"][other_order]
        assert distance(*margins) <= FLOAT32
    assert any(
        not torch.equal(found.matrices[name].indices[:20], matrix.indices[:20])
        for name, matrix in original.matrices.items()
    ), "the resample changes something"


def scored(
    loaded: LoadedModel, granularity: str = "matrix", at_least: int | None = None
) -> tuple[dict[str, Sides], dict[str, Scores]]:
    names = ("fairness", "privacy", "general")
    examples = {name: Sides(tiny.examples(i), tiny.examples(i + 9)[:6]) for i, name in enumerate(names)}
    examples["general"] = Sides(tiny.examples(2))
    return examples, scores_of(loaded, examples, granularity, at_least=at_least)


def scores_of(
    loaded: LoadedModel,
    examples: dict[str, Sides],
    granularity: str = "matrix",
    keep: float = KEEP,
    at_least: int | None = None,
) -> dict[str, Scores]:
    scores: dict[str, Scores] = {}
    for name, part in examples.items():
        options: dict[str, Any] = {"statistics": ("taylor", "margin") if part.unaware else ("taylor",), "keep": keep}
        if name == "general":
            options["candidates"] = candidate_entries(scores, list(scores["fairness"].matrices), at_least)
        scores[name] = score_concept(loaded, part.aware, part.unaware, granularity=granularity, **options)
    return scores


def job_of(
    scores: dict[str, Scores], rule: str = "coupled", granularity: str = "matrix", ratio: float = RATIO, **more: Any
) -> Job:
    concepts, protected = {n: scores[n] for n in ("fairness", "privacy")}, {"general": scores["general"]}
    recipe = Recipe(rule, ratio, protect_ratio=0.03, granularity=granularity, **more)
    made = ScoreSet(concepts, protected)
    return Job(select(made, recipe), made)


def with_examples(loaded: LoadedModel, job: Job, examples: dict[str, Sides]) -> Job:
    """The job after its second pass, with as many candidates as there are."""
    multiple, entries = fitting_candidates(job, examples)
    matrices = editable_matrices(loaded.model)
    parts = {k: gather(loaded, matrices, entries, part.aware, part.unaware) for k, part in examples.items()}
    return replace(job, per_example=parts, multiple=multiple)


CASES: list[tuple[str, str, str, dict[str, Any]]] = [
    ("gpt2", "coupled", "matrix", {}),
    ("gpt_neox", "released", "matrix", {}),
    ("qwen3_moe", "coupled-signed", "matrix", {}),
    ("gemma3", "coupled", "matrix", {"at_least": 1, "fractions": (("fairness", 0.4),)}),
    *(("llama", "coupled", granularity, {}) for granularity in ("row", "layer", "model")),
    *(("llama", "signed", granularity, {"ratio": 0.01}) for granularity in ("matrix", "layer", "model")),
    ("qwen3_moe", "signed", "model", {"ratio": 0.01}),
    ("gpt2", "signed", "model", {"ratio": 0.02, "at_least": 1, "fractions": (("privacy", 0.5),), "penalty": 1.0}),
]


@pytest.mark.parametrize(("name", "rule", "granularity", "more"), CASES)
def test_all_examples_once_select_the_selection(
    name: str, rule: str, granularity: str, more: dict[str, Any], tiny_model: TinyModel
):
    loaded = tiny_model(name)
    examples, scores = scored(loaded, granularity, more.get("at_least"))
    job = with_examples(loaded, job_of(scores, rule, granularity, **more), examples)
    again, _ = select_again(job, all_examples(job))
    assert again.keys() == job.selection.indices.keys()
    assert all(torch.equal(again[name], indices) for name, indices in job.selection.indices.items())
    assert job.selection.weights > 5


def drawn_examples(examples: dict[str, Sides], seed: int) -> tuple[Any, dict[str, Sides]]:
    """(how often each example of each set was drawn, the sets with each example as often), in the order of batches."""
    generator = torch.Generator().manual_seed(seed)
    counts, repeated = {}, {}
    for name, part in examples.items():
        sides, numbers = [], []
        for side in (part.aware, part.unaware):
            rows = in_batch_order(side)
            picked = torch.randint(max(len(rows), 1), (len(rows),), generator=generator)
            numbers.append(picked.bincount(minlength=len(rows)).float() if rows else torch.ones(0))
            sides.append([rows[number] for number in picked.tolist()])
        counts[name], repeated[name] = (numbers[0], numbers[1]), Sides(*sides)
    return counts, repeated


def textbook(
    job: Job, scores: dict[str, Scores], candidates: dict[str, torch.Tensor] | None = None
) -> set[tuple[str, int]]:
    """What `signed` selects over the model from scores that keep everything, entry by entry, among the `candidates`
    (None: all entries); what it divides by, and the limits of what is kept and spared, are those of the job."""
    found = []
    for name, place in job.selection.places.items():
        gain = torch.full((place.size,), torch.inf)
        for concept, before in job.scores.concepts.items():
            kept = [matrix.others["margin"].values.clamp_min(0) for matrix in before.matrices.values()]
            now = scores[concept].matrices[name].others["margin"]
            margin = torch.empty(place.size)
            margin[now.indices] = now.values
            least = float(before.matrices[name].others["margin"].values[-1])
            margin[margin < least] = -torch.inf
            gain = torch.minimum(gain, margin / torch.cat(kept).mean())
        importance = torch.empty(place.size)
        importance[scores["general"].matrices[name].indices] = scores["general"].matrices[name].values
        level = job.scores.protected["general"].matrices[name].values[int(0.03 * place.size) - 1]
        score = gain / (importance / mean_cost(job) + FLOOR) ** PENALTY
        score[importance >= level] = -torch.inf
        among = range(place.size) if candidates is None else candidates.get(name, torch.empty(0)).tolist()
        found += [(float(score[entry]), name, entry) for entry in among if score[entry] > 0]
    most = int(job.recipe.ratio * sum(place.size for place in job.selection.places.values()))
    return {(name, entry) for _, name, entry in sorted(found, key=lambda row: -row[0])[:most]}


def mean_cost(job: Job) -> float:
    """Of the entries with a positive margin that all concepts keep, and that the protected top set has not."""
    total = []
    for name, place in job.selection.places.items():
        margins = [scores.matrices[name].others["margin"] for scores in job.scores.concepts.values()]
        kept = [set(margin.indices[margin.values > 0].tolist()) for margin in margins]
        general = job.scores.protected["general"].matrices[name]
        spared = set(general.indices[: int(0.03 * place.size)].tolist())
        cost = dict(
            zip(general.others[CANDIDATES].indices.tolist(), general.others[CANDIDATES].values.tolist(), strict=True)
        )
        total += [cost[entry] for entry in set.intersection(*kept) - spared]
    return sum(total) / len(total)


def entries_of(chosen: dict[str, torch.Tensor]) -> set[tuple[str, int]]:
    return {(name, entry) for name, indices in chosen.items() for entry in indices.tolist()}


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
def test_signed_selects_from_a_resample_as_from_scoring_it(name: str, tiny_model: TinyModel):
    """The candidates are all that the files have of both concepts."""
    loaded = tiny_model(name)
    examples, scores = scored(loaded)
    job = job_of(scores, "signed", "model", ratio=0.01)
    entries = {n: m.indices.sort().values for n, m in job.rankings["signed"][0].matrices.items() if len(m.indices)}
    matrices = editable_matrices(loaded.model)
    parts = {k: gather(loaded, matrices, entries, part.aware, part.unaware) for k, part in examples.items()}
    job = replace(job, per_example=parts)
    own = entries_of(job.selection.indices)
    for seed in range(3):
        counts, repeated = drawn_examples(examples, seed)
        found = entries_of(select_again(job, counts)[0])
        everything = scores_of(loaded, repeated, keep=1.0)
        assert found == textbook(job, everything, entries)
        assert found != own, "the resample changes something"
        # with other entries let in, none of the selection comes back: what is measured can only be too stable
        assert textbook(job, everything) & own <= found
        assert len(found) == len(own) > 50


def test_a_second_pass_measures_and_goes_on_where_it_was_killed(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    loaded = tiny_model("llama")
    examples, scores = scored(loaded)
    options: dict[str, Any] = {"resamples": 12, "seed": 4}
    whole = measure_stability(loaded, examples, job_of(scores), **options)
    assert whole.reproduced == 1.0
    assert 0 < whole.jaccard.low <= whole.jaccard.mean <= whole.jaccard.high <= 1
    assert whole.jaccard.mean < 1, "eleven examples do not make a stable selection"
    assert whole.in_most <= whole.in_half <= whole.weights == job_of(scores).selection.weights
    assert sum(len(part.frequency) for part in whole.frequency.values()) == whole.weights
    assert whole == measure_stability(loaded, examples, job_of(scores), **options)
    assert whole != measure_stability(loaded, examples, job_of(scores), **{**options, "seed": 5})

    passes: list[int] = []

    def killed_in_the_second(*words: Any, **more: Any) -> Any:
        passes.append(1)
        if len(passes) == 2:
            raise KeyboardInterrupt
        return gather(*words, **more)

    monkeypatch.setattr(stability, "gather", killed_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        measure_stability(loaded, examples, job_of(scores), folder=tmp_path, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["fairness.safetensors"]
    assert measure_stability(loaded, examples, job_of(scores), folder=tmp_path, **options) == whole
    assert len(passes) == 4, "fairness once, privacy twice, general once"


def test_the_candidates_fit_the_memory_or_it_says_what_to_change(tiny_model: TinyModel):
    examples, scores = scored(tiny_model("llama"))
    job = job_of(scores)
    multiple, entries = fitting_candidates(job, examples, 2**40)
    assert multiple == pytest.approx(KEEP / RATIO), "no more than the score files keep"
    needed = 4 * sum(map(len, entries.values())) * ((11 + 11 + 6) * 2 + 11)
    assert fitting_candidates(job, examples, needed)[0] == multiple
    assert fitting_candidates(job, examples, needed - 1)[0] == multiple / 2
    with pytest.raises(SpinError, match=r"MiB may be taken(.|\n)*--memory-budget"):
        fitting_candidates(job, examples, 1000)
    little = {name: replace(part, info=replace(part.info, keep=0.06)) for name, part in scores.items()}
    with pytest.raises(SpinError, match=r"keep 1\.2 times the ratio(.|\n)*--keep"):
        fitting_candidates(job_of(little), examples)


def test_what_cannot_be_resampled(tiny_model: TinyModel):
    loaded = tiny_model("llama")
    with pytest.raises(SpinError, match=r"'wanda' are no mean(.|\n)*taylor or gradient"):
        gather(loaded, editable_matrices(loaded.model), {}, tiny.examples(), selector="wanda")
    examples, scores = scored(loaded)
    for part in (Sides(tiny.examples()[:1]), Sides(tiny.examples(), tiny.examples()[:1])):
        with pytest.raises(SpinError, match="'privacy' has one example of a kind"):
            measure_stability(loaded, {**examples, "privacy": part}, job_of(scores), resamples=2)


def test_a_set_s_importances_go_through_a_file(tiny_model: TinyModel, tmp_path: Path):
    loaded = tiny_model("gpt2")
    matrices = editable_matrices(loaded.model)
    found = gather(loaded, matrices, some_of(matrices), tiny.examples()[:3], tiny.examples()[3:5])
    path = tmp_path / "set.safetensors"
    save_per_example(path, found, "this job")
    assert load_per_example(path, "another job") is None
    again = load_per_example(path, "this job")
    assert again is not None
    for one, other in ((found.importance, again.importance), (found.signed, again.signed)):
        assert set(one) == set(other)
        assert all(torch.equal(one[name], other[name]) for name in one)
    path.write_bytes(path.read_bytes()[:100])
    assert load_per_example(path, "this job") is None
    assert load_per_example(tmp_path / "absent", "this job") is None


def test_gradients_at_entries_in_chunks(monkeypatch: pytest.MonkeyPatch):
    left, right = torch.randn(5, 4), torch.randn(5, 6)
    rows, columns = torch.tensor([0, 3, 2, 2]), torch.tensor([5, 0, 1, 4])
    whole = gradient_at(left, right, rows, columns)
    assert torch.allclose(whole, (left.t() @ right)[rows, columns], atol=1e-6)
    monkeypatch.setattr("spin_llm.scores.per_example.CHUNK", 5)
    assert torch.allclose(gradient_at(left, right, rows, columns), whole, atol=1e-6)


# Controls of a real selection, as patches


def weights_of(loaded: LoadedModel) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in loaded.model.parameters()])


def test_a_control_that_is_the_edit_or_selects_nothing_is_left_out(tiny_model: TinyModel):
    loaded = tiny_model("gpt2")
    _, scores = scored(loaded)
    named = {n: Scores(s.matrices, replace(s.info, data_sha256=n)) for n, s in scores.items()}
    sides = ScoreSet({n: named[n] for n in ("fairness", "privacy")}, {"general": named["general"]})
    sources = (("fairness", "f.csv"), ("privacy", "p.csv"))
    for rule, left_out in (("coupled", set()), ("released", {"released"})):
        settings = RunSettings("gpt2", concepts=sources, rule=rule, controls=("all",), keep=KEEP, protect_ratio=0.03)
        recipe = usual_recipe(settings, rule, RATIO)
        selection = select(sides, recipe)
        patch = patch_of(settings, loaded.checkpoint, selection, sides)
        said: list[str] = []
        before = weights_of(loaded)
        made, why = control_patches(settings, loaded.checkpoint, sides, selection, patch, Console(said.append))
        assert set(why) == left_out
        assert set(made) | set(why) == set(settings.all_controls)
        assert all(f"control {name} is left out: It is the edit itself." in said for name in left_out)
        for name, control in made.items():
            with control.applied(loaded.model):
                assert not torch.equal(weights_of(loaded), before), name
            assert torch.equal(weights_of(loaded), before), name
    # the edit's matrices without one other weight: nothing of the same magnitude is left
    full = replace(selection, indices={n: torch.arange(p.size) for n, p in selection.places.items()})
    settings = replace(settings, controls=("same-magnitude",))
    made, why = control_patches(settings, loaded.checkpoint, sides, full, patch, Console())
    assert not made
    assert "changes no weight" in why["same-magnitude"]
