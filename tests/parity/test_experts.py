"""Mixtures of experts, scored and patched per expert: fused parameters and linear modules against autograd on what
transformers itself makes of the fused parameters when it saves them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from conftest import TOLERANCE, TinyModel
from test_importance import clear_cuts, distance, footprint, loss_by_hand, raise_interrupt
from tiny import score_concept
from torch import nn
from transformers.core_model_loading import revert_weight_conversion

from spin_llm.data import Example
from spin_llm.errors import SpinError
from spin_llm.models import LoadedModel, Matrix, editable_matrices, load, mlp_coverage
from spin_llm.patch.file import apply_checkpoint, make_patch, revert_checkpoint
from spin_llm.pipeline import score
from spin_llm.progress import Console
from spin_llm.scores import importance, top_entries
from spin_llm.scores.importance import new_totals
from spin_llm.scores.passes import make_batches, scoring
from spin_llm.scores.plan import make_plan
from spin_llm.settings import RunSettings

FLOAT32 = TOLERANCE[torch.float32]
LAYOUTS = ("fused", "modules")


class Expert(nn.Module):
    def __init__(self, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor, activation: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (linear(weight) for weight in (gate, up, down))
        self.activation = activation

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.activation(self.gate_proj(hidden)) * self.up_proj(hidden))


class Experts(nn.ModuleList):
    """Experts as remote code and earlier versions of transformers write them: a list of modules."""

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(hidden)
        for number, expert in enumerate(self):
            tokens, ranks = torch.where(chosen == number)
            total = total.index_add(0, tokens, expert(hidden[tokens]) * shares[tokens, ranks, None])
        return total


def linear(weight: torch.Tensor) -> nn.Linear:
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    module.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return module


def in_layout(layout: str, loaded: LoadedModel) -> LoadedModel:
    """The model as transformers makes it, or with its experts as a list of modules."""
    for layer in loaded.model.model.layers if layout == "modules" else ():
        if fused := getattr(layer.mlp, "experts", None):
            gates_ups = [weight.chunk(2) for weight in fused.gate_up_proj]
            downs = list(fused.down_proj)
            layer.mlp.experts = Experts(
                Expert(gate, up, down, fused.act_fn) for (gate, up), down in zip(gates_ups, downs, strict=True)
            )
    return loaded


def oracle(loaded: LoadedModel, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Mean over examples of |W * gradient| of every parameter, by its name in the checkpoint."""
    parameters = dict(loaded.model.named_parameters())
    totals = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    loaded.model.requires_grad_(True)
    for example in examples:
        loaded.model.zero_grad()
        loss_by_hand(loaded.model, example).backward()
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                totals[name] += (parameter * parameter.grad).detach().abs() / len(examples)
    loaded.model.zero_grad()
    loaded.model.requires_grad_(False)
    return dict(revert_weight_conversion(loaded.model, totals) if fused_experts(loaded.model) else totals)


def fused_experts(model: Any) -> list[Matrix]:
    return [matrix for matrix in editable_matrices(model) if matrix.part]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", tiny.MOE)
def test_scores_and_top_sets_are_the_oracles(name: str, layout: str, tiny_model: TinyModel):
    loaded = in_layout(layout, tiny_model(name))
    matrices = editable_matrices(loaded.model, "all")
    assert bool(fused_experts(loaded.model)) == (layout == "fused")
    assert sum(matrix.routed for matrix in matrices) == (24 if name == "qwen3_moe" else 36)
    assert mlp_coverage(loaded.model) == 1.0
    expected = oracle(loaded, tiny.examples())
    batches: list[int] = []
    found = importance(loaded, tiny.examples(), matrices, progress=batches.append)
    assert batches == [1] * len(tiny.examples())
    for matrix in matrices:
        one, other = found[matrix.name], expected[matrix.name]
        assert one.shape == matrix.weight.shape
        assert distance(one, other) <= FLOAT32, matrix.name
        cuts = clear_cuts(other)
        assert len(cuts) >= 3, "too few sizes at which the top set is decided"
        for k in cuts:
            assert set(top_entries(one, k)[0].tolist()) == set(top_entries(other, k)[0].tolist()), (matrix.name, k)


def test_both_layouts_score_alike_under_the_same_names(tiny_model: TinyModel):
    loaded = tiny_model("qwen3_moe")
    found = [
        importance(model, tiny.examples(), editable_matrices(model.model))
        for model in (loaded, in_layout("modules", tiny_model("qwen3_moe")))
    ]
    assert set(found[0]) == set(found[1]) <= set(loaded.checkpoint.tensors)
    assert all(distance(found[0][name], found[1][name]) <= FLOAT32 for name in found[0])


def test_examples_share_a_batch_where_no_expert_is_scored(tiny_model: TinyModel):
    loaded, examples = tiny_model("mixtral"), tiny.examples()
    attention, everything = (editable_matrices(loaded.model, target) for target in ("attention", "all"))
    batches: list[int] = []
    found = importance(loaded, examples, attention, progress=batches.append)
    assert batches == [len(examples)]
    expected = importance(loaded, examples, everything)
    assert all(distance(scores, expected[name]) <= FLOAT32 for name, scores in found.items())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_experts_never_see_a_batch_of_several_examples(layout: str, tiny_model: TinyModel):
    loaded = in_layout(layout, tiny_model("mixtral"))
    matrices = editable_matrices(loaded.model)
    totals = {m.name: new_totals(("absolute",), m.weight, transposed=False) for m in matrices}
    (batch,) = make_batches(tiny.examples())
    with pytest.raises(AssertionError, match="routed tokens"), scoring(loaded, matrices, totals) as add:
        add(batch)


