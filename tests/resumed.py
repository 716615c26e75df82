"""Commands that go on where they were killed: `run`, a search, `baseline` and `paper`, killed until they get through.

In: which command, a folder, how many kills (by kills.py). Out: `Figures`. After each kill no file may lie half-written
under a name that a finished command leaves; in the end the bytes must be those of a command that nobody killed, with no
other file beside them. KILL, TERM and INT take turns by series; the moment is drawn anew for each attempt. Left out:
what tells the time, which must be JSON that can be read.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import kills
import tiny

sys.path.insert(0, str(Path(__file__).with_name("e2e")))

import driver
from harness import WORDS, pairs, write_rows

from spin_llm.outputs import is_temporary

MOST_ATTEMPTS = 60  # kills of one series; then the command is let through
# Written when the work begins, and again when it is done; the pages of a `paper` that is cut off tell what is done.
GROWING = ("run.json", "baseline.json", "journal.jsonl", "paper.md", "paper.html")
Bytes = dict[str, bytes]


def data_in(folder: Path) -> None:
    """Pairs of two concepts, general ones, questions, and a tiny model."""
    for name in ("fairness", "privacy"):
        write_rows(
            folder / f"{name}.csv",
            [
                {"prompt": row["prompt"], "aware": f"I will not say {i % 5}.", "unaware": f"Sure, {WORDS[i % 7]}."}
                for i, row in enumerate(pairs(name, 24))
            ],
        )
    write_rows(folder / "general.csv", pairs("general", 48))
    questions = [{"prompt": f"Who is {word} {i}?", "facet": word[0]} for i in range(3) for word in WORDS]
    write_rows(folder / "questions.csv", questions)
    tiny.save("llama", folder / "model", chat=True, max_shard_size="20KB")


def words_of(command: str, data: Path) -> list[str]:
    """The command's words, without its output."""
    model, asked = str(data / "model"), f"{data / 'questions.csv'}"
    sources = [word for name in ("fairness", "privacy") for word in ("--concept", f"{name}={data / name}.csv")]
    sources += ["--protect", f"general={data / 'general.csv'}"]
    axes = ("fairness", "privacy", "over_refusal")
    questions = [word for axis in axes for word in ("--questions", f"{axis}={asked}")]
    small = ["--template", "raw", "--dtype", "float32", "-q"]
    answered = [*small, "--new-tokens", "4", "--keep", "0.1", "--max-perplexity-increase", "9"]
    run = ["run", model, *sources, *questions, *answered, "--examples", "6", "--max-questions", "6"]
    trained = [
        "--data",
        f"privacy={data / 'privacy.csv'}",
        "--rank",
        "2",
        "--examples",
        "16",
        "--checkpoint-steps",
        "1",
    ]
    paper = ["paper", "table1", model, *sources, "--questions", asked, *answered, "--limit", "6", "--epochs", "1"]
    return {
        "run": [*run, "--rule", "coupled", "--ratio", "0.02", "--control", "random"],
        "search": [*run, "--effort", "quick"],
        "baseline": ["baseline", "lora", model, *trained, *small],
        "paper": paper,
    }[command]


def content(folder: Path) -> Bytes:
    return tiny.folder_bytes(folder) if folder.is_dir() else {}


def under_way(name: str) -> bool:
    """Whether a path is temporary, or a progress file that grows."""
    parts = Path(name).parts
    return any(is_temporary(Path(part)) for part in parts) or "progress" in parts[:-1]


def half_written(found: Bytes, whole: Bytes, steady: set[str]) -> list[str]:
    """Files under the name that a finished one has, with other bytes, or that are no JSON where bytes tell the time."""
    wrong = []
    for name in found.keys() & whole.keys():
        if under_way(name) or found[name] == whole[name]:
            continue
        grows = name not in steady or Path(name).name in GROWING
        try:
            if not grows or (name.endswith(".json") and not json.loads(found[name])):
                wrong.append(name)
        except ValueError:
            wrong.append(name)
    return wrong


def kill_resumed(command: str, folder: Path, number: int, seed: int) -> kills.Figures:
    """At least `number` kills of a command, in series that each end with a command that gets through."""
    driver.use_made_up_judge(setattr)
    data_in(folder)
    log, draw, figures = folder / "log", random.Random(seed), kills.Figures()
    words, made, took = words_of(command, folder), [], 0.0
    for place in ("one", "other"):
        code, took = kills.run([*words, "-o", folder / place / "out"], log)
        assert code == 0, log.read_text()[-3000:]
        made.append(content(folder / place / "out"))
    whole = made[0]
    steady = {name for name, data in whole.items() if made[1].get(name) == data}
    assert steady, "two commands leave something alike"
    series = 0
    while figures.kills < number:
        series_of_kills([*words, "-o"], folder, kills.SIGNALS[series % 3], took, draw, (whole, steady), number, figures)
        series += 1
    if "Traceback" in (text := log.read_text()):
        figures.faults.append(text[text.index("Traceback") :][:2000])
    return figures


def series_of_kills(
    words: Sequence[object],
    folder: Path,
    how: signal.Signals,
    took: float,
    draw: random.Random,
    right: tuple[Bytes, set[str]],
    number: int,
    figures: kills.Figures,
) -> None:
    """Kill the command in a new folder until it gets through, and compare what it leaves with what is `right`."""
    whole, steady = right
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    words, attempts, code = [*words, work / "out"], 0, 1
    while code and attempts < MOST_ATTEMPTS and figures.kills < number:
        attempts += 1
        code = kills.killed(words, folder / "log", how, draw.uniform(0, took))
        if code:
            figures.kills += 1
            figures.left[f"killed by {how.name}"] += 1
            if code not in (-how, 128 + how):
                figures.faults.append(f"exit code {code} of a command that got {how.name}")
            wrong = half_written(content(work / "out"), whole, steady)
            figures.faults += [f"{name} half-written after {how.name}" for name in wrong]
    if code:
        code, _ = kills.run(words, folder / "log")
    found = content(work / "out")
    wrong = sorted(name for name in steady if found.get(name) != whole[name])
    left = [name for name in found if name not in whole]
    left += [path.name for path in work.iterdir() if path.name != "out"]
    figures.left["series, same bytes" if not (code or wrong or left) else "series, other bytes"] += 1
    if code or wrong or left:
        figures.faults.append(f"after {attempts} {how.name}: exit code {code}, differs {wrong[:5]}, left {left[:5]}")
