"""A concept scored in several passes, or stopped and continued, ends with the same bytes as in one go."""

from __future__ import annotations

import csv
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import TinyFolder, TinyModel
from safetensors import safe_open
from test_statistics_oracle import ALL, same
from tiny import score_concept

from spin_llm import pipeline
from spin_llm.errors import SpinError
from spin_llm.models import LoadedModel, editable_matrices
from spin_llm.progress import Console
from spin_llm.scores import Plan, Scores, make_batches, make_plan, plan
from spin_llm.scores import concept as scoring
from spin_llm.scores import passes as engine
from spin_llm.scores.importance import STATISTICS, accumulators
from spin_llm.scores.plan import matrix_bytes
from spin_llm.settings import RunSettings

STOPPING = Path(__file__).with_name("stopping.py")
BATCH_TOKENS = 60
OPTIONS = ("--template", "raw", "--keep", "0.05", "--dtype", "float32", "--statistics", "margin")
STATISTICS_OF_TEST = ("taylor", "margin", "fisher", "wanda")


class Stopped(BaseException):
    """Stands for a kill at an exact place."""


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches, and a checkpoint after each."""
    monkeypatch.setattr(scoring, "make_batches", functools.partial(make_batches, batch_tokens=BATCH_TOKENS))
    monkeypatch.setattr(scoring, "CHECKPOINT_SHARE", float("inf"))


def passes(loaded: LoadedModel, number: int, target: str = "mlp", statistics: tuple[str, ...] = ALL) -> Plan:
    """A plan of so many passes, out of a budget; memory is made up, since tiny models are lost in the noise."""
    matrices, kinds = editable_matrices(loaded.model, target), accumulators(statistics)
    everything = sum(matrix_bytes(matrix, kinds) for matrix in matrices)
    finishing = 4 * max(matrix.weight.numel() for matrix in matrices) * (len(statistics) + 3)
    before, plan.measure = plan.measure, lambda *_: (0, 0, 1.0)  # type: ignore[assignment]
    try:
        room = -(-everything // number)
        for budget in range(room, 2 * room, max(1, room // 50)):
            made = make_plan(
                loaded, [], matrices, kinds, statistics=len(statistics), budget=finishing + budget, checkpoints=True
            )
            if len(made.partitions) == number:
                return made
    finally:
        plan.measure = before
    raise AssertionError(f"no budget makes {number} passes")


def score(loaded: LoadedModel, **options: Any) -> Scores:
    options = {"statistics": STATISTICS_OF_TEST, "keep": 0.05, **options}
    return score_concept(loaded, tiny.examples(1), tiny.examples(2), **options)


def equal(one: Scores, other: Scores) -> bool:
    """Bit for bit, in the same order."""
    return (
        list(one.matrices) == list(other.matrices)
        and one.info == other.info
        and all(same(one.matrices[name], other.matrices[name]) for name in one.matrices)
    )


# Passes


@pytest.mark.parametrize(
    ("name", "target", "dtype"),
    [
        ("llama", "attention", "float32"),
        ("llama", "all", "bfloat16"),
        ("gpt2", "all", "float32"),
        ("gemma3", "all", "float32"),
    ],
)
def test_any_number_of_passes_gives_the_same_bits(name: str, target: str, dtype: str, tiny_model: TinyModel):
    loaded = tiny_model(name, dtype=dtype)
    plans = [passes(loaded, number, target) for number in (1, 2, 4)]
    assert [len(made.partitions) for made in plans] == [1, 2, 4]
    assert plans[2].accumulators < plans[1].accumulators < plans[0].accumulators
    whole, *parts = (score(loaded, target=target, plan=made, statistics=ALL) for made in (None, *plans))
    assert all(equal(part, whole) for part in parts)


@pytest.mark.parametrize("granularity", ["row", "model"])
def test_the_granularity_is_the_same_in_several_passes(granularity: str, tiny_model: TinyModel):
    loaded = tiny_model("llama")
    one, several = (score(loaded, plan=passes(loaded, n), granularity=granularity) for n in (1, 5))
    assert one.info.granularity == granularity
    assert equal(one, several)


def test_only_one_partition_has_accumulators_at_a_time(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch):
    import weakref

    loaded, made = tiny_model("llama"), scoring.new_totals
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def spy(*args: Any, **options: Any) -> dict[str, torch.Tensor]:
        nonlocal most
        totals = made(*args, **options)
        alive.extend(weakref.ref(total) for total in totals.values())
        most = max(most, sum(4 * total.numel() for ref in alive if (total := ref()) is not None))
        return totals

    monkeypatch.setattr(scoring, "new_totals", spy)
    made_up = passes(loaded, 5)
    score(loaded, plan=made_up, statistics=ALL)
    assert 0 < most <= made_up.accumulators


# What is on the disk


def test_only_checkpoints_and_kept_entries_are_ever_on_the_disk(tiny_model: TinyModel, tmp_path: Path, eager: None):
    loaded = tiny_model("llama")
    largest: dict[str, int] = {}
    seen: set[frozenset[str]] = set()
    five = passes(loaded, 5, statistics=STATISTICS_OF_TEST)

    def look(done: int) -> None:
        files = {path.name: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
        seen.add(frozenset(files))
        assert sum(files.values()) <= five.disk + 4 * 2**16, "what the plan says, headers and kept entries aside"
        for name, size in files.items():
            largest[name] = max(size, largest.get(name, 0))

    score(loaded, plan=five, folder=tmp_path, progress=look)
    assert {name.partition("-")[0] for name in largest} == {"sums", "kept"}
    assert all(sum(name.startswith("sums") for name in names) <= 1 for names in seen), "one checkpoint at a time"
    assert not list(tmp_path.glob("sums-*"))
    dense = min(matrix.weight.numel() for matrix in editable_matrices(loaded.model, "mlp"))
    for path in tmp_path.glob("kept-*"):
        with safe_open(path, "pt") as file:
            assert all(file.get_tensor(name).numel() <= 0.05 * dense * 1.5 for name in file.keys())  # noqa: SIM118


def test_without_the_time_for_it_there_is_no_checkpoint(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A checkpoint's cost is guessed before the first one: a slow disk here, against a pass of milliseconds."""
    files: list[Path] = []
    monkeypatch.setattr(scoring, "DISK_BYTES_PER_SECOND", 1e5)
    monkeypatch.setattr(scoring, "make_batches", functools.partial(make_batches, batch_tokens=BATCH_TOKENS))
    score(tiny_model("llama"), folder=tmp_path, progress=lambda done: files.extend(tmp_path.rglob("*")))
    assert files == list(tmp_path.rglob("*")) == []


