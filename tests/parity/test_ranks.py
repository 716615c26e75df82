"""Several processes, one result: the same selection as one process, whoever dies on the way."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TOLERANCE, TinyFolder
from test_importance import distance
from test_passes import OPTIONS, environment, run_trials, score_bytes, settings, write_pairs
from tiny import select

from spin_llm import pipeline
from spin_llm.scores import Scores, load_scores

RATIO = 0.02


def scores_of(folder: Path) -> dict[str, Scores]:
    return {name: load_scores(folder / "scores" / f"{name}.safetensors") for name in ("fairness", "privacy", "general")}


def chosen(folder: Path, rule: str) -> dict[str, list[int]]:
    scores = scores_of(folder)
    general = {"general": scores.pop("general")}
    found = select(scores, general, rule=rule, ratio=RATIO, protect_ratio=RATIO / 4)
    assert found.weights > 10
    return {name: indices.tolist() for name, indices in found.indices.items()}


def same_selection(one: Path, other: Path) -> bool:
    for name, scores in scores_of(one).items():
        for matrix, kept in scores.matrices.items():
            values = scores_of(other)[name].matrices[matrix].values
            assert distance(kept.values, values) <= TOLERANCE[torch.float32]
        assert scores.info == scores_of(other)[name].info
    return all(chosen(one, rule) == chosen(other, rule) for rule in ("coupled", "coupled-signed"))


@pytest.fixture(scope="module")
def words(tiny_folder: TinyFolder, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pairs")
    options = [*OPTIONS, "--examples", "16"]
    return ["score", str(tiny_folder("llama")), *write_pairs(folder, rows=20, words=300), *options]


@pytest.fixture(scope="module")
def alone(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scores that one process makes, in the command's own batches."""
    folder = tmp_path_factory.mktemp("alone") / "o"
    pipeline.score(settings(words, examples=16), folder)
    return folder


def test_torchrun_gives_the_selection_of_one_process(words: list[str], alone: Path, tmp_path: Path):
    tokens = scores_of(alone)["fairness"].info.tokens
    assert tokens > 2 * 1536, "work for both"
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "spin_llm.cli"]
    done = subprocess.run(
        [*start, *words, "-o", str(tmp_path / "o")], env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("plan: ") == 1, "one process talks"
    assert same_selection(tmp_path / "o", alone)
    assert not [path for path in (tmp_path / "o" / "progress").rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_dead_rank_ends_the_job_and_any_number_of_ranks_continues_it(tiny_folder: TinyFolder, tmp_path: Path):
    """Small batches, a checkpoint after each; either rank dies, and one or two processes take up what is there."""
    words = ["score", str(tiny_folder("llama")), *write_pairs(tmp_path, rows=20), *OPTIONS, "--examples", "8"]
    two = {"RANKS": "2"}
    killed = [("6", "1", two), ("13", "0", {"RANKS": "1"})]
    trials: list[tuple[list[str], dict[str, str]]] = [([*words, "-o", str(tmp_path / "alone")], {})]
    for place, rank, again in killed:
        folder = str(tmp_path / place)
        trials += [
            ([*words, "-o", folder], {**two, "STOP_AT": place, "STOP_RANK": rank}),
            ([*words, "-o", folder], again),
        ]
    trials += [([*words, "-o", str(tmp_path / "budgets")], {**two, "BUDGET_OF_RANK_1": "200m"})]
    codes, err = run_trials(trials)
    assert codes == [[0], [2, -9], [0, 0], [-9, 2], [0], [0, 0]], err
    assert err.count("spin-llm: Another process of this job is gone") == len(killed)
    assert "start the same command again, with as many processes as you like: it continues." in err
    for folder in ("6", "13", "budgets"):
        assert same_selection(tmp_path / folder, tmp_path / "alone")


def test_ranks_that_plan_another_number_of_passes_agree_on_one():
    from spin_llm.scores import Ranks

    class Two(Ranks):
        def gather_numbers(self, numbers: list[int]) -> list[list[int]]:
            return [numbers, [1, 3, 1]]

    assert Two(0, 2).agree_on(((1, 2, 3), (4, 5))) == ((1,), (2, 3, 4), (5,))
    assert Ranks().agree_on(((1, 2), (3,))) == ((1, 2), (3,))


def test_a_folder_that_two_processes_finished_is_complete_for_one(words: list[str], alone: Path, tmp_path: Path):
    shutil.copytree(alone, tmp_path / "o")
    before = score_bytes(tmp_path / "o")
    pipeline.score(settings(words, examples=16), tmp_path / "o")
    assert score_bytes(tmp_path / "o") == before
