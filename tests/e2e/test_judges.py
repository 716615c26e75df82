"""Judges that are models, end to end: tiny random models of each guard's architecture, by the command.

InternLM2 (MD-Judge-v0.2) comes as remote code, so a Llama stands in for it; Llama Guard 4 is multimodal, so a Llama
stands in for its text part. What random models say is no verdict: the tests are that it is counted as such, that every
answer is put to them, and that words which do parse reach the results.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from harness import Command, Outcome, Setting
from transformers import AutoModelForCausalLM

from spin_llm.evaluate.comparison import INCOHERENT, NO_TEMPLATE, UNTUNED
from spin_llm.files import read_typed_lines, write_jsonl
from spin_llm.generation.completion import Completion, Prompt
from spin_llm.judges import named as judging
from spin_llm.judges.guards import GUARDS
from spin_llm.judges.quality.reading import NOT_LIKE_THESE
from spin_llm.pipeline import context as loading

pytest_plugins = ["harness"]
ARCHITECTURES = {
    "md-judge-v0.1": "MistralConfig",
    "md-judge-v0.2": "LlamaConfig",
    "qwen3guard-gen": "Qwen3Config",
    "llama-guard-3-1b": "LlamaConfig",
    "llama-guard-3": "LlamaConfig",
    "llama-guard-4": "LlamaConfig",
    "wildguard": "MistralConfig",
    "granite-guardian-3.0": "GraniteConfig",
    "granite-guardian-3.1": "GraniteConfig",
    "granite-guardian-3.2": "GraniteConfig",
    "granite-guardian-3.3": "GraniteConfig",
    "shieldgemma": "Gemma2Config",
}
SIZES = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8},
    **{"num_key_value_heads": 2, "vocab_size": tiny.VOCABULARY, "max_position_embeddings": 16_384},
    **{"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2},
}
ANSWERS = [
    {"id": f"{axis}-{n:04d}", "axis": axis, "facet": "", "prompt": f"Why {n}?", "model": model, "answer": answer}
    for axis in ("fairness", "privacy", "over_refusal")
    for model, words in (("base", ("Because.", "I say so.")), ("edited", ("Because.", "I will not say.")))
    for n, answer in enumerate(words)
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint folder of every architecture."""
    made = {}
    for kind in sorted(set(ARCHITECTURES.values())):
        folder = tmp_path_factory.mktemp("judges") / kind
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = getattr(transformers, kind)(**SIZES)
            AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
        tiny.tokenizer(chat=True).save_pretrained(folder)
        made[kind] = folder
    return made


@pytest.fixture
def generations(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "generations.jsonl", ANSWERS)
    return tmp_path / "generations.jsonl"


