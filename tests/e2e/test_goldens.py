"""Runs of tiny models give the numbers that version 0.1.0 (commit ae04fb5) gave: scores, patch, results' values.

`python tests/e2e/test_goldens.py` records goldens.json anew: only when numbers are meant to
change, and LOG.md says why.
The searched ones (`auto`) were recorded anew on 2026-11-28: the made-up judge was measured nowhere, and such a judge no
longer decides which edit is picked (three of six had another pick; scores and all other patches stayed to the byte).
On another CPU, and by the compiled sums, which version 0.1.0 did not have, float32 sums round differently: scores are
compared within 1e-4 and a few weights may differ; by torch's operators where the golden was recorded (same CPU name and
torch) everything must be equal.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from harness import Command, contrast_words
from safetensors.torch import load_file

pytest_plugins = ["harness"]

GOLDENS = Path(__file__).with_name("goldens.json")
MODELS = ("llama", "gpt2", "qwen3_moe")
RULES = ("coupled", "signed", "released", "auto")
SEEDS = (0, 1)
CASES = [(model, rule, seed) for model in MODELS for rule in RULES for seed in SEEDS]
NUMBERS = ("n", "base", "edited", "delta", "ci95", "unparsed")  # p is left away since where no judge is measured


def options(rule: str, seed: int) -> list[str]:
    words = "--examples 12 --template raw --dtype float32 --keep 0.1 --new-tokens 4 --max-perplexity-increase 0.2"
    chosen = "--trials 8 --survivors 2" if rule == "auto" else f"--rule {rule} --ratio 0.01"
    return [*words.split(), *chosen.split(), "--seed", str(seed), "-q"]


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over the tensors' bytes in the order of their names."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def numbers_of(run: Path) -> dict[str, Any]:
    """What must stay of a run folder: digest and sums of every score file, the patch, the results' values."""
    results = json.loads((run / "results.json").read_text())
    scores = {file.stem: load_file(file) for file in sorted((run / "scores").glob("*.safetensors"))}
    patch = load_file(run / "patch.safetensors")
    return {
        "scores": {
            name: {
                "sha256": digest(tensors),
                "sums": {key: float(t.double().sum()) for key, t in sorted(tensors.items()) if key.endswith("values")},
            }
            for name, tensors in scores.items()
        },
        "patch": {
            "sha256": digest(patch),
            "indices": {k: v.tolist() for k, v in sorted(patch.items()) if "indices" in k},
        },
        "rule": results["edit"]["rule"],
        "axes": {axis: {key: row.get(key) for key in NUMBERS} for axis, row in results["axes"].items()},
    }


def answered_in_full(run: Path) -> list[str]:
    """The axes of version 0.1.0 whose answers all got a verdict; an answer without a word has none since."""
    rows = [json.loads(line) for line in (run / "verdicts.jsonl").read_text().splitlines()]
    axes = {"fairness", "privacy", "over_refusal", "coherence", "perplexity", "kl"}
    return sorted(axes - {row["axis"] for row in rows if row["verdict"] is None})


def machine() -> str:
    """What rounding depends on."""
    parts = ("model name", "cpu family", "model", "stepping", "flags")
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    found = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    cpu = {key.strip(): value.strip() for key, value in found.items() if key.strip() in parts}
    name, flags = cpu.pop("model name", platform.processor()), cpu.pop("flags", "")
    rest = hashlib.sha256(flags.encode()).hexdigest()[:8]
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{name} {'/'.join(cpu.values())} flags {rest}; {capability}; torch {torch.__version__}"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The goldens are of one thread: with two, sums round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return contrast_words(tmp_path_factory.mktemp("goldens"))


@pytest.mark.parametrize(
    ("model", "rule", "seed", "compiled"), [(*case, False) for case in CASES] + [(*c, True) for c in CASES if not c[-1]]
)
def test_numbers_are_those_of_version_0_1_0(
    model: str, rule: str, seed: int, compiled: bool, data: list[str], tiny_folder, command: Command, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    if not compiled:
        monkeypatch.setenv("CC", "")
    outcome = command("run", str(tiny_folder(model)), *data, *options(rule, seed), "-o", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    goldens = json.loads(GOLDENS.read_text())
    golden, now = goldens["runs"][f"{model} {rule} {seed}"], numbers_of(tmp_path / "run")
    for axis in set(now["axes"]) - set(answered_in_full(tmp_path / "run")):  # version 0.1.0 counted these as 0
        golden["axes"].pop(axis, None), now["axes"].pop(axis)
    if goldens["machine"] == machine() and not compiled:
        assert now == golden
        return
    assert now["rule"] == golden["rule"]
    for name, score in golden["scores"].items():
        assert now["scores"][name]["sums"] == pytest.approx(score["sums"], rel=1e-4), name
    before, after = ({(k, i) for k, v in side["patch"]["indices"].items() for i in v} for side in (golden, now))
    assert len(before ^ after) <= 0.02 * len(before)
    assert now["axes"].keys() == golden["axes"].keys()


def record(folder: Path) -> None:
    """Write goldens.json from runs under `folder`, by the command with the made-up judge."""
    import driver

    from spin_llm.cli import main as cli

    driver.use_made_up_judge(setattr)
    torch.set_num_threads(1)
    os.environ["CC"] = ""
    words, runs = contrast_words(folder), {}
    for model, rule, seed in CASES:
        checkpoint, run = folder / model, folder / f"{model}-{rule}-{seed}"
        if not checkpoint.is_dir():
            tiny.save(model, checkpoint)
        sys.argv = ["spin-llm", "run", str(checkpoint), *words, *options(rule, seed), "-o", str(run)]
        with suppress(SystemExit):
            cli.main()
        runs[f"{model} {rule} {seed}"] = numbers_of(run)
    GOLDENS.write_text(json.dumps({"machine": machine(), "runs": runs}, indent=None, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        record(Path(made))