def test_any_division_into_passes_gives_the_same(tiny_model: TinyModel):
    """Also when gate and up, fused in one parameter, are in different passes, or one pass has an expert alone."""
    loaded, examples = tiny_model("mixtral"), tiny.examples()
    matrices = editable_matrices(loaded.model)
    whole = importance(loaded, examples, matrices)
    for passes in (5, len(matrices)):
        for first in range(passes):
            part = importance(loaded, examples, matrices[first::passes])
            assert all(torch.equal(scores, whole[name]) for name, scores in part.items())


def test_an_expert_that_saw_no_token_says_so(tiny_model: TinyModel):
    loaded, examples = tiny_model("mixtral"), tiny.examples()[:1]
    assert len(examples[0].input_ids) == 2
    expected = {name for name, scores in oracle(loaded, examples).items() if ".experts." in name and not scores.any()}
    matrices = editable_matrices(loaded.model)
    assert 0 < len(expected) < sum(matrix.routed for matrix in matrices)
    assert len(expected) % 3 == 0, "gate, up and down of an expert go together"
    whole = make_plan(loaded, make_batches(examples, matrices=matrices), matrices, ("absolute",), statistics=1)
    assert len(whole.partitions) == 1
    apart = replace(whole, partitions=tuple((matrix,) for matrix in matrices))
    for plan in (None, whole, apart):
        scores = score_concept(loaded, examples, plan=plan)
        assert set(scores.info.silent) == expected
    assert score_concept(loaded, tiny.examples()).info.silent == ()


@pytest.mark.parametrize("ending", ["success", "error", "interrupt"])
def test_the_model_is_left_as_it_was(ending: str, tiny_model: TinyModel):
    loaded = tiny_model("qwen3_moe")
    matrices = fused_experts(loaded.model)
    before = (footprint(loaded.model), loaded.model.get_experts_implementation())
    assert before[1] != {"": "eager"}
    if ending == "success":
        importance(loaded, tiny.examples(), matrices)
    elif ending == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            importance(loaded, tiny.examples(), matrices, progress=raise_interrupt)
    else:
        with torch.no_grad():
            matrices[0].weight[0, 0] = float("nan")
        with pytest.raises(SpinError, match="not finite"):
            importance(loaded, tiny.examples(), matrices)
    assert (footprint(loaded.model), loaded.model.get_experts_implementation()) == before
    assert not torch.overrides._get_current_function_mode_stack()


def test_a_forward_pass_that_hides_its_experts_is_an_error(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch):
    """Rather than scores of zero: here the implementation that multiplies all experts at once stays on."""
    loaded = tiny_model("qwen3_moe")
    monkeypatch.setattr(type(loaded.model), "set_experts_implementation", lambda self, wanted: None)
    with pytest.raises(SpinError, match="experts of Qwen3MoeForCausalLM cannot be scored"):
        importance(loaded, tiny.examples(), editable_matrices(loaded.model))


@pytest.mark.parametrize("name", tiny.MOE)
def test_an_edit_reaches_its_expert_and_no_other(name: str, tiny_model: TinyModel, tmp_path: Any):
    """In memory and on disk, as transformers reads it back; the way back gives the same bytes."""
    loaded = tiny_model(name)
    up = "w3" if name == "mixtral" else "up_proj"
    (matrix,) = (m for m in fused_experts(loaded.model) if m.layer == 1 and m.name.endswith(f".experts.2.{up}.weight"))
    patch = make_patch(loaded.checkpoint, tiny.selection([matrix]))
    edit = patch.edits[matrix.name]
    fused = {key: value.clone() for key, value in loaded.model.state_dict().items()}
    expected = {key: value.clone() for key, value in fused.items()}
    rows, columns = edit.indices // matrix.weight.shape[1], edit.indices % matrix.weight.shape[1]
    half = matrix.weight.shape[0]
    expected["model.layers.1.mlp.experts.gate_up_proj"][2, half + rows, columns] = 0
    with patch.applied(loaded.model) as model:
        assert not tiny.loaded_parameter(model, matrix.name).flatten()[edit.indices].any()
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(value, fused[key]) for key, value in loaded.model.state_dict().items())
    edited = load(str(apply_checkpoint(loaded.checkpoint, patch, tmp_path / "edited")), dtype="float32")
    assert all(torch.equal(value, expected[key]) for key, value in edited.model.state_dict().items())
    back = revert_checkpoint(edited.checkpoint, patch, tmp_path / "back")
    assert tiny.folder_bytes(back) == tiny.folder_bytes(loaded.checkpoint.folder)


def test_what_is_not_covered_is_said_and_an_mlp_run_on_it_fails(tiny_model: TinyModel, tmp_path: Any):
    folder = str(tiny_model("gpt_oss").checkpoint.folder)
    concepts = (("fairness", "starter"),)
    settings = RunSettings(folder, concepts=concepts, dtype="float32", examples=2, template="raw", target="all")
    said: list[str] = []
    score(settings, tmp_path / "all", console=Console(said.append))
    assert [line for line in said if "only 0% of the MLP weights are scored" in line]
    with pytest.raises(SpinError, match="no mlp matrix that can be edited"):
        score(replace(settings, target="mlp"), tmp_path / "mlp")