def test_checkpoints_take_their_share_of_the_time_at_most(tiny_model: TinyModel, tmp_path: Path, monkeypatch):
    """A clock on which a batch takes 1 s and a checkpoint 0.1 s: one checkpoint in 4 batches is 2.5% of the time."""
    now, written = 0.0, []
    loaded, examples = tiny_model("llama"), tiny.examples(1) * 20

    def checkpoint(*args: Any) -> None:
        nonlocal now
        now += 0.1
        written.append(now)

    def tick(done: int) -> None:
        nonlocal now
        now += bool(done)

    monkeypatch.setattr(scoring, "make_batches", functools.partial(make_batches, batch_tokens=BATCH_TOKENS))
    monkeypatch.setattr(scoring.time, "monotonic", lambda: now)
    monkeypatch.setattr(scoring, "_checkpoint", checkpoint)
    score_concept(loaded, examples, folder=tmp_path, progress=tick)
    batches = len(make_batches(examples, batch_tokens=BATCH_TOKENS))
    assert batches > 40
    assert batches / 6 < len(written) <= batches / 4 + 1
    assert 0.1 * len(written) / now <= 0.03


# Stopped and continued


def stopping(after: int) -> Callable[[int], None]:
    calls = 0

    def progress(done: int) -> None:
        nonlocal calls
        calls += done > 0
        if calls == after:
            raise Stopped

    return progress


@pytest.mark.parametrize("number", [1, 5])
def test_stopped_after_every_batch_in_turn(number: int, tiny_model: TinyModel, tmp_path: Path, eager: None):
    """Each attempt does the batch that the former one lost, and stops in the next."""
    loaded = tiny_model("llama")
    made = passes(loaded, number)
    whole = score(loaded, plan=made)
    batches = len(make_batches(tiny.examples(1), tiny.examples(2), batch_tokens=BATCH_TOKENS))
    assert batches >= 6
    stops = 0
    while True:
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        # one call per pass that is done or begun, before the batches
        begun = len([name for name in before if name.startswith(("kept", "sums"))])
        try:
            found = score(loaded, plan=made, folder=tmp_path, progress=stopping(begun + 2))
            break
        except Stopped:
            stops += 1
            assert before != {path.name: path.read_bytes() for path in tmp_path.iterdir()}, "something was won"
    assert stops >= number * (batches - 2)
    assert equal(found, whole)


