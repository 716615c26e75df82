"""The starter data: enough rows of every facet, nothing twice, no telephone number that could be somebody's."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib import resources
from math import ceil

import pytest

from spin_llm.data import load_pairs, load_questions

FACETS = {
    "fairness": frozenset(
        ["gender", "race", "age", "disability", "religion", "nationality", "orientation", "class", "appearance"]
    ),
    "privacy": frozenset(
        [
            "address",
            "phone",
            "identity",
            "health",
            "finance",
            "location",
            "workplace",
            "children",
            "accounts",
            "biometric",
        ]
    ),
    "truthfulness": frozenset(["misconception", "false_premise", "unknowable", "citation", "overconfidence"]),
    "helpfulness": frozenset(["writing", "planning", "explaining", "constraint", "practical"]),
}
# Least rows: pairs, pairs of a facet, questions, questions of a facet.
LEAST = {
    "fairness": (200, 20, 150, 15),
    "privacy": (200, 20, 150, 15),
    "truthfulness": (160, 32, 50, 10),
    "helpfulness": (160, 32, 50, 10),
}
KEYS = {
    "fairness": {"prompt", "aware", "unaware", "facet"},
    "privacy": {"prompt", "aware", "unaware", "facet"},
    "truthfulness": {"prompt", "aware", "unaware", "facet"},
    "helpfulness": {"prompt", "aware", "unaware", "facet"},
    "general": {"prompt", "response"},
    "fairness_questions": {"prompt", "facet"},
    "privacy_questions": {"prompt", "facet"},
    "truthfulness_questions": {"prompt", "facet"},
    "helpfulness_questions": {"prompt", "facet"},
    "over_refusal": {"prompt", "facet"},
}
PHONE = re.compile(
    r"(?<![\d.-])(?:(?:\+\d{1,3}[ .-]?)?\(?\d{2,5}\)?[ .-]\d{3}[ .-]\d{4}|\d{3}[ -]\d{4}|0\d{3,4} \d{6})(?![\d-])"
)
INVENTED_PHONE = re.compile(r"(?:.*\D)?555-01\d\d")


def rows_of(stem: str) -> list[dict[str, str]]:
    text = resources.files("spin_llm.data").joinpath("starter", f"{stem}.jsonl").read_bytes().decode("utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


@pytest.fixture(scope="module")
def starter() -> dict[str, list[dict[str, str]]]:
    return {stem: rows_of(stem) for stem in KEYS}


@pytest.mark.parametrize("stem", KEYS)
def test_rows_have_exactly_their_keys_and_say_something(starter, stem):
    for row in starter[stem]:
        assert set(row) == KEYS[stem]
        assert all(isinstance(text, str) and text == text.strip() != "" for text in row.values())


@pytest.mark.parametrize("concept", FACETS)
def test_every_facet_has_enough_pairs_and_questions(starter, concept):
    pairs, pairs_each, questions, questions_each = LEAST[concept]
    for stem, total, each in ((concept, pairs, pairs_each), (f"{concept}_questions", questions, questions_each)):
        counts = Counter(row["facet"] for row in starter[stem])
        assert set(counts) == FACETS[concept]
        assert counts.total() >= total
        assert min(counts.values()) >= each, counts


def test_enough_general_pairs_and_benign_look_alikes(starter):
    assert len(starter["general"]) >= 200
    assert len(starter["over_refusal"]) >= 100


def test_the_loader_reads_every_file(starter):
    for concept in FACETS:
        for responses in ("aware", "unaware"):
            pairs = load_pairs("starter", concept=concept, responses=responses).pairs
            assert [(pair.prompt, pair.response) for pair in pairs] == [
                (row["prompt"], row[responses]) for row in starter[concept]
            ]
        questions = load_questions("starter", concept=concept).questions
        assert [question.facet for question in questions] == [row["facet"] for row in starter[f"{concept}_questions"]]
    assert len(load_pairs("starter").pairs) == len(load_pairs("starter", concept="general").pairs)
    assert len(load_questions("starter", concept="over_refusal").questions) == len(starter["over_refusal"])


def grams(text: str) -> set[str]:
    text = " ".join(text.lower().split())
    return {text[start : start + 5] for start in range(max(1, len(text) - 4))}


def near_duplicates(texts: list[str], limit: float = 0.6) -> list[tuple[str, str]]:
    """Pairs of texts whose sets of 5-grams have a Jaccard index above `limit`.

    Two such sets share a gram among the rarest |set| - ceil(limit |set|) + 1 of each, so only those are indexed.
    """
    sets = [grams(text) for text in texts]
    frequency = Counter(gram for each in sets for gram in each)
    holders: dict[str, list[int]] = {}
    found = []
    for place, each in enumerate(sets):
        rarest = sorted(each, key=lambda gram: (frequency[gram], gram))[: len(each) - ceil(limit * len(each)) + 1]
        candidates = {other for gram in rarest for other in holders.get(gram, [])}
        found += [
            (texts[other], texts[place])
            for other in sorted(candidates)
            if len(each & sets[other]) > limit * len(each | sets[other])
        ]
        for gram in rarest:
            holders.setdefault(gram, []).append(place)
    return found


def test_near_duplicates_are_found():
    slow = (
        "the weather in the old town is fine",
        "The weather in the old town is fine!",
        "a tale about a small fox",
        "fox",
    )
    assert near_duplicates(list(slow)) == [slow[:2]]
    assert near_duplicates(["same", "same"]) == [("same", "same")]


def test_no_prompt_is_there_twice(starter):
    assert near_duplicates([row["prompt"] for rows in starter.values() for row in rows]) == []


def test_no_response_is_there_twice(starter):
    keys = ("aware", "unaware", "response")
    assert near_duplicates([row[key] for rows in starter.values() for row in rows for key in keys if key in row]) == []


@pytest.mark.parametrize("concept", FACETS)
def test_evaluation_prompts_do_not_open_as_scoring_prompts_do(starter, concept):
    def openings(stem: str) -> set[tuple[str, ...]]:
        return {tuple(re.findall(r"[\w']+", row["prompt"].lower())[:4]) for row in starter[stem]}

    assert openings(concept) & openings(f"{concept}_questions") == set()


@pytest.mark.parametrize("concept", FACETS)
def test_the_length_of_a_response_does_not_tell_its_kind(starter, concept):
    aware, unaware = ([len(row[key].split()) for row in starter[concept]] for key in ("aware", "unaware"))
    above = sum((one > other) + 0.5 * (one == other) for one in aware for other in unaware)
    assert 0.4 <= above / (len(aware) * len(unaware)) <= 0.61  # the AUC of the number of words


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("call 555-0142 or (303) 555-0199", 0),
        ("call 555-2142", 1),
        ("call 303-555-0199, not 303 867 5309", 1),
        ("+44 7700 900 1234", 1),
        ("07700 900123", 1),
        ("a year of 365.2422 days", 0),
        ("number 000-12-3456 on 2019-05-12, card 4000 1234 5678 0000", 0),
    ],
)
def test_telephone_numbers_are_recognised(text, numbers):
    assert len(real_phones(text)) == numbers


def real_phones(text: str) -> list[str]:
    return [match[0] for match in PHONE.finditer(text) if not INVENTED_PHONE.fullmatch(match[0])]


@pytest.mark.parametrize("stem", KEYS)
def test_telephone_numbers_are_invented(starter, stem):
    assert [found for row in starter[stem] for text in row.values() for found in real_phones(text)] == []
