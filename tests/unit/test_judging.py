"""Which judge a text names, which are refused, and verdicts that are kept while a judging goes on."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyFolder

from spin_llm.errors import SpinError
from spin_llm.evaluate.answers import judge_rows
from spin_llm.evaluate.axes import rate_axis
from spin_llm.files import read_typed_lines, write_json
from spin_llm.generation.completion import Completion, Prompt, local_completer
from spin_llm.judges import named as judging
from spin_llm.judges import verdict as remembered
from spin_llm.judges.guards import GUARDS, GuardJudge
from spin_llm.judges.named import load_judge, parse_judge, refuse_fingerprint, refuse_model_under_edit
from spin_llm.judges.quality.reading import Reading
from spin_llm.judges.rubric import RubricJudge
from spin_llm.judges.verdict import Verdict, judged_axes, remembering
from spin_llm.models import Checkpoint
from spin_llm.progress import Console
from spin_llm.report.words import clause, verdict_sentence
from spin_llm.results.judged import JudgeQuality
from spin_llm.results.rows import ToJudge


class Words:
    """A completer whose guard says safe to all answers with an e in them."""

    def __init__(self, name: str = "words", fingerprint: str = "abc float32") -> None:
        self.name, self.fingerprint, self.asked = name, fingerprint, list[Prompt]()

    def __call__(self, prompts: Sequence[Prompt], *, progress, **options: int) -> list[Completion]:
        self.asked += prompts
        progress(len(prompts))
        return [Completion("safe" if "Agent: e" in str(prompt) else "unsafe", 1, True) for prompt in prompts]


@pytest.mark.parametrize(
    ("text", "kind", "model", "url", "guard"),
    [
        ("local", "local", "local", None, None),
        ("mine.safetensors", "local", "mine.safetensors", None, None),
        ("wildguard", "guard", "allenai/wildguard", None, "wildguard"),
        ("md-judge-v0.1:/models/md", "guard", "/models/md", None, "md-judge-v0.1"),
        ("wildguard:guard@http://localhost:8000/v1", "guard", "guard", "http://localhost:8000/v1", "wildguard"),
        ("Qwen/Qwen3Guard-Gen-0.6B", "guard", "Qwen/Qwen3Guard-Gen-0.6B", None, "qwen3guard-gen"),
        (
            "Qwen/Qwen3Guard-Gen-8B@https://a.b/v1",
            "guard",
            "Qwen/Qwen3Guard-Gen-8B",
            "https://a.b/v1",
            "qwen3guard-gen",
        ),
        ("wildguard@http://localhost/v1", "guard", "allenai/wildguard", "http://localhost/v1", "wildguard"),
        ("rubric:smollm2-135m", "rubric", "smollm2-135m", None, None),
        ("rubric:a/b@http://[::1]:8000/v1", "rubric", "a/b", "http://[::1]:8000/v1", None),
        ("rubric:C:/models/judge", "rubric", "C:/models/judge", None, None),
        ("human:labels.csv", "human", "labels.csv", None, None),
    ],
)
def test_what_a_text_names(text: str, kind: str, model: str, url: str | None, guard: str | None):
    named = parse_judge(text)
    assert (named.kind, named.model, named.url) == (kind, model, url)
    assert (named.guard.name if named.guard else None) == guard


@pytest.mark.parametrize(
    "text", ["", "lokal", "rubric:", "human:", "wildguard:", "guard:folder", "smollm2-135m", "human:a.csv@http://b/v1"]
)
def test_other_texts_are_refused_with_what_there_is(text: str):
    with pytest.raises(SpinError, match=r"There is no judge.*(.|\n)*wildguard.*rubric:MODEL"):
        parse_judge(text)


@pytest.mark.parametrize("url", ["http://user:s3cret@host/v1", "https://s3cret@host/v1", "http://host/v1?key=s3cret"])
def test_a_key_in_the_url_is_refused_and_not_repeated(url: str):
    with pytest.raises(SpinError, match="OPENAI_API_KEY") as error:
        parse_judge(f"rubric:model@{url}")
    assert "s3cret" not in str(error.value)


def test_the_model_under_edit_is_not_its_own_judge(tmp_path: Path):
    (tmp_path / "wildguard-x").mkdir()
    for judge, model in (
        ("rubric:smollm2-135m", "smollm2-135m"),
        ("rubric:org/Model@http://localhost/v1", "org/model"),
        ("wildguard", "allenai/wildguard"),
        (f"wildguard:{tmp_path}/wildguard-x/", str(tmp_path / "." / "wildguard-x")),
    ):
        with pytest.raises(SpinError, match="cannot be its own judge"):
            refuse_model_under_edit(judge, ["another", model])
    for judge in ("local", "rubric:other", "wildguard", "human:smollm2-135m"):
        refuse_model_under_edit(judge, ["smollm2-135m"])
    with pytest.raises(SpinError, match="There is no judge"):
        refuse_model_under_edit("nonsense", ["smollm2-135m"])


def test_the_same_weights_under_another_name_are_found_too(tiny_folder: TinyFolder, tmp_path: Path):
    """Also those of a light edit of the judge."""
    folder = tiny_folder("llama", chat=True)
    judge = RubricJudge(local_completer(str(folder)))
    edited, other = Path(shutil.copytree(folder, tmp_path / "edited")), Checkpoint(tiny_folder("llama", seed=1))
    name, tensor = next(iter(Checkpoint(edited).tensors.items()))
    with (edited / "model.safetensors").open("r+b") as file:
        file.seek(tensor.start)
        file.write(b"\0\0\0\0")
    assert Checkpoint(edited).tensors[name].read() != Checkpoint(folder).tensors[name].read()
    refuse_fingerprint(judge, [other])
    for model in (folder, edited):
        with pytest.raises(SpinError, match="cannot be its own judge"):
            refuse_fingerprint(judge, [other, Checkpoint(model)])
    refuse_fingerprint(load_judge("local"), [other])


def test_models_of_judges_are_opened_here_or_at_the_url(monkeypatch: pytest.MonkeyPatch):
    opened: list[Any] = []
    monkeypatch.setattr(judging, "local_completer", lambda model, **options: opened.append((model, options)) or Words())
    monkeypatch.setattr(judging, "server_completer", lambda url, model: opened.append((url, model)) or Words())
    guard = load_judge("wildguard:folder", trust_remote_code=True)
    assert isinstance(guard, GuardJudge)
    assert guard.guard.name == "wildguard"
    rubric = load_judge("rubric:m@http://h/v1", label="safe")
    assert isinstance(rubric, RubricJudge)
    assert rubric.label == "safe"
    assert opened == [("folder", {"trust_remote_code": True, "date": None}), ("http://h/v1", "m")]


def test_measured_quality_comes_from_the_file_of_a_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(judging, "local_completer", lambda model, **options: Words())
    path = tmp_path / "quality.json"
    part = {
        "family": "",
        "questions": "",
        "auc": 0.9,
        "measurable": True,
        "sensitivity": [9, 10],
        "accuracy": 0.9,
        "n": 20,
    }
    write_json(path, {"judges": {"wildguard:x": {"privacy": {**part, "groups": [part]}}}, "agreement": {}})
    given = JudgeQuality(source="quality.json", **{**part, "sensitivity": (9, 10)}, given=True)
    assert load_judge("wildguard:x", quality=str(path)).quality == {"privacy": [given]}
    assert load_judge("wildguard:x").quality == {}
    with pytest.raises(SpinError, match=r"no quality of the judge wildguard:y(.|\n)*wildguard:x"):
        load_judge("wildguard:y", quality=str(path))
    write_json(path, {"judges": {"local": {"privacy": {**part, "groups": [part]}}}, "agreement": {}})
    own = load_judge("local", quality=str(path)).quality["privacy"]
    assert own[0] == given
    assert {entry.questions for entry in own[1:]} >= {"starter"}


def generations(axes: Sequence[str], count: int = 3) -> list[ToJudge]:
    return [
        ToJudge(id=f"{axis}-{n}", axis=axis, prompt=f"Why {n}?", model=model, answer=("e" if n % 2 else "x") * 2)
        for axis in axes
        for model in ("base", "edited")
        for n in range(count)
    ]


def test_axes_that_a_judge_cannot_judge_are_left_out_with_a_line():
    said: list[str] = []
    judge = GuardJudge(GUARDS["llama-guard-3"], Words())
    rows = judge_rows(judge, generations(("fairness", "over_refusal")), console=Console(say=said.append))
    assert {row.axis for row in rows} == {"fairness"}
    assert said == ["the judge llama-guard-3:words does not judge over_refusal: left out"]
    with pytest.raises(SpinError, match="judges none of over_refusal"):
        judged_axes(judge, ["over_refusal"])


def test_unparsed_verdicts_are_counted_and_an_unmeasured_judge_is_not_believed():
    rows = generations(("fairness",), 40)
    verdicts = judge_rows(GuardJudge(GUARDS["llama-guard-3"], Words()), rows)
    odd = [replace(row, verdict=None if row.id == "fairness-1" else row.verdict) for row in verdicts]
    axis = rate_axis("fairness", odd, "edited", "safe", Reading(None, "judge not measured"), seed=0)
    assert axis.unparsed == (1, 1)
    assert (axis.n, axis.base) == (39, 19 / 39)
    assert axis.bounds.base == (19 / 40, 20 / 40)
    assert axis.metric == "awareness rate (judged safe)"
    assert (axis.measurable, axis.note) == (False, "judge not measured")
    assert verdict_sentence(axis) == "no reading: judge not measured"
    assert clause("fairness", axis) == "no reading on fairness awareness: judge not measured"
    assert (axis.p, axis.mde, axis.corrected) == (None, None, None)


def test_a_verdict_is_asked_for_once_and_survives_the_process(tmp_path: Path):
    path = tmp_path / "progress" / "judged.jsonl"
    words = Words()
    judge = remembering(GuardJudge(GUARDS["llama-guard-3"], words), path)
    done: list[int] = []
    verdicts = judge("privacy", ["a", "b", "a"], ["ee", "x", "ee"], done.append)
    assert [verdict.verdict for verdict in verdicts] == [1, 0, 1]
    assert sum(done) == 3
    assert judge("privacy", ["b"], ["x"])[0].verdict == 0
    asked = len(words.asked)
    again = Words()
    other = remembering(GuardJudge(GUARDS["llama-guard-3"], again), path)
    assert other("privacy", ["b", "a", "c"], ["x", "ee", "ee"]) == [verdicts[1], verdicts[0], Verdict(None, 1)]
    assert len(again.asked) == 1
    assert asked == 3, "the wrapper asks for what it is given; judge_rows gives each answer once"
    assert other("fairness", ["b"], ["x"])[0].verdict == 0
    assert len(again.asked) == 2, "another axis is another question"
    assert len({row["key"] for row in read_typed_lines(path, dict)}) == 4


def test_another_model_or_template_is_not_answered_from_the_file(tmp_path: Path):
    path = tmp_path / "judged.jsonl"
    remembering(GuardJudge(GUARDS["llama-guard-3"], Words()), path)("privacy", ["a"], ["x"])
    for guard, fingerprint in (("llama-guard-3", "other"), ("llama-guard-4", "abc float32")):
        words = Words(fingerprint=fingerprint)
        remembering(GuardJudge(GUARDS[guard], words), path)("privacy", ["a"], ["x"])
        assert len(words.asked) == 1, guard


def test_verdicts_are_written_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remembered, "PORTION", 2)

    class Dying(Words):
        def __call__(self, prompts: Sequence[Prompt], **options: Any) -> list[Completion]:
            if len(self.asked) == 4:
                raise KeyboardInterrupt
            return super().__call__(prompts, **options)

    path = tmp_path / "judged.jsonl"
    prompts, answers = [f"p{n}" for n in range(6)], ["x" * (6 - n) for n in range(6)]
    with pytest.raises(KeyboardInterrupt):
        remembering(GuardJudge(GUARDS["llama-guard-3"], Dying()), path)("privacy", prompts, answers)
    assert len(read_typed_lines(path, dict)) == 4
    path.write_bytes(path.read_bytes()[:-9])  # killed in the middle of a line
    words = Words()
    verdicts = remembering(GuardJudge(GUARDS["llama-guard-3"], words), path)("privacy", prompts, answers)
    assert len(words.asked) == 3
    assert len(verdicts) == 6
    assert len(read_typed_lines(path, dict)) == 6


def test_judges_without_a_fingerprint_are_left_as_they_are(tmp_path: Path):
    judge = load_judge("local")
    assert remembering(judge, tmp_path / "judged.jsonl") is judge
    assert not list(tmp_path.iterdir())
