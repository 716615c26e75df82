"""The doctor on tiny models of several architectures: what it finds, what it says, and when it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import TinyFolder, TinyModel

from spin_llm.cli import main as cli
from spin_llm.cli.main import app
from spin_llm.errors import SpinError
from spin_llm.pipeline import doctor
from spin_llm.settings import RunSettings

CHAT_WITH_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}<sys>Be kind.</sys>{% endif %}"
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</{{ m['role'] }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
REFUSING = "{{ raise_exception('no user messages') }}"


PAIRS = "prompt,response\n" + "".join(f"Question {n}?,{'An answer. ' * n}\n" for n in range(1, 9))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pairs") / "pairs.csv"
    path.write_text(PAIRS, encoding="utf-8")
    return str(path)


def examined(model: str | Path, pairs: str, **options: Any) -> tuple[doctor.Report, list[str]]:
    sources = {"concepts": [pairs], "protect": [pairs]}
    settings = RunSettings(**{"model": str(model), "examples": 4, "max_length": 1024, **sources, **options})
    report = doctor.examine(settings)
    json.dumps(report, allow_nan=False)
    return report, doctor.lines(report)


@pytest.mark.parametrize(
    ("name", "mlp", "attention"),
    [
        ("llama", {"gate_proj": 3, "up_proj": 3, "down_proj": 3}, 12),
        ("qwen2", {"gate_proj": 3, "up_proj": 3, "down_proj": 3}, 12),
        ("gemma3", {"gate_proj": 3, "up_proj": 3, "down_proj": 3}, 12),
        ("gpt_neox", {"dense_h_to_4h": 3, "dense_4h_to_h": 3}, 6),
        ("gpt2", {"c_fc": 3, "c_proj": 3}, 6),
    ],
)
def test_modules_and_a_sound_verdict(
    name: str, mlp: dict[str, int], attention: int, tiny_folder: TinyFolder, pairs: str
):
    report, text = examined(tiny_folder(name), pairs, dtype="float32")
    kinds = report["modules"]["kinds"]
    assert kinds["mlp"]["names"] == mlp
    assert kinds["mlp"]["layers"] == 3
    assert kinds["attention"]["matrices"] == attention
    assert report["modules"]["mlp_coverage"] == 1
    assert report["batching"]["good"]
    assert report["batching"]["difference"] <= 1e-5
    assert len(set(report["batching"]["lengths"])) > 1, "padding was looked at"
    assert report["plan"]["passes"] == 1
    assert [line for line in text if line.startswith("!")] == [UNTUNED]
    assert any(line.startswith("plan: 1 pass") for line in text)
    assert all(len(line) < 240 for line in text)


def test_experts_are_counted(tiny_folder: TinyFolder, pairs: str):
    report, _ = examined(tiny_folder("qwen3_moe"), pairs, dtype="float32")
    assert report["modules"]["kinds"]["mlp"]["matrices"] >= 3
    assert report["batching"]["good"]


def test_the_target_is_what_is_planned(tiny_folder: TinyFolder, pairs: str):
    report, text = examined(tiny_folder("llama"), pairs, target="attention")
    assert any(line.startswith("attention") and "(target)" in line for line in text)
    assert not any(line.startswith("mlp") and "(target)" in line for line in text)
    assert report["plan"]["accumulators"] == 4 * report["modules"]["kinds"]["attention"]["weights"]


def with_template(folder: Path, template: str | None, where: Path) -> Any:
    """A tokenizer like the folder's, with another chat template, saved with its model in `where`."""
    where.mkdir()
    for file in folder.iterdir():
        (where / file.name).write_bytes(file.read_bytes())
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(where)
    return tokenizer


UNTUNED = "! template   raw (the tokenizer has no chat template: a base model, it seems)"


def test_without_a_chat_template(tiny_folder: TinyFolder, pairs: str):
    found, text = examined(tiny_folder("llama"), pairs)
    tokens = found["tokens"]
    assert not tokens["chat_template"]
    assert tokens["template"] == "raw"
    assert tokens["system_prompt"] is None
    assert UNTUNED in text
    assert tokens["released_template_loses_a_token"]


def test_a_chat_template_without_system_prompt(tiny_folder: TinyFolder, pairs: str):
    tokens = examined(tiny_folder("llama", chat=True), pairs)[0]["tokens"]
    assert tokens["template"] == "chat"
    assert tokens["system_prompt"] == ""
    assert tokens["template_writes_bos"]
    assert not tokens["bos_doubled_by_naive_use"]


