"""`--responses own`: the model answers the concept's prompts itself, the judge divides them, that is what is scored."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from harness import WORDS, Command, write_rows

from spin_llm.evaluate import own
from spin_llm.scores import load_scores

pytest_plugins = ["harness"]
PROMPTS = 80


@pytest.fixture(scope="module")
def words(tiny_folder, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A quick search whose concepts are prompts alone, two of which are also asked at the end."""
    data = tmp_path_factory.mktemp("own")
    asked = [{"prompt": f"Who is {w} {i}?"} for i in range(3) for w in WORDS]
    write_rows(data / "questions.csv", asked)
    for name in ("fairness", "privacy"):
        prompts = [{"prompt": f"{name} {i}: {WORDS[i % len(WORDS)]}?"} for i in range(PROMPTS)]
        write_rows(data / f"{name}.csv", [*asked[:2], *prompts])
    general = [{"prompt": f"Tell of {word} {i}.", "response": f"{word} {i}."} for i in range(4) for word in WORDS]
    write_rows(data / "general.csv", general)
    sources = [
        *(word for name in ("fairness", "privacy") for word in ("--concept", f"{name}={data / name}.csv")),
        *("--protect", f"general={data / 'general.csv'}", "--questions", str(data / "questions.csv")),
    ]
    limits = "--examples 24 --template raw --dtype float32 --keep 0.1 --new-tokens 6 --max-perplexity-increase 0.3"
    return [str(tiny_folder("llama")), *sources, *limits.split(), "--trials", "6", "--survivors", "1"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer answers of a kind are enough: the made-up judge divides a tiny model's answers as it likes."""
    for name, value in {"LEAST_SCORED": 4, "LEAST_HELD_BACK": 8, "PROBE": 40}.items():
        monkeypatch.setattr(own, name, value)


@pytest.mark.usefixtures("small")
def test_own_answers_are_what_is_scored(words: list[str], command: Command, tmp_path: Path):
    outcome = command("run", *words, "--responses", "own", "-o", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    rows = [json.loads(line) for line in (tmp_path / "run" / "own" / "answers.jsonl").read_text().splitlines()]
    final = [json.loads(line) for line in (tmp_path / "run" / "generations.jsonl").read_text().splitlines()]
    for name in ("fairness", "privacy"):
        mine = [row for row in rows if row["concept"] == name]
        assert len(mine) == PROMPTS, "the two prompts that are asked at the end are not scored on"
        aware = sum(row["aware"] for row in mine)
        assert 0 < aware < PROMPTS, "both kinds"
        assert f"{name}: {aware} own answers are aware" in outcome.err
        about = load_scores(tmp_path / "run" / "scores" / f"{name}.safetensors").info
        least_aware, least_unaware = (max(8, min(32, kind // 4)) for kind in (aware, PROMPTS - aware))
        assert about.examples == min(24, aware - least_aware)
        assert about.unaware_examples == min(24, PROMPTS - aware - least_unaware)
    assert not {row["prompt"] for row in rows} & {row["prompt"] for row in final}
    search = json.loads((tmp_path / "run" / "results.json").read_text())["search"]
    assert search["responses"] == "own"
    assert not search["found"], "whether the length of an answer is odd is nothing that a few weights can raise"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "from scores of the model's own answers" in page or "from scores of the model&#39;s own answers" in page
    assert "may have learnt the judge" in page, "the judge that divides is the judge that reports"
    assert "Nobody has shown that local is right on such answers" in page
    assert "warning: fairness: the model's own answers are divided by made-up, judge not measured" in outcome.err
    costs = load_scores(tmp_path / "run" / "scores" / "own.safetensors")
    assert costs.info.examples == 24, "12 aware answers of each concept: what they need is a cost"
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [row["examples"] for row in record["data"] if row["role"] == "own answers"] == [PROMPTS, PROMPTS]

    scores = {path: path.read_bytes() for path in (tmp_path / "run" / "scores").iterdir()}
    patch = (tmp_path / "run" / "patch.safetensors").read_bytes()
    for name in ("patch.safetensors", "results.json", "scores/fairness.safetensors"):
        (tmp_path / "run" / name).unlink()
    again = command("run", *words, "--responses", "own", "-o", tmp_path / "run")
    assert again.code == 0, again.err
    assert {path: path.read_bytes() for path in scores} == scores, "the stored answers are scored again to the bit"
    assert (tmp_path / "run" / "patch.safetensors").read_bytes() == patch


@pytest.mark.usefixtures("small")
def test_answers_judged_in_another_way_are_not_mixed_in(words: list[str], command: Command, tmp_path: Path):
    assert command("score", *score_words(words), "--responses", "own", "-o", tmp_path / "run").code == 0
    (tmp_path / "run" / "own" / "told.json").write_text('{"judge": "another"}')
    outcome = command("score", *score_words(words), "--responses", "own", "-o", tmp_path / "run")
    assert outcome.code == 2
    assert "made or judged in another way" in outcome.err


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_human_divides_and_another_judge_reports(words: list[str], command: Command, tmp_path: Path):
    """Answers of a first run, to a sheet, labelled, and back as the judge that divides."""
    assert command("score", *score_words(words), "--responses", "own", "-o", tmp_path / "first").code == 0
    sheet = tmp_path / "sheet.csv"
    made = command("judge", "sheet", tmp_path / "first" / "own" / "answers.jsonl", "-o", sheet)
    assert made.code == 0, made.err
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for place, row in enumerate(rows):
        row["label"] = "" if place == 0 else str(int(len(row["prompt"]) % 3 > 0))  # not as the made-up judge does
    with sheet.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    options = [*words, "--new-tokens", "64", "--responses", "own", "--own-judge", f"human:{sheet}"]
    outcome = command("run", *options, "-o", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "1 of" in outcome.err
    assert "own answers have no verdict" in outcome.err
    answers = [json.loads(line) for line in (tmp_path / "run" / "own" / "answers.jsonl").read_text().splitlines()]
    labels = {(row["axis"], row["prompt"]): row["label"] for row in rows}
    divided = [row for row in answers if row["aware"] is not None]
    assert all(row["aware"] in (False, labels[row["concept"], row["prompt"]] == "1") for row in divided)
    assert any(row["aware"] for row in divided), "what the human called aware, if it is coherent"
    edit = json.loads((tmp_path / "run" / "results.json").read_text())["edit"]
    assert edit["own_answers"] == {"judge": f"human:{sheet}", "reports": False}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Its errors may have been learnt" in page
    assert "this judge divided them" not in page

    sheet.write_bytes(sheet.read_bytes().replace(b',1,"label', b',0,"label', 1))
    (tmp_path / "run" / "patch.safetensors").unlink()
    changed = command("run", *options, "-o", tmp_path / "run")
    assert changed.code == 2
    assert "the file of --own-judge changed" in changed.err, "another label in the sheet is another judge"

    alone = command("run", *words, "--own-judge", "local", "-o", tmp_path / "other")
    assert alone.code == 2
    assert "--own-judge divides the model's own answers" in " ".join(alone.err.split())


def score_words(words: list[str]) -> list[str]:
    """The words of a run that `score` knows too."""
    dropped = {"--questions", "--new-tokens", "--max-perplexity-increase", "--trials", "--survivors"}
    kept, skip = [], False
    for word in words:
        if not skip and word not in dropped:
            kept.append(word)
        skip = word in dropped
    return kept


def test_too_few_of_a_kind_is_an_error_with_numbers(
    words: list[str], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(own, "LEAST_SCORED", PROMPTS // 2 - own.LEAST_HELD_BACK)  # all prompts, divided in the middle
    outcome = command("run", *words, "--responses", "own", "-o", tmp_path / "run")
    assert outcome.code == 2
    assert "were aware and coherent" in outcome.err
    assert "leave out --responses own" in outcome.err
    assert not (tmp_path / "run" / "own" / "answers.jsonl").exists()


def test_few_prompts_are_an_error_before_anything_is_asked(words: list[str], command: Command, tmp_path: Path):
    """The least is 64 prompts of a concept."""
    short = tmp_path / "short.csv"
    write_rows(short, [{"prompt": f"What of {word}?"} for word in WORDS])
    given = [f"fairness={short}" if word.startswith("fairness=") else word for word in words]
    outcome = command("run", *given, "--responses", "own", "-o", tmp_path / "run")
    assert outcome.code == 2
    assert "12 prompts of fairness" in outcome.err
    assert not list((tmp_path / "run" / "own").glob("probe*"))