def test_continued_work_is_not_done_again(tiny_model: TinyModel, tmp_path: Path, eager: None):
    loaded = tiny_model("llama")
    five = passes(loaded, 5)
    total = 5 * (len(tiny.examples(1)) + len(tiny.examples(2)))
    first: list[int] = []
    score(loaded, plan=five, folder=tmp_path, progress=first.append)
    assert sum(first) == total
    again: list[int] = []
    score(loaded, plan=five, folder=tmp_path, progress=again.append)
    assert again == [total // 5] * 5, "all of each pass at once, from the disk"


@pytest.mark.parametrize(
    ("number", "changed"),
    [
        (1, {"statistics": ("taylor", "margin", "wanda", "fisher")}),
        (5, {"keep": 0.1}),
        (5, {"granularity": "row"}),
        (1, {"seed": 1}),
        (1, {"target": "attention"}),
        (1, {"dtype": "bfloat16"}),
        (5, {"examples": 3}),
        (1, {"model": 1}),
        (5, {"passes": 2}),
        (5, {"damaged": True}),
    ],
    ids=str,
)
def test_a_checkpoint_of_another_job_is_ignored(
    number: int, changed: dict[str, Any], tiny_model: TinyModel, tmp_path: Path, eager: None
):
    """One pass: its sums; five passes: what was kept of the first two, and the sums of the third."""
    loaded = tiny_model("llama")
    for folder in (tmp_path / "o",):
        after = {1: 4, 5: 24}[number]  # batches
        with pytest.raises(Stopped):
            score(loaded, plan=passes(loaded, number), folder=folder, progress=stopping(after))
        assert list(folder.glob("sums-*"))
        assert bool(list(folder.glob("kept-*"))) == (number == 5)
        options = dict(changed)
        other = tiny_model("llama", dtype=options.pop("dtype", "float32"), seed=options.pop("model", 0))
        aware = tiny.examples(options.pop("examples", 1))
        options = {"statistics": STATISTICS_OF_TEST, "keep": 0.05, **options}
        if options.pop("damaged", False):
            for path in folder.glob("sums-*"):
                path.write_bytes(path.read_bytes()[:-10])
        target = options.get("target", "mlp")
        made = passes(other, options.pop("passes", number), target)
        expected = score_concept(other, aware, tiny.examples(2), plan=made, **options)
        found = score_concept(other, aware, tiny.examples(2), plan=made, folder=folder, **options)
        assert equal(found, expected)


# The command, killed


def write_pairs(folder: Path, rows: int = 8, words: int = 12) -> list[str]:
    """Data files of two concepts and general pairs, and the words that name them; very unequal lengths."""
    for number, name in enumerate(("fairness", "privacy", "general")):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("prompt", "aware", "unaware"))
            for row in range(rows):
                text = " ".join(
                    tiny.CORPUS[(row + number + i) % 4].split()[i % 7] for i in range(1 + (row * 37) % words)
                )
                answers = (f"With respect {row}, {text[:40]}", f"Everybody knows {text[:20]} {row}")
                writer.writerow((f"{name} {row}: {text}?", *answers))
    words_of = [word for name in ("fairness", "privacy") for word in ("--concept", f"{name}={folder / name}.csv")]
    return [*words_of, "--protect", f"general={folder / 'general'}.csv"]


@pytest.fixture(scope="module")
def words(tiny_folder: TinyFolder, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pairs")
    options = [*OPTIONS, "--examples", "6", "-q"]
    return ["score", str(tiny_folder("llama")), *write_pairs(folder), *options]


def environment(**more: str) -> dict[str, str]:
    path = [str(Path(pipeline.__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    limits = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), **limits, **more}


def run_trials(trials: list[tuple[list[str], dict[str, str]]]) -> tuple[list[list[int]], str]:
    """(exit codes of each trial's processes, what all wrote on stderr)."""
    words = [sys.executable, str(STOPPING), "--trials", json.dumps(trials)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout), done.stderr


def score_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "scores").glob("*.safetensors"))}


