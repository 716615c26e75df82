"""Score files: what is kept of dense scores, the file's contract, and files that are not score files."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import TinyModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tiny import score_concept

from spin_llm.errors import SpinError
from spin_llm.files import SEAL
from spin_llm.models import editable_matrices
from spin_llm.scores import (
    MatrixScores,
    Scores,
    ScoresInfo,
    count,
    importance,
    load_scores,
    save_scores,
    storage,
    top_entries,
)


@pytest.fixture
def scores() -> Scores:
    indices, values = top_entries(torch.tensor([[0.5, 2.0, 2.0], [0.0, 3.0, 1.0]]), 4)
    matrices = {"model.layers.0.mlp.up_proj.weight": MatrixScores(indices, values, (2, 3), 0, "mlp")}
    return Scores(matrices, ScoresInfo(keep=0.7, model="0123", target="mlp", examples=2))


def test_the_largest_come_first_and_ties_by_lower_index(scores: Scores):
    (matrix,) = scores.matrices.values()
    assert matrix.indices.tolist() == [4, 1, 2, 5]
    assert matrix.values.tolist() == [3.0, 2.0, 2.0, 1.0]
    assert (matrix.indices.dtype, matrix.values.dtype, matrix.size) == (torch.int64, torch.float32, 6)


@pytest.mark.parametrize(
    ("ratio", "size", "expected"),
    [(0.29, 100, 29), (0.57, 100, 57), (1e-4, 10_000, 1), (9.9e-5, 10_000, 0), (5e-7, 11008 * 4096, 22), (1e-2, 99, 0)],
)
def test_counts_are_exact_for_decimal_ratios(ratio: float, size: int, expected: int):
    assert count(ratio, size) == expected


def test_a_saved_file_is_read_as_it_was(scores: Scores, tmp_path: Path):
    save_scores(tmp_path / "scores" / "fairness.safetensors", scores)
    assert [path.name for path in (tmp_path / "scores").iterdir()] == ["fairness.safetensors"]
    found = load_scores(tmp_path / "scores" / "fairness.safetensors")
    assert found.info == scores.info
    assert list(found.matrices) == list(scores.matrices)
    for name, matrix in found.matrices.items():
        expected = scores.matrices[name]
        assert torch.equal(matrix.indices, expected.indices)
        assert torch.equal(matrix.values, expected.values)
        assert (matrix.shape, matrix.layer, matrix.kind) == (expected.shape, expected.layer, expected.kind)


def test_the_file_holds_what_the_contract_says(scores: Scores, tmp_path: Path):
    save_scores(tmp_path / "a.safetensors", scores)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert sorted(file.keys()) == [f"model.layers.0.mlp.up_proj.weight.{part}" for part in ("indices", "values")]
        assert file.metadata()["format"] == "spin-llm scores 1"


def test_score_concept_keeps_the_top_of_the_scoring_pass(tiny_model: TinyModel):
    loaded, examples = tiny_model("gpt2"), tiny.examples()
    dense = importance(loaded, examples, editable_matrices(loaded.model, "mlp"))
    found = score_concept(loaded, examples, keep=0.05)
    assert list(found.matrices) == list(dense)
    for name, matrix in found.matrices.items():
        indices, values = top_entries(dense[name], count(0.05, dense[name].numel()))
        assert torch.equal(matrix.indices, indices)
        assert torch.equal(matrix.values, values)
        assert matrix.shape == tuple(dense[name].shape)
    expected = {
        "examples": len(examples),
        "tokens": sum(len(example.input_ids) for example in examples),
        "response_tokens": sum(example.response_tokens for example in examples),
        "truncated_tokens": 0,
        "dtype": "float32",
        "model": loaded.checkpoint.fingerprint,
        "target": "mlp",
        "keep": 0.05,
    }
    assert expected.items() <= found.info.as_json().items()
    assert {"selector", "loss", "reduction"} <= set(found.info.as_json())


def test_every_matrix_keeps_one_entry_at_least(tiny_model: TinyModel):
    found = score_concept(tiny_model("llama"), tiny.examples(), keep=1e-6)
    assert {matrix.indices.numel() for matrix in found.matrices.values()} == {1}


# Files that are not score files


def test_an_absent_file(tmp_path: Path):
    with pytest.raises(SpinError, match=r"no score file .*(.|\n)*spin-llm score"):
        load_scores(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("kept", [0, 5, 100, -10])
def test_a_truncated_file(kept: int, scores: Scores, tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save_scores(path, scores)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(SpinError, match=r"not a readable score file(.|\n)*truncated"):
        load_scores(path)


def test_any_change_of_the_file_is_seen(scores: Scores, tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save_scores(path, scores)
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(SpinError, match=r"a\.safetensors"):
            load_scores(path)
    path.write_bytes(whole)
    save_file(load_file(path), path, metadata=unsealed(whole))
    assert load_scores(path).matrices.keys() == scores.matrices.keys()  # as version 0.1.0 wrote it


def unsealed(whole: bytes) -> dict[str, str]:
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    return {key: value for key, value in header["__metadata__"].items() if key != SEAL}


@pytest.mark.parametrize(
    ("indices", "values"),
    [
        ([4, 6], [2.0, 1.0]),
        ([-1, 4], [2.0, 1.0]),
        ([4, -(2**63)], [2.0, 1.0]),
        ([4], [2.0, 1.0]),
        ([4, 1], [2.0, float("nan")]),
        ([[4, 1]], [[2.0, 1.0]]),
        ([4.0, 1.0], [2.0, 1.0]),
        ([4, 1], [2, 1]),
    ],
)
def test_scores_that_cannot_be(indices: list[Any], values: list[Any], tmp_path: Path):
    wrong = MatrixScores(torch.tensor(indices), torch.tensor(values), (2, 3), 0, "mlp")
    save_scores(tmp_path / "a.safetensors", Scores({"m": wrong}, ScoresInfo()))
    with pytest.raises(SpinError, match="the scores of m are inconsistent"):
        load_scores(tmp_path / "a.safetensors")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": "spin-llm patch 1"}])
def test_a_file_of_another_kind(metadata: dict[str, str] | None, tmp_path: Path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(SpinError, match="not a score file of this version"):
        load_scores(tmp_path / "a.safetensors")


def test_a_file_whose_tensors_are_not_those_of_its_header(scores: Scores, tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save_scores(path, scores)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({"other": torch.zeros(1)}, path, metadata=metadata)
    with pytest.raises(SpinError, match="its content is not what was written"):
        load_scores(path)
    save_file({"other": torch.zeros(1)}, path, metadata={k: v for k, v in metadata.items() if k != SEAL})
    with pytest.raises(SpinError, match="not a readable score file"):
        load_scores(path)


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device")]
)
def test_a_full_disk_leaves_nothing(
    failure: Exception, scores: Scores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(tensors: Any, path: Path, **options: Any) -> None:
        path.write_bytes(b"half of it")
        raise failure

    monkeypatch.setattr(storage, "save_file", fail)
    with pytest.raises(SpinError, match="disk is full"):
        save_scores(tmp_path / "a.safetensors", scores)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_complete_file_of_before(scores: Scores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.safetensors"
    save_scores(path, scores)
    before = path.read_bytes()

    def fail(*args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "save_file", fail)
    with pytest.raises(SpinError, match="disk is full"):
        save_scores(path, scores)
    assert tiny.folder_bytes(tmp_path) == {path.name: before}


@pytest.mark.parametrize(
    "scoring",
    [
        {"keep": "much"},
        {"keep": [0.1]},
        {"keep": 7},
        {"model": ["a"]},
        {"target": {}},
        {"selector": None, "silent": "x"},
    ],
)
def test_metadata_of_other_types_are_refused(scoring: dict[str, Any], scores: Scores, tmp_path: Path):
    save_scores(tmp_path / "a.safetensors", Scores(scores.matrices, replace(scores.info, **scoring)))
    with pytest.raises(SpinError, match=r"metadata of .*a\.safetensors"):
        load_scores(tmp_path / "a.safetensors")


@pytest.mark.parametrize("k", [1, 50, 5_000, 49_999, 50_000])
@pytest.mark.parametrize("kind", ["spread", "rounded", "zeros", "one row large"])
def test_the_largest_entries_of_a_large_matrix(kind: str, k: int):
    """Whatever the sample of its entries says of them: largest first, ties by the lower index."""
    values = torch.randn(250, 200, generator=torch.Generator().manual_seed(3)).abs()
    if kind == "rounded":
        values = (4 * values).round()
    elif kind == "zeros":
        values = (values > 3).float()
    elif kind == "one row large":
        values[7] += 100
    flat = values.flatten().tolist()
    expected = sorted(range(len(flat)), key=lambda place: (-flat[place], place))[:k]
    indices, found = top_entries(values, k)
    assert indices.tolist() == expected
    assert torch.equal(found, values.flatten()[indices])
