"""Benchmark tasks through lm-eval: local tasks on a tiny model, paired by document; without it, one clear message."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

from spin_llm.errors import SpinError
from spin_llm.evaluate import tasks as capabilities
from spin_llm.evaluate.tasks import (
    METRICS,
    OWN_TASKS,
    PAPER,
    check_tasks,
    chosen_metric,
    compare,
    measure_capabilities,
    named_tasks,
    task_manager,
)
from spin_llm.files import read_typed_lines
from spin_llm.models import LoadedModel
from spin_llm.patch.file import make_patch
from spin_llm.results.rows import DocumentRow

DOCUMENTS = 24
needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-eval is not installed (pip install 'spin-llm[capabilities]')",
)


def test_names_with_commas_each_once_and_the_paper_s():
    assert named_tasks(["boolq, race", "boolq"]) == ("boolq", "race")
    assert named_tasks(["paper", "boolq", "mine"]) == (*PAPER, "mine")
    assert named_tasks([]) == ()


def test_without_lm_eval_there_is_one_message(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(SpinError, match="lm-eval, which is not installed") as caught:
        check_tasks(["boolq"])
    assert "spin-llm[capabilities]" in caught.value.change


def test_a_run_without_lm_eval_stops_before_any_work(setting_of_run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from spin_llm.pipeline import context, run

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setattr(context, "load", lambda *args, **options: pytest.fail("the model was loaded"))
    with pytest.raises(SpinError, match="lm-eval"):
        run(setting_of_run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def setting_of_run(tmp_path: Path):
    from spin_llm.settings import RunSettings

    pairs = [{"prompt": f"Question {i}?", "response": f"Answer {i}."} for i in range(24)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    options = {"model": "nowhere", "concepts": [str(data)], "protect": [str(data)], "questions": [str(data)]}
    return RunSettings(**{**options, "examples": 4, "capabilities": ["boolq,race"]})


def test_the_options_become_settings_and_come_back(setting_of_run):
    from spin_llm.pipeline import replay_command
    from spin_llm.records import settings_from_json

    assert setting_of_run.capabilities == ("boolq", "race")
    assert settings_from_json(json.loads(json.dumps(asdict(setting_of_run)))) == setting_of_run
    assert "--capabilities boolq --capabilities race" in replay_command(setting_of_run)


def rows_of(values: dict[str, list[Any]], better: str = "higher") -> list[DocumentRow]:
    return [
        DocumentRow(task="t", document=f"t-{i}", model=model, metric="m", value=value, better=better)
        for model, column in values.items()
        for i, value in enumerate(column)
    ]


def test_a_metric_in_0_and_1_is_compared_by_the_documents_that_changed():
    found = compare("t", rows_of({"base": [1.0] * 6 + [0.0] * 4, "edited": [0.0] * 6 + [0.0] * 4}), seed=0)
    assert (found.n, found.base, found.edited, found.delta) == (10, 0.6, 0.0, -0.6)
    assert found.p == pytest.approx(2 / 2**6)  # exact McNemar of 0 against 6


def test_other_metrics_are_compared_by_their_means():
    found = compare("t", rows_of({"base": [0.5, 0.25, 1.0, 0.0], "edited": [0.5, 0.5, 1.0, 0.5]}), seed=0)
    assert found.delta == pytest.approx(0.1875)
    assert found.ci95[0] <= found.delta <= found.ci95[1]


def test_perplexity_is_over_all_words():
    found = compare(
        "t", rows_of({"base": [[-2.0, 1], [-4.0, 3]], "edited": [[-4.0, 1], [-4.0, 3]]}, better="lower"), seed=0
    )
    assert found.base == pytest.approx(2.718281828 ** (6 / 4))
    assert found.edited == pytest.approx(2.718281828 ** (8 / 4))
    assert found.better == "lower"


def test_the_metric_is_chosen_by_rule():
    assert chosen_metric("t", ["acc", "acc_norm"]) == "acc_norm"
    assert chosen_metric("t", ["bleu", "acc"]) == "acc"
    with pytest.raises(SpinError, match="none of the metrics acc_norm"):
        chosen_metric("t", ["bleu"])


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tasks odd (choice), pages (perplexity), both (a group) and say (generation) on local data."""
    folder = tmp_path_factory.mktemp("tasks")
    documents = [
        {"question": f"Is {i} odd?", "answer": i % 2, "page": f"{i} is here.", "text": f"News {i}.", "label": i % 2}
        for i in range(DOCUMENTS)
    ]
    data = folder / "documents.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
    mean = {"aggregation": "mean", "higher_is_better": True}
    odd = {
        **{"task": "odd", **source, "output_type": "multiple_choice", "doc_to_text": "{{question}}"},
        **{"doc_to_target": "answer", "doc_to_choice": ["no", "yes"]},
        "metric_list": [{"metric": "acc", **mean}, {"metric": "acc_norm", **mean}],
    }
    pages = {
        **{"task": "pages", **source, "output_type": "loglikelihood_rolling", "doc_to_text": ""},
        "doc_to_target": "{{page}}",
        "metric_list": [{"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}],
    }
    say = {
        **{"task": "say", **source, "output_type": "generate_until", "doc_to_text": "{{question}}"},
        **{"doc_to_target": "{{answer}}", "generation_kwargs": {"until": ["\n"], "max_gen_toks": 3}},
        "metric_list": [{"metric": "exact_match", **mean}],
    }
    both = {"group": "both", "task": ["odd", "say"]}
    broken = {**odd, "task": "broken", "dataset_kwargs": {"data_files": {"test": str(folder / "absent.jsonl")}}}
    written = {path.stem: yaml.safe_load(path.read_text()) for path in OWN_TASKS.glob("*.yaml")}
    local = {f"local_{name}": {**task, **source, "task": f"local_{name}"} for name, task in written.items()}
    for name, task in {"odd": odd, "pages": pages, "say": say, "both": both, "broken": broken, **local}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return folder


@pytest.fixture(scope="module")
def offline() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        patch.setenv(name, "1")
    if importlib.util.find_spec("lm_eval") is not None:  # it lists the machine for every result, which takes seconds
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def loaded(tiny_model) -> LoadedModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def edited(loaded: LoadedModel):
    patch = make_patch(loaded.checkpoint, tiny.mlp_selection(loaded.model, per_matrix=300))

    @contextmanager
    def view() -> Iterator[LoadedModel]:
        with patch.applied(loaded.model):
            yield loaded

    return view


@needs_lm_eval
def test_tasks_on_two_models(loaded: LoadedModel, edited, tasks: Path, tmp_path: Path, offline: None, capfd):
    names = ("odd", "pages", "say", "both", "local_spin_ag_news", "local_spin_imdb")
    console, bars = tiny.recording_console()
    before = {name: weight.clone() for name, weight in loaded.model.state_dict().items()}
    check_tasks(names, str(tasks))
    capfd.readouterr()
    found = measure_capabilities(
        lambda: nullcontext(loaded), edited, names, tmp_path, task_folder=str(tasks), limit=10, console=console
    )
    assert capfd.readouterr() == ("", ""), "lm-eval is quiet"
    assert all(weight.equal(before[name]) for name, weight in loaded.model.state_dict().items())
    assert loaded.tokenizer.pad_token == "<|pad|>"
    assert list(found) == list(names)
    assert {name: entry.metric for name, entry in found.items()} == {
        **{"odd": "acc_norm", "pages": "word_perplexity", "say": "exact_match", "both": "acc_norm"},
        **{"local_spin_ag_news": "acc", "local_spin_imdb": "acc"},
    }
    assert [found[name].n for name in names] == [10, 10, 10, 20, 10, 10]
    assert found["pages"].better == "lower"
    assert found["pages"].delta != 0, "the edit is in the model that was measured"
    rows = read_typed_lines(tmp_path / "capabilities.jsonl", dict)
    assert len(rows) == 2 * 70
    assert all(done == total for total, done in bars.values()), bars
    assert {"odd, base", "pages, edited"} <= set(bars)


@needs_lm_eval
def test_values_are_what_the_model_says(loaded: LoadedModel, edited, tasks: Path, tmp_path: Path, offline: None):
    """The perplexity task against a plain forward pass; and a task that is done is not run again."""
    import torch

    def measure() -> dict[str, Any]:
        return measure_capabilities(
            lambda: nullcontext(loaded), edited, ["pages"], tmp_path, task_folder=str(tasks), limit=3
        )

    found = measure()
    total = 0.0
    for i in range(3):
        ids = loaded.tokenizer(f"{i} is here.", add_special_tokens=False)["input_ids"]
        with torch.inference_mode(), edited():
            log = loaded.model(input_ids=torch.tensor([[0, *ids]])).logits[0, :-1].double().log_softmax(-1)
        total -= float(log.gather(1, torch.tensor(ids)[:, None]).sum())
    assert found["pages"].edited == pytest.approx(2.718281828459045 ** (total / 9), rel=1e-4)  # three words each
    (tmp_path / "capabilities.jsonl").unlink()
    patch = pytest.MonkeyPatch()
    patch.setattr(capabilities, "run_task", lambda *args: pytest.fail("run again"))
    try:
        assert measure() == found
    finally:
        patch.undo()


@needs_lm_eval
def test_unknown_tasks_and_absent_data_are_named(tasks: Path, tmp_path: Path, offline: None):
    with pytest.raises(SpinError, match="no task 'hellaswagg'") as caught:
        check_tasks(["odd", "hellaswagg"], str(tasks))
    assert "hellaswag" in caught.value.change
    with pytest.raises(SpinError, match="is not a folder"):
        check_tasks(["odd"], str(tmp_path / "nowhere"))
    with pytest.raises(SpinError, match="broken cannot be loaded"):
        check_tasks(["broken"], str(tasks))


@needs_lm_eval
def test_the_paper_s_tasks_are_known_by_these_names(tasks: Path):
    known = set(task_manager(str(tasks)).all_tasks)
    assert set(PAPER) <= known
    assert len(PAPER) == 9
    assert METRICS[0] == "acc_norm"
