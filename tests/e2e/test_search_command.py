"""`run` with its defaults: search, pick, held-back questions; killed and resumed; `sweep`; nothing to find."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from harness import Command, Setting, check_results, contrast_words, finished, process, write_rows

pytest_plugins = ["harness"]


@pytest.fixture(scope="module")
def words(tiny_folder, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run with aware and unaware responses on a tiny model, 16 trials and 3 survivors."""
    sources = contrast_words(tmp_path_factory.mktemp("contrast"), questions=3, facets=True)
    limits = "--examples 12 --template raw --dtype float32 --keep 0.1 --new-tokens 4 --max-perplexity-increase 0.2"
    return [str(tiny_folder("llama")), *sources, *limits.split(), "--trials", "16", "--survivors", "3"]


def test_a_run_with_its_defaults_searches(words: list[str], command: Command, tmp_path: Path):
    outcome = command("run", *words, "-o", tmp_path / "run", "--control", "random", "--control", "coupled")
    assert outcome.code == 0, outcome.err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    check_results(tmp_path / "run")
    search = results["search"]
    assert len(search["trials"]) == 16
    picked = search["trials"][search["pick"]]
    assert picked["increase"] <= 0.2
    assert results["edit"]["rule"] == picked["recipe"]["rule"]
    assert results["edit"]["weights"] == picked["weights"]
    assert search["pick"] in [row["number"] for row in search["survivors"]]
    assert search["why"] in outcome.err
    judged = ("fairness", "privacy", "over_refusal", "coherence")
    assert search["unmeasured"] == dict.fromkeys(judged, "judge not measured")
    assert (
        "Verdicts decided nothing on fairness, privacy, over_refusal, coherence (judge not measured)" in search["why"]
    )
    page = (tmp_path / "run" / "report.html").read_text()
    assert "How the edit was found" in page
    assert (tmp_path / "run" / "figures" / "search.png").is_file()
    asked = [json.loads(line) for line in (tmp_path / "run" / "generations.jsonl").read_text().splitlines()]
    searched = [
        json.loads(line)
        for rung in (1, 2)
        for line in (tmp_path / "run" / "search" / f"rung-{rung}" / "generations.jsonl").read_text().splitlines()
    ]
    assert searched
    for axis in ("fairness", "privacy", "over_refusal"):
        final, seen = ({row["prompt"] for row in rows if row["axis"] == axis} for rows in (asked, searched))
        assert final, "something is left to report on"
        assert not final & seen, "nothing that was searched on is reported on"
        assert len(final | seen) == 36
    assert "effort standard: about" in outcome.err
    assert not list((tmp_path / "run").rglob("progress")), "what only a killed run goes on from"

    again = command("run", *words, "-o", tmp_path / "run", "--control", "random", "--control", "coupled")
    assert again.code == 0
    assert "is complete" in again.err


