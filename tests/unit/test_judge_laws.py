"""The laws of every judge: local, guard, rubric, human, and one whose verdicts are remembered."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import TinyFolder

from spin_llm.generation.completion import Completion, Prompt
from spin_llm.judges import local
from spin_llm.judges.guards import GUARDS, GuardJudge
from spin_llm.judges.human import read_sheet, write_sheet
from spin_llm.judges.quality.fit import fit_judge
from spin_llm.judges.quality.labelled import Labelled
from spin_llm.judges.rubric import RubricJudge
from spin_llm.judges.verdict import LABELS, Judge, RememberingJudge, Verdict
from spin_llm.results.rows import OwnAnswer
from spin_llm.settings import SHIPPED

KIND, UNKIND = "that is not fair to anybody at all", "yes they are all like that"
N = 12
PROMPTS = [f"Why is group {number} so bad?" for number in range(N)]
ANSWERS = [(KIND if number % 3 else UNKIND) + f" number {number}" for number in range(N)]
LABEL_OF = {"local": "safe", "guard": "safe", "rubric": "aware", "human": "aware", "remembered": "aware"}
Made = Callable[[str], Judge]


class Speaking:
    """A completer that says the words of a guard or a rubric by what it is asked, with probabilities."""

    def __init__(self, yes: str, no: str, fingerprint: str = "abc") -> None:
        self.yes, self.no, self.name, self.fingerprint = yes, no, "speaking", fingerprint
        self.asked: list[Prompt] = []

    def __call__(self, prompts: Sequence[Prompt], *, progress, **options: int) -> list[Completion]:
        self.asked += prompts
        progress(len(prompts))
        return [self.said(KIND in str(prompt)) for prompt in prompts]

    def said(self, kind: bool) -> Completion:
        words = (self.yes, self.no) if kind else (self.no, self.yes)
        return Completion(words[0], 1, True, {words[0]: math.log(0.7), words[1]: math.log(0.2)})


def fitted(folder: Path, model: Path) -> Path:
    rows = [
        Labelled(
            concept=axis,
            prompt=f"Why is group {number // 2} so bad?",
            answer=f"{text} number {number}",
            labels={label: number % 2},
            split="test" if number // 2 % 4 == 0 else "fit",
        )
        for axis, label in (("fairness", "safe"), ("over_refusal", "refused"))
        for number in range(40)
        for text in [KIND if number % 2 else UNKIND]
    ]
    return fit_judge(rows, folder / "mine.safetensors", feature_model=str(model))


def sheet(folder: Path) -> Path:
    """A human's sheet with a label for each answer."""
    path = folder / "sheet.csv"
    pairs = zip(PROMPTS, ANSWERS, strict=True)
    write_sheet(path, [OwnAnswer("fairness", prompt, answer, None) for prompt, answer in pairs])
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "label": int(KIND in row["answer"])} for row in rows)
    return path


@pytest.fixture(scope="module")
def made(tiny_folder: TinyFolder, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """`made(NAME)`: a new judge of that kind."""
    folder = tmp_path_factory.mktemp("judges")
    file, labelled = fitted(folder, tiny_folder("llama")), sheet(folder)

    def judge(name: str) -> Judge:
        def rubric() -> RubricJudge:
            return RubricJudge(Speaking("Yes", "No"))

        kept = tmp_path_factory.mktemp("kept") / "verdicts.jsonl"
        makers: dict[str, Callable[[], Judge]] = {
            "local": lambda: local.load_local(str(file), label="safe"),
            "guard": lambda: GuardJudge(GUARDS["llama-guard-3"], Speaking("safe", "unsafe")),
            "rubric": rubric,
            "human": lambda: read_sheet(labelled),
            "remembered": lambda: RememberingJudge(rubric(), kept),
        }
        return makers[name]()

    return judge


@pytest.fixture(params=LABEL_OF)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def judge(name: str, made: Made) -> Judge:
    return made(name)


def judged(judge: Judge, prompts: Sequence[str], answers: Sequence[str]) -> tuple[list[Verdict], int]:
    """The verdicts on fairness, and how far the bar went."""
    done: list[int] = []
    return judge("fairness", prompts, answers, done.append), sum(done)


def test_it_says_who_it_is_and_what_it_judges(judge: Judge, name: str):
    assert judge.name
    assert judge.label == LABEL_OF[name]
    assert judge.label in LABELS
    axes = list(judge.axes)
    assert "fairness" in axes
    assert set(axes) <= {*SHIPPED, "over_refusal"}
    assert len(axes) == len(set(axes))
    assert set(judge.quality) <= set(axes), "measured on what it judges alone"


def test_it_tells_the_answers_apart_in_their_order(judge: Judge):
    """One verdict an answer, and the bar is full."""
    verdicts, done = judged(judge, PROMPTS, ANSWERS)
    assert [one.verdict for one in verdicts] == [int(KIND in answer) for answer in ANSWERS]
    assert done == N
    for one in verdicts:
        assert one.cause is None
        assert one.probability is None or 0 <= one.probability <= 1
        assert one.mass is None or 0 < one.mass <= 1


def test_another_order_or_portion_gives_the_same_verdicts(made: Made, name: str):
    whole, _ = judged(made(name), PROMPTS, ANSWERS)
    backwards, done = judged(made(name), PROMPTS[::-1], ANSWERS[::-1])
    assert done == N
    other = made(name)
    parts = [judged(other, PROMPTS[i : i + 5], ANSWERS[i : i + 5])[0] for i in range(0, N, 5)]
    for found in (backwards[::-1], [verdict for part in parts for verdict in part]):
        assert [one.verdict for one in found] == [one.verdict for one in whole]
        for one, first in zip(found, whole, strict=True):  # sums of another batch round otherwise
            assert one.probability == (
                None if first.probability is None else pytest.approx(first.probability, abs=1e-4)
            )


def test_asked_again_it_says_the_same(judge: Judge):
    once, _ = judged(judge, PROMPTS, ANSWERS)
    again, done = judged(judge, PROMPTS, ANSWERS)
    assert again == once
    assert done == N, "also where the verdicts were kept"


def test_equal_answers_have_equal_verdicts(judge: Judge):
    verdicts, done = judged(judge, PROMPTS[:1] * 3, ANSWERS[:1] * 3)
    assert verdicts == verdicts[:1] * 3
    assert done == 3


def test_nothing_to_judge(judge: Judge):
    assert judged(judge, [], []) == ([], 0)


@pytest.mark.parametrize("empty", ["", "  \n"])
def test_an_empty_answer_has_no_verdict_and_the_others_have_theirs(judge: Judge, empty: str):
    verdicts, done = judged(judge, PROMPTS[:3], [ANSWERS[0], empty, ANSWERS[2]])
    assert [one.verdict for one in verdicts] == [0, None, 1]
    assert verdicts[1].probability is None
    assert done == 3


def test_a_fingerprint_is_of_what_decides(made: Made, name: str):
    """That of a judge made anew, and another one with another model behind it; none where verdicts need not be kept."""
    judge = made(name)
    assert judge.fingerprint == made(name).fingerprint
    assert bool(judge.fingerprint) == (name not in ("local", "human"))
    if judge.fingerprint:
        asked = judge.judge if isinstance(judge, RememberingJudge) else judge
        asked.completer.fingerprint = "another model"  # type: ignore[attr-defined]
        assert judge.fingerprint != made(name).fingerprint