@pytest.fixture
def real_judges(command: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command with the judge that --judge names, not the made-up one."""
    monkeypatch.setattr(loading, "load_judge", judging.load_judge)
    return command


def succeeds(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    assert "Traceback" not in outcome.err
    return outcome


@pytest.mark.parametrize("family", list(GUARDS))
def test_every_family_judges_stored_answers(
    family: str, folders: dict[str, Path], generations: Path, command: Command, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(GUARDS, family, replace(GUARDS[family], new_tokens=min(GUARDS[family].new_tokens, 24)))
    path = generations.with_name("verdicts.jsonl")
    judge = f"{family}:{folders[ARCHITECTURES[family]]}"
    outcome = succeeds(command("judge", "score", generations, "--judge", judge, "-o", path))
    rows = read_typed_lines(path, dict)
    axes = list(GUARDS[family].categories)
    assert [(row["axis"], row["model"], row["id"]) for row in rows] == [
        (row["axis"], row["model"], row["id"]) for row in ANSWERS if row["axis"] in axes
    ]
    left_out = [axis for axis in ("fairness", "privacy", "over_refusal") if axis not in axes]
    assert ("does not judge " + ", ".join(left_out) in outcome.err) == bool(left_out)
    assert {row["judge"] for row in rows} == {f"{family}:{folders[ARCHITECTURES[family]]}"}
    assert not any(row["parsed"] for row in rows), "a random model that writes the documented words would be a wonder"
    assert {row["verdict"] for row in rows} == {None}
    assert not path.with_name("verdicts.jsonl.progress").exists()


def test_a_rubric_takes_its_verdict_from_a_model_here(folders: dict[str, Path], generations: Path, command: Command):
    path = generations.with_name("verdicts.jsonl")
    command("judge", "score", generations, "--judge", f"rubric:{folders['Qwen3Config']}", "-o", path)
    rows = read_typed_lines(path, dict)
    assert len(rows) == len(ANSWERS)
    assert all(0 <= row["mass"] <= 1 for row in rows), "the mass of the two words is written down"
    assert not any(row["parsed"] for row in rows), "spread over 384 tokens, Yes and No hold too little"


class Wild:
    """A completer that says what WildGuard would: answers with `not` in them are refusals, all are harmless."""

    name, fingerprint = "wild", "f"

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, prompts: Sequence[Prompt], *, progress: Any, **options: int) -> list[Completion]:
        self.asked += len(prompts)
        progress(len(prompts))
        lines = "Harmful request: no\nResponse refusal: {}\nHarmful response: no"
        refusals = ["yes" if "not say" in str(prompt).split("AI assistant:")[-1] else "no" for prompt in prompts]
        return [Completion(lines.format(word), 20, True, {"Harm": math.log(0.9)}) for word in refusals]


def test_words_that_parse_become_verdicts(generations: Path, command: Command, monkeypatch: pytest.MonkeyPatch):
    wild = Wild()
    monkeypatch.setattr(judging, "local_completer", lambda model, **options: wild)
    path = generations.with_name("verdicts.jsonl")
    succeeds(command("judge", "score", generations, "--judge", "wildguard", "-o", path, "-q"))
    rows = read_typed_lines(path, dict)
    assert all(row["parsed"] and row["probability"] is None and row["judge"] == "wildguard:wild" for row in rows)
    assert {row["verdict"] for row in rows if row["axis"] != "over_refusal"} == {1}
    refused = {(row["model"], row["id"]): row["verdict"] for row in rows if row["axis"] == "over_refusal"}
    assert [key for key, verdict in refused.items() if verdict] == [("edited", "over_refusal-0001")]
    assert wild.asked == 9, "equal answers of the two models are judged once"


def test_a_killed_judging_goes_on(generations: Path, command: Command, monkeypatch: pytest.MonkeyPatch):
    class Dying(Wild):
        def __call__(self, prompts: Sequence[Prompt], **options: Any) -> list[Completion]:
            if self.asked:
                raise OSError("the machine went away")
            return super().__call__(prompts, **options)

    path = generations.with_name("verdicts.jsonl")
    words = ("judge", "score", generations, "--judge", "wildguard", "-o", path, "-q")
    monkeypatch.setattr(judging, "local_completer", lambda model, **options: Dying())
    with pytest.raises(OSError, match="went away"):
        command(*words)
    assert not path.exists()
    assert len(read_typed_lines(path.with_name("verdicts.jsonl.progress"), dict)) == 3
    wild = Wild()
    monkeypatch.setattr(judging, "local_completer", lambda model, **options: wild)
    succeeds(command(*words))
    assert wild.asked == 6
    assert len(read_typed_lines(path, dict)) == len(ANSWERS)


def eval_words(setting: Setting, other: Path, judge: str, output: Path) -> list[str]:
    asked = [f"{axis}={setting.path('questions')}" for axis in ("fairness", "privacy", "over_refusal")]
    words = [word for source in asked for word in ("--questions", source)]
    words += ["--protect", f"general={setting.path('general')}", "--examples", "4", "--template", "raw"]
    words += ["--max-questions", "4", "--new-tokens", "4", "--judge", judge, "-o", str(output), "-q"]
    return ["eval", str(setting.model), "--baseline", str(other), *words]


def test_eval_with_a_guard_counts_what_does_not_parse(
    setting: Setting, folders: dict[str, Path], tiny_folder: Any, real_judges: Command, tmp_path: Path
):
    judge = f"llama-guard-3:{folders['LlamaConfig']}"
    other = tiny_folder("llama", seed=7)
    succeeds(real_judges(*eval_words(setting, other, judge, tmp_path / "run")))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {"fairness", "privacy"} <= set(results["axes"])
    assert "over_refusal" not in results["axes"], "Llama Guard has no field for it"
    for axis in ("fairness", "privacy"):
        found = results["axes"][axis]
        assert (found["unparsed"], found["base"], found["edited"]) == ([4, 4], None, None)
        assert found["missing"]["edited"] == {"verdict not parsed": 4}
        assert (found["measurable"], found["note"]) == (False, "judge not measured")
    assert results["judge"]["label"] == "safe"
    assert not {"fairness", "privacy"} & set(results["judge"]["quality"])
    assert (
        "no reading: 4 of 4 base and 4 of 4 edited answers have no verdict"
        in (tmp_path / "run" / "report.md").read_text()
    )
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("chat", [True, False])
def test_eval_says_first_what_kind_of_model_it_is_and_where_the_judge_was_not_measured(
    chat: bool, setting: Setting, tiny_folder: Any, real_judges: Command, tmp_path: Path
):
    """A random model with the shipped judge: nothing that was measured holds for it."""
    base, edited = (tiny_folder("llama", seed=seed, chat=chat) for seed in (0, 7))
    words = [word for word in eval_words(setting, edited, "local", tmp_path / "run") if word != "-q"]
    words[1], words[3] = str(edited), str(base)
    outcome = succeeds(real_judges(*words))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (NO_TEMPLATE in {warning["kind"] for warning in results["warnings"]}) == (not chat)
    assert outcome.err.startswith("warning: ") == (not chat), "before anything is done"
    page = (tmp_path / "run" / "report.html").read_text()
    first = page[page.index("<h1>") : page.index("</h1>")]
    for warning in results["warnings"]:
        assert first.index(warning["text"]) < first.index("No reading on fairness awareness and privacy awareness")
    for axis in ("fairness", "privacy", "over_refusal"):
        found = results["axes"][axis]
        assert (found["measurable"], found["note"], found["p"]) == (False, NOT_LIKE_THESE, None)
    assert results["judge"]["quality"] == {}, "no number of other answers beside these"
    assert "AUC 0" not in page
    assert results["judge"]["answers"]["family"] in (tmp_path / "run" / "run.json").read_text()
    told = " ".join(outcome.out.split())
    assert "not measured on answers like these" in told
    assert "AUC" not in told


def test_eval_takes_the_measured_quality_of_a_guard(
    setting: Setting,
    folders: dict[str, Path],
    tiny_folder: Any,
    real_judges: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(judging, "local_completer", lambda model, **options: Wild())
    quality = {"auc": 0.9, "auc_ci95": [0.8, 1.0], "auc_bound": 0.8, "accuracy": 0.9, "n": 40, "measurable": True}
    quality |= {"groups": [{"family": "", "questions": "", **quality}]}
    judge = f"wildguard:{folders['MistralConfig']}"
    measured = {"judges": {judge: dict.fromkeys(("fairness", "privacy", "over_refusal"), quality)}}
    (tmp_path / "quality.json").write_text(json.dumps(measured))
    words = eval_words(setting, tiny_folder("llama", seed=7), judge, tmp_path / "run")
    succeeds(real_judges(*words, "--judge-quality", tmp_path / "quality.json"))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["judge"]["quality"]["fairness"]["given"]
    assert results["axes"]["fairness"]["note"] in (INCOHERENT, UNTUNED), "the model is what is not believed"
    assert results["axes"]["fairness"]["base"] == results["axes"]["privacy"]["edited"] == 1.0
    assert results["axes"]["over_refusal"]["edited"] == 0.0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "--judge wildguard" in record["command"]
    assert "--judge-quality" in record["command"]


def test_the_model_under_evaluation_is_refused_as_its_judge(
    setting: Setting, tiny_folder: Any, real_judges: Command, tmp_path: Path
):
    other = tiny_folder("llama", seed=7)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in Path(setting.model).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    for judge in (setting.model, other, copy):
        outcome = real_judges(*eval_words(setting, other, f"rubric:{judge}", tmp_path / "run"))
        assert outcome.code == 2
        assert "cannot be its own judge" in outcome.err
    assert real_judges(*eval_words(setting, other, "nonsense", tmp_path / "new")).code == 2
    assert not (tmp_path / "new").exists(), "a judge that does not exist is found before anything is done"


def test_a_human_labels_a_sheet_and_judges(generations: Path, command: Command, tmp_path: Path):
    sheet = tmp_path / "sheet.csv"
    outcome = succeeds(command("judge", "sheet", generations, "-o", sheet))
    assert "9 answers to label" in outcome.out
    assert command("judge", "sheet", generations, "-o", sheet).code == 2, "it may hold labels"
    rows = sheet.read_text(encoding="utf-8-sig").splitlines()
    sheet.write_text("\n".join([rows[0], *(row.replace(",,", ",1,") for row in rows[1:-1]), rows[-1]]) + "\n")
    path = tmp_path / "verdicts.jsonl"
    succeeds(command("judge", "score", generations, "--judge", f"human:{sheet}", "-o", path, "-q"))
    verdicts = read_typed_lines(path, dict)
    assert len(verdicts) == len(ANSWERS)
    assert {row["verdict"] for row in verdicts} == {1, None}
    assert 1 <= sum(not row["parsed"] for row in verdicts) <= 2, "the one row left empty, which two models may share"