def test_a_system_prompt_that_the_template_adds(tiny_folder: TinyFolder, pairs: str, tmp_path: Path):
    with_template(tiny_folder("llama"), CHAT_WITH_SYSTEM, tmp_path / "model")
    found, text = examined(tmp_path / "model", pairs)
    assert found["tokens"]["system_prompt"].startswith("<sys>Be kind.</sys")
    assert found["tokens"]["prompt_starts_with_bos"]
    assert any("Be kind." in line for line in text)


def test_a_template_that_refuses_is_a_finding_or_an_error(tiny_folder: TinyFolder, pairs: str, tmp_path: Path):
    with_template(tiny_folder("llama"), REFUSING, tmp_path / "model")
    found, text = examined(tmp_path / "model", pairs, template="raw")
    assert found["tokens"]["chat_template"]
    assert not found["tokens"]["chat_template_works"]
    assert any("give --template raw" in line for line in text)


def test_special_tokens_that_the_tokenizer_adds():
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny.tokenizer(chat=True)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A <|eos|>", special_tokens=[("<|bos|>", 0), ("<|eos|>", 1)]
    )
    found = doctor.tokens(tokenizer, "auto")
    assert found["tokenizer_adds_bos"]
    assert found["tokenizer_adds_eos"]
    assert found["bos_doubled_by_naive_use"]
    assert found["prompt_starts_with_bos"]
    assert not found["released_template_loses_a_token"]


def test_batching_that_changes_scores_is_told(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch):
    loaded = tiny_model("llama")
    matrices = doctor.editable_matrices(loaded.model, "mlp")
    honest = doctor.importance

    def broken(*arguments: Any, batch_tokens: int, **options: Any) -> dict[str, torch.Tensor]:
        found = honest(*arguments, batch_tokens=batch_tokens, **options)
        return {name: scores.flip(0) if batch_tokens > 1 else scores for name, scores in found.items()}

    assert doctor.batching(loaded, matrices, "auto")["good"]
    monkeypatch.setattr(doctor, "importance", broken)
    found = doctor.batching(loaded, matrices, "auto")
    assert not found["good"]
    assert found["difference"] > 0.1
    assert found["agreement"] < 0.9


def test_a_budget_that_does_not_fit_is_a_finding(tiny_folder: TinyFolder, pairs: str):
    found, text = examined(tiny_folder("llama"), pairs, memory_budget="1k")
    assert found["plan"]["passes"] == 0
    assert any(line.startswith("! plan: none. The memory budget") for line in text)


@pytest.mark.parametrize(("dtype", "words"), [("float32", "asked for"), ("bfloat16", "asked for"), ("auto", "device")])
def test_the_dtype_and_why(dtype: str, words: str, tiny_folder: TinyFolder, pairs: str):
    found = examined(tiny_folder("llama"), pairs, dtype=dtype)[0]
    assert words in found["dtype"]["why"]
    assert dtype in ("auto", found["dtype"]["dtype"])
    assert found["batching"]["bounds"] == dict(
        zip(("difference", "agreement"), doctor.BOUNDS[getattr(torch, found["dtype"]["dtype"])], strict=True)
    )


def test_a_model_that_cannot_be_edited_is_an_error(tiny_folder: TinyFolder, pairs: str):
    with pytest.raises(SpinError):
        examined(tiny_folder("mamba"), pairs)


def test_the_command(
    tiny_folder: TinyFolder, pairs: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    command = [
        "doctor",
        str(tiny_folder("llama")),
        "--examples",
        "4",
        "--quiet",
        "--concept",
        pairs,
        "--protect",
        pairs,
    ]
    refused = ["spin-llm", "doctor", str(tiny_folder("mamba")), "--quiet"]
    capsys.readouterr()
    app([*command, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {
        "model",
        "modules",
        "tokens",
        "dtype",
        "batching",
        "plan",
        "versions",
    }
    app(command)
    assert "coverage   100% of the MLP weights can be edited" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", refused)
    with pytest.raises(SystemExit) as refusal:
        cli.main()
    assert refusal.value.code == 2
    assert capsys.readouterr().err.startswith("spin-llm: ")
