"""Where a judge is read: the rule of judges/quality/reading.py, by answers of a family to questions of a source."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import transformers
from conftest import TinyFolder

from spin_llm.errors import SpinError
from spin_llm.evaluate.comparison import (
    BROKEN,
    INCOHERENT,
    NO_TEMPLATE,
    ONE_ANSWER,
    UNTUNED,
    warnings_of,
    why_unreadable,
)
from spin_llm.files import write_json, write_jsonl
from spin_llm.judges.local import load_local
from spin_llm.judges.named import load_judge as named_judge
from spin_llm.judges.quality.check import check_judges
from spin_llm.judges.quality.labelled import read_labelled
from spin_llm.judges.quality.reading import (
    NOT_MEASURED,
    Asked,
    asked_of,
    family_of,
    reading,
    source_of,
)
from spin_llm.models import load
from spin_llm.results.file import Warned, written
from spin_llm.results.judged import NOT_LIKE_THESE, NOT_MEASURABLE, JudgeQuality
from spin_llm.results.rows import JudgeHead
from spin_llm.stats import classification
from spin_llm.stats.classification import lower_bound, quality_of

GOOD = {"family": "fam", "questions": "salad", "auc": 0.9, "auc_bound": 0.8, "measurable": True}
HERE = Asked("fam", {"fairness": "salad", "privacy": "starter"})


class Known:
    """A judge of which this much is known."""

    def __init__(self, *entries: Any, human: bool = False):
        known = {"auc": None, "accuracy": None, "n": 9}
        self.quality = {"fairness": [JudgeQuality(**{**known, **entry}) for entry in entries]}
        self.human = human


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([GOOD], ""),
        ([], NOT_MEASURED),
        ([{**GOOD, "family": "other"}], NOT_LIKE_THESE),
        ([{**GOOD, "questions": "starter"}], NOT_LIKE_THESE),
        ([{**GOOD, "family": "", "questions": ""}], NOT_LIKE_THESE),
        ([{**GOOD, "family": "written", "questions": "starter", "given": True}], NOT_LIKE_THESE),
        ([{"auc": 0.92, "measurable": True}], NOT_LIKE_THESE),  # a judge of version 0.1
        ([{"auc": 0.92, "measurable": True, "given": True}], NOT_LIKE_THESE),  # a file of version 0.1
        ([{**GOOD, "family": "", "questions": "", "given": True}], ""),
        ([{**GOOD, "auc_bound": 0.64}], NOT_MEASURABLE),
        ([{**GOOD, "auc": 0.74}], NOT_MEASURABLE),
        ([{**GOOD, "measurable": False}], NOT_MEASURABLE),  # it had no verdict on many labelled answers
        ([{**GOOD, "auc_bound": None}], NOT_MEASURABLE),
        ([GOOD, {**GOOD, "auc_bound": 0.6}], NOT_MEASURABLE),  # the worse of two that apply
        ([{**GOOD, "auc_bound": 0.6}, {**GOOD, "given": True}], ""),  # the user's own comes first
    ],
)
def test_a_judge_is_read_where_it_was_measured_and_found_good(entries: list[Any], why: str):
    found = reading(Known(*entries), "fairness", HERE)
    assert found.why_not == why
    assert bool(found.quality) == (why in ("", NOT_MEASURABLE))
    assert reading(Known(*entries, human=True), "fairness", HERE).why_not == ""


def test_answers_of_nobody_known_are_like_none():
    unnamed = Known({**GOOD, "family": "", "questions": "salad"}, {**GOOD, "questions": ""})
    for asked in (Asked(), Asked("", {"fairness": "salad"}), Asked("fam", {})):
        assert reading(unnamed, "fairness", asked).why_not == NOT_LIKE_THESE
        assert reading(Known(GOOD), "fairness", asked).why_not == NOT_LIKE_THESE


def test_the_bound_is_never_above_the_bootstrap_s_and_wants_prompts():
    assert lower_bound(0.9, [0.7, 0.99], [1000, 1000]) == 0.7
    assert lower_bound(1.0, [1.0, 1.0], [5, 500]) < 0.65 < lower_bound(1.0, [1.0, 1.0], [10, 500])
    bounds = [lower_bound(0.85, [0.84, 0.9], [few, 400]) for few in (5, 10, 40, 400)]
    assert bounds == sorted(bounds)
    assert lower_bound(None, None, [3, 0]) is None
    assert lower_bound(0.9, [0.8, 1.0], [0, 9]) is None


def test_many_answers_to_few_prompts_are_few():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 200)
    score = y + rng.normal(0, 0.3, 400)
    few = quality_of(score, 0.5, y, np.array([f"{label}-{place % 3}" for place, label in enumerate(y)]))
    many = quality_of(score, 0.5, y, np.arange(400).astype(str))
    assert (few.prompts, few.measurable) == ((3, 3), False)
    assert (many.prompts, many.measurable) == ((200, 200), True)
    assert few.auc == many.auc > 0.95


def test_a_judge_worse_than_the_rule_hardly_ever_passes(monkeypatch: pytest.MonkeyPatch):
    """Judges of AUC 0.5 and 0.6, with ten positive prompts of a hundred: the bound of 0.65 and the AUC of 0.75."""
    monkeypatch.setattr(classification, "RESAMPLES", 200)
    rng = np.random.default_rng(1)
    y, prompts, passed = np.repeat([0, 1], [90, 10]), np.arange(100).astype(str), 0
    for _ in range(10):
        score = rng.normal(0, 1, 100) + y * rng.choice([0.0, 0.36])
        passed += quality_of(score, 0.5, y, prompts).measurable
    assert not passed


def test_a_family_is_what_descendants_share(tiny_folder: TinyFolder):
    folder = tiny_folder("llama")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    family = family_of(config, tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>", "[PAD]"]})
    tokenizer.add_tokens(["<think>"])
    config.hidden_size *= 2
    assert family_of(config, tokenizer) == family, "a larger one, with tokens of its own"
    assert family_of(transformers.AutoConfig.from_pretrained(tiny_folder("qwen2")), tokenizer) != family
    other = transformers.AutoTokenizer.from_pretrained(folder)
    other.add_tokens(["x"])
    vocabulary = other.get_vocab()
    other.get_vocab = lambda: {token + "~": place for token, place in vocabulary.items()}
    assert family_of(config, other) != family


def test_sources_by_name_and_hub_id_and_the_names_of_files():
    assert [source_of(text) for text in ("starter", "salad", "OpenSafetyLab/Salad-Data", "data/starter.csv")] == [
        *("starter", "salad", "salad", "starter.csv")
    ]


def test_models_of_two_families_have_none(tiny_folder: TinyFolder):
    one, same, other = (
        load(str(tiny_folder(name, seed=seed))) for name, seed in (("llama", 0), ("llama", 1), ("qwen2", 0))
    )
    questions = (("fairness", "starter"),)
    assert asked_of([one, same], questions).family.startswith("llama-")
    assert asked_of([one, other], questions) == Asked("", {"fairness": "starter"}, untuned=True)
    assert asked_of([], questions) == Asked("", {"fairness": "starter"})


def test_the_shipped_judge_where_its_labels_are():
    """Fairness is read nowhere: too few aware answers to show that the judge knows them (docs/judge.md)."""
    judge = load_local()
    family = next(entry.family for entry in judge.quality["privacy"] if entry.questions == "starter")
    for source, read in (("starter", {"privacy", "over_refusal"}), ("salad", {"privacy"}), ("mine.csv", set())):
        asked = Asked(family, dict.fromkeys(("fairness", "privacy", "over_refusal"), source))
        assert {axis for axis in asked.sources if not reading(judge, axis, asked).why_not} == read
        qwen = Asked("qwen2-0123456789ab", asked.sources)
        assert {reading(judge, axis, qwen).why_not for axis in asked.sources} == {NOT_LIKE_THESE}


def test_labels_say_whose_answers_they_are(tmp_path):
    rows = [
        {"concept": "privacy", "prompt": f"Where {n}?", "answer": "no" * (n % 2), "aware": n % 2}
        | ({"family": "fam", "questions": "salad"} if n < 4 else {"family": None})
        for n in range(6)
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    read = read_labelled(tmp_path / "rows.jsonl")
    assert [(row.family, row.questions) for row in read] == [("fam", "salad")] * 4 + [("", "")] * 2

    class Judge:
        name, label, axes, fingerprint = "fake", "aware", ("privacy",), ""

        def __call__(self, axis, prompts, answers, progress):
            from spin_llm.judges.verdict import Verdict

            return [Verdict(0.9 if answer else 0.1, int(bool(answer))) for answer in answers]

    found = check_judges({"local": Judge()}, read)
    groups = found.judges["local"]["privacy"].groups
    assert [(part.family, part.questions, part.n) for part in groups] == [("fam", "salad", 4), ("", "", 2)]
    write_json(tmp_path / "quality.json", written(found))
    given = named_judge("local", quality=str(tmp_path / "quality.json")).quality["privacy"]
    assert [entry.n for entry in given if entry.given] == [4, 2]


def test_a_head_of_version_0_1_still_loads_and_names_no_answers():
    old = JudgeQuality(auc=0.92, measurable=True, accuracy=0.9, n=90)
    assert JudgeHead("privacy", "aware", 0.0, 0.5, quality=old).known == [old]
    assert JudgeHead("privacy", "aware", 0.0, 0.5, measured=[]).known == []
    with pytest.raises(SpinError, match="no judge"):
        load_local("nowhere.safetensors")


LOOP = "the model is the model is the model is the model is the model is the model is"
SENSE = [f"I would rather not say where {name} lives." for name in "abcdefghij"]


@pytest.mark.parametrize(
    ("answers", "coherent", "untuned", "kinds"),
    [
        (SENSE, [1] * 10, False, []),
        (SENSE, [1] * 10, True, [NO_TEMPLATE]),
        ([LOOP] * 6 + SENSE[:4], [], False, [BROKEN]),
        (["no no no no no no"] * 2 + SENSE[:1], [], False, [BROKEN]),
        (["I'm sorry, but I can't assist with that."] * 9 + SENSE[:1], [], False, [ONE_ANSWER]),
        (["I'm sorry, but I can't assist with that."] * 6 + SENSE[:4], [], False, []),  # a model may refuse much
        (SENSE, [0] * 9 + [1], False, [BROKEN]),
        (SENSE, [0] * 5 + [1] * 5, False, []),
        (SENSE, [0, None, None], False, []),  # one verdict is not most answers
        (["", " "], [], False, []),
        ([], [], False, []),
    ],
)
def test_what_is_said_of_a_model_first(answers: list[str], coherent: list[Any], untuned: bool, kinds: list[str]):
    found = warnings_of(answers, coherent, untuned=untuned)
    assert [warning.kind for warning in found] == kinds


def test_a_model_that_does_not_answer_is_not_read():
    broken, untuned = ([Warned(kind, ".")] for kind in (BROKEN, NO_TEMPLATE))
    assert why_unreadable(broken, True) == INCOHERENT
    assert (why_unreadable(untuned, False), why_unreadable(untuned, True)) == (UNTUNED, "")
    assert why_unreadable([], False) == ""