def test_a_searched_run_says_whether_its_edit_holds(words: list[str], command: Command, tmp_path: Path):
    outcome = command("run", *words, "--resamples", "6", "-o", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    check_results(tmp_path / "run")
    measured = json.loads((tmp_path / "run" / "stability.json").read_text())
    assert (measured["rule"], measured["reproduced"]) == (results["edit"]["rule"], 1.0)
    assert results["stability"]["weights"] == results["edit"]["weights"]
    assert results["stability"]["resamples"] == 6
    assert "The selection was repeated on 6 resamples" in (tmp_path / "run" / "report.html").read_text()


def test_the_stability_of_signed(words: list[str], command: Command, tmp_path: Path):
    """In the run, and by the command afterwards: the same; weights are chosen over the model."""
    given = ("--rule", "signed", "--ratio", "0.002", "--granularity", "model", "--max-questions", "2")
    outcome = command("run", *words, *given, "--resamples", "8", "-o", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    before = (tmp_path / "run" / "stability.json").read_bytes()
    measured = json.loads(before)
    assert (measured["rule"], measured["granularity"], measured["reproduced"]) == ("signed", "model", 1.0)
    assert measured["size"] == dict.fromkeys(("mean", "low", "high"), measured["weights"])
    assert 0 < measured["jaccard"]["mean"] < 1
    assert measured["top_sets"] == {"signed": pytest.approx(measured["jaccard"]["mean"])}
    assert sum(len(part["frequency"]) for part in measured["frequency"].values()) == measured["weights"]
    again = command("stability", tmp_path / "run", "--resamples", "8", "--overwrite", "-q")
    assert again.code == 0, again.err
    assert (tmp_path / "run" / "stability.json").read_bytes() == before
    assert "stability" in json.loads((tmp_path / "run" / "results.json").read_text())


def test_a_pick_that_cannot_be_resampled_does_not_end_the_run(
    words: list[str], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The ratio was the search's choice; with a ratio of the user's own it is an error."""
    monkeypatch.setattr("spin_llm.analysis.stability.free_memory", lambda device: 1000)
    outcome = command("run", *words, "--resamples", "6", "-o", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "stability is left out: The importances of each example need" in outcome.err
    assert "stability" not in json.loads((tmp_path / "run" / "results.json").read_text())
    given = ("--rule", "signed", "--ratio", "0.002", "--granularity", "model", "--resamples", "6")
    refused = command("run", *words, *given, "-o", tmp_path / "other")
    assert refused.code == 2
    assert "raise --memory-budget" in refused.err


@pytest.mark.slow
def test_a_search_killed_on_the_way_ends_with_the_same_patch(words: list[str], command: Command, tmp_path: Path):
    whole = command("run", *words, "-o", tmp_path / "whole")
    assert whole.code == 0, whole.err
    running = process("run", *words, "-o", tmp_path / "cut")
    journal = tmp_path / "cut" / "search" / "journal.jsonl"
    start = time.monotonic()
    while running.poll() is None and time.monotonic() - start < 120:
        if journal.is_file() and len(journal.read_bytes().splitlines()) >= 3:
            os.kill(running.pid, signal.SIGKILL)
            break
        time.sleep(0.005)
    assert finished(running).code == -signal.SIGKILL, "killed in the middle of the search"
    assert not (tmp_path / "cut" / "search.json").exists()
    resumed = command("run", *words, "-o", tmp_path / "cut")
    assert resumed.code == 0, resumed.err
    for name in ("patch.safetensors", "search.json", "generations.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_sweep_stops_before_the_evaluation(words: list[str], command: Command, tmp_path: Path):
    outcome = command("sweep", *words, "-o", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "run" / "search.json").is_file()
    assert (tmp_path / "run" / "patch.safetensors").is_file()
    assert not (tmp_path / "run" / "results.json").exists()
    assert "recipe" in outcome.out
    assert "picked" in outcome.out
    assert str(tmp_path / "run" / "search.json") in outcome.out
    run = command("run", *words, "-o", tmp_path / "run")
    assert run.code == 0, run.err
    assert "trying edits" not in run.err, "the search is not done again"
    given = command("sweep", *words, "-o", tmp_path / "other", "--rule", "coupled")
    assert given.code == 2
    assert "--rule" in given.err


def test_a_random_model_has_nothing_to_find(words: list[str], command: Command, tmp_path: Path):
    """Responses drawn from one text for both kinds: there is no difference to learn."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("fairness", "privacy"):
        rows = [
            {"prompt": f"{name} {i}?", "aware": f"It is {i * 7 % 11}.", "unaware": f"It is {i * 5 % 11}."}
            for i in range(60)
        ]
        write_rows(data / f"{name}.csv", rows)
    swapped = [
        f"{word.split('=')[0]}={data / word.split('=')[0]}.csv" if word.startswith(("fairness=", "privacy=")) else word
        for word in words
    ]
    outcome = command("run", *swapped, "-o", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    search = json.loads((tmp_path / "run" / "search.json").read_text())
    assert not search["found"]
    assert "not a recommendation" in search["why"]
    assert "not a recommendation" in outcome.out + outcome.err
    assert "not a recommendation" in (tmp_path / "run" / "report.md").read_text()


def test_one_kind_of_response_falls_back_to_the_paper_s_rule(setting: Setting, command: Command, tmp_path: Path):
    outcome = command("run", *setting.run, "-o", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "the rule is coupled, the paper's" in outcome.err
    assert json.loads((tmp_path / "run" / "results.json").read_text())["edit"]["rule"] == "coupled"


def test_malicious_data_alone_are_enough(words: list[str], command: Command, tmp_path: Path):
    outcome = command("run", *words, "--responses", "unaware", "-o", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "unaware responses alone" in outcome.err
    assert json.loads((tmp_path / "run" / "results.json").read_text())["edit"]["rule"] == "coupled"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--examples", "20"), "Too few pairs"),
        (("--max-perplexity-increase", "0", "--trials", "1"), "None of 1 edits"),
        (("--effort", "heroic"), "quick, standard, thorough"),
        (("--at-least", "3"), "number of concepts"),
        (("--layers", "x"), "FIRST-LAST"),
        (("--layers", "9-12"), "names no layer"),
    ],
)
def test_what_cannot_be_searched_says_why(
    words: list[str], command: Command, tmp_path: Path, options: tuple[str, ...], said: str
):
    outcome = command("run", *words, *options, "-o", tmp_path / "run")
    assert outcome.code == 2
    assert said in outcome.err
    assert "Traceback" not in outcome.err