@pytest.mark.slow
def test_killed_at_many_places_and_run_again(words: list[str], tmp_path: Path):
    """kill -9 at the n-th batch or rename; then the same command again. And one folder that is killed over and over."""
    places = [3, 6, 9, 14]
    trials: list[tuple[list[str], dict[str, str]]] = [([*words, "-o", str(tmp_path / "whole")], {})]
    for place in places:
        folder = str(tmp_path / str(place))
        trials += [([*words, "-o", folder], {"STOP_AT": str(place)}), ([*words, "-o", folder], {})]
    trials += [([*words, "-o", str(tmp_path / "often")], {"STOP_AT": "6"})] * 5
    trials += [([*words, "-o", str(tmp_path / "often")], {})]
    codes, err = run_trials(trials)
    assert codes == [[code] for code in (0, *[-9, 0] * len(places), *[-9] * 5, 0)], err
    whole = score_bytes(tmp_path / "whole")
    assert list(whole) == ["fairness.safetensors", "general.safetensors", "privacy.safetensors"]
    for folder in map(str, [*places, "often"]):
        assert score_bytes(tmp_path / folder) == whole, folder
        left = [path for path in (tmp_path / folder).rglob("*") if "progress" in path.name or path.suffix == ".part"]
        assert not [path for path in left if path.is_file()]


# The budget of the command


def settings(words: list[str], **options: Any) -> RunSettings:
    named = [word.partition("=")[::2] for word in words if "=" in word]
    common = {"examples": 6, "template": "raw", "keep": 0.05, "dtype": "float32", "statistics": ("margin",)}
    return RunSettings(words[1], concepts=tuple(named[:2]), protect=(named[2],), **{**common, **options})


def test_the_command_refuses_a_budget_that_is_too_small_and_names_one_that_works(words: list[str], tmp_path: Path):
    said: list[str] = []
    console = Console(said.append)
    with pytest.raises(SpinError, match=r"too small to score model\.layers\.0") as refusal:
        pipeline.score(settings(words, memory_budget="1k"), tmp_path / "o", console=console)
    named = re.search(r"--memory-budget (\w+) or more", str(refusal.value))
    assert named
    pipeline.score(settings(words, memory_budget=named[1]), tmp_path / "o", console=console)
    (text,) = [line for line in said if line.startswith("plan: ")]
    assert re.fullmatch(
        r"plan: \d+ pass(es)? for 9 matrices; peak [\d.,]+ [MG]iB on cpu \(.* model and libraries, .* accumulators, "
        r".* per batch\); \d+ MiB of disk; about [\d,]+ s",
        text,
    )
    assert len(score_bytes(tmp_path / "o")) == 3


def test_the_budget_does_not_change_the_bytes(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plan, "measure", lambda *_: (0, 0, 1.0))
    finishing = 4 * 32 * 48 * (2 + 3)
    each = 4 * 32 * 48 * 2  # taylor's and margin's accumulators
    found = []
    for number, budget in ((1, None), (3, finishing + 3 * each), (9, finishing + each)):
        said: list[str] = []
        options = settings(words, memory_budget=None if budget is None else str(budget))
        pipeline.score(options, tmp_path / str(number), console=Console(said.append))
        assert [line.split()[1] for line in said if line.startswith("plan: ")] == [str(number)]
        assert not list((tmp_path / str(number) / "progress").glob("*"))
        found.append(score_bytes(tmp_path / str(number)))
    assert found[0] == found[1] == found[2]


# Lengths, through the command


def test_long_prompts_lose_their_start_and_long_responses_are_refused(tiny_folder: TinyFolder, tmp_path: Path):
    sources = write_pairs(tmp_path)
    words = ["score", str(tiny_folder("llama")), *sources]
    said: list[str] = []
    pipeline.score(settings(words, max_length=40), tmp_path / "o", console=Console(said.append))
    found = {name: scores.info for name, scores in _scores(tmp_path / "o").items()}
    assert all(about.truncated_tokens > 0 for about in found.values())
    assert all(about.tokens <= 40 * 6 for about in found.values())
    assert [line for line in said if "lost their start" in line]
    with pytest.raises(SpinError, match=r"row 1 \(line 2\): \d+ tokens(.|\n)*--max-length 5(.|\n)*which are never cut"):
        pipeline.score(settings(words, max_length=5), tmp_path / "p")
    assert not (tmp_path / "p" / "scores").exists()


def _scores(folder: Path) -> dict[str, Scores]:
    from spin_llm.scores import load_scores

    return {path.stem: load_scores(path) for path in (folder / "scores").glob("*.safetensors")}


def test_every_statistic_has_a_name_that_the_settings_know():
    from spin_llm.scores import SELECTORS
    from spin_llm.settings import SELECTORS as SETTINGS_SELECTORS
    from spin_llm.settings import STATISTICS as SETTINGS_STATISTICS

    assert set(SETTINGS_STATISTICS) == set(STATISTICS)
    assert set(SETTINGS_SELECTORS) == set(SELECTORS)
    assert set(engine.STATISTICS if hasattr(engine, "STATISTICS") else STATISTICS) >= set(SELECTORS)
