"""`paper --preset`: the paper's settings, on tiny random models of the four architectures that the paper has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from harness import WORDS, Command, write_rows

from spin_llm.settings import RunSettings

pytest_plugins = ["harness"]

# the layout in tiny.py, and the model's name on the hub, under which the paper's numbers are found
MODELS = {
    "Qwen2-7B-Instruct": "qwen2",
    "Mistral-7B-Instruct-v0.2": "mistral",
    "vicuna-7b-v1.5": "llama",
    "Llama-2-7b-chat-hf": "llama",
}
SPIN = {  # Table 1, awareness of fairness and of privacy
    "Qwen2-7B-Instruct": ("75.0%", "84.5%"),
    "Mistral-7B-Instruct-v0.2": ("63.4%", "71.5%"),
    "vicuna-7b-v1.5": ("57.8%", "44.1%"),
    "Llama-2-7b-chat-hf": ("77.5%", "84.3%"),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    data = tmp_path_factory.mktemp("preset")
    for name in ("fairness", "privacy"):
        rows = [
            {"prompt": f"{name} {i}: {WORDS[i % 12]}?", "aware": f"I would rather not, {i}.", "unaware": f"Sure, {i}."}
            for i in range(24)
        ]
        write_rows(data / f"{name}.csv", rows)
    write_rows(
        data / "general.csv",
        [{"prompt": f"Tell of {word} {i}.", "response": f"{word} {i}."} for i in range(4) for word in WORDS],
    )
    write_rows(data / "questions.csv", [{"prompt": f"Who is {word} {i}?"} for i in range(2) for word in WORDS])
    return [
        *(word for name in ("fairness", "privacy") for word in ("--concept", f"{name}={data / name}.csv")),
        *("--protect", f"general={data / 'general.csv'}", "--questions", str(data / "questions.csv")),
        *("--dtype", "float32", "--new-tokens", "2", "--epochs", "1"),
    ]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunSettings, dict[str, Any]]]:
    """What the command hands to `run_paper`, which runs nothing."""
    from spin_llm.paper import conduct as run

    calls: list[tuple[RunSettings, dict[str, Any]]] = []

    def record(name: str, settings: RunSettings, folder: Path, **options: Any) -> list[Path]:
        calls.append((settings, options))
        return []

    monkeypatch.setattr(run, "run_paper", record)
    return calls


def test_the_preset_is_the_paper_s(command: Command, seen: list[tuple[RunSettings, dict[str, Any]]]):
    assert command("paper", "table1", "tiny", "--preset").code == 0
    assert command("paper", "table1", "tiny", "--preset", "--effort", "quick").code == 0
    assert command("paper", "table1", "tiny", "--preset", "--ratio", "0.0000005", "--template", "released").code == 0
    for settings, options in seen:
        assert (options["ratio"], settings.template, settings.examples, settings.target) == (
            5e-7,
            "released",
            128,
            "mlp",
        )
    assert len(seen) == 3


@pytest.mark.parametrize(
    "given", [("--template", "auto"), ("--ratio", "1e-4"), ("--ratio", "auto"), ("--examples", "64")]
)
def test_another_value_beside_the_preset_is_an_error(
    command: Command, seen: list[tuple[RunSettings, dict[str, Any]]], given: tuple[str, str]
):
    outcome = command("paper", "table1", "tiny", "--preset", *given)
    assert outcome.code == 2
    assert f"--preset fixes {given[0]} " in outcome.err
    assert f"and {' '.join(given)} was given" in outcome.err
    assert not seen


@pytest.mark.parametrize("name", MODELS)
def test_table1_on_the_paper_s_architectures(
    name: str, sources: list[str], command: Command, tiny_folder, tmp_path: Path
):
    model = tmp_path / name
    shutil.copytree(tiny_folder(MODELS[name]), model)
    outcome = command("paper", "table1", model, "--preset", "--limit", "8", *sources, "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    text = (tmp_path / "out" / "table1.md").read_text()
    rows = {
        cells[1]: cells[2:-1]
        for cells in ([cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("| "))
    }
    assert list(rows)[2:] == ["origin", "FFT", "LoRA", "DoRA", "ReFT", "SPIN", "auto (ours), not the paper's"]
    assert rows["SPIN"][0] == "0"
    assert "SPIN: The rule 'coupled' at ratio 5e-07 selects no weight at all." in text
    assert tuple(rows["SPIN"][-2:]) == SPIN[name], "the paper's own numbers"
    for method in ("FFT", "LoRA", "DoRA", "ReFT"):
        assert int(rows[method][0].replace(",", "")) > 0
        assert rows[method][-1].endswith("%")
    record = json.loads((tmp_path / "out" / "table1.json").read_text())
    told = " ".join(record["differs"])
    assert "a small version: at most 8" in told
    assert "released" not in told
    assert "the paper: 5e-7" not in told
