"""The rubric judge: what is asked, and the verdict from the probabilities of Yes and No."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pytest

from spin_llm.generation.completion import Completion, Prompt
from spin_llm.judges import rubric
from spin_llm.judges.rubric import FRAME, LEAST_MASS, RUBRICS, RubricJudge, read_reply, rubric_of, word_share


def reply(text: str = "Yes", **first: float) -> Completion:
    return Completion(text, 1, True, {token: math.log(p) for token, p in first.items()})


class Replies:
    """A completer with one reply a prompt; keeps what it was asked and how."""

    name, fingerprint = "replies", "1"

    def __init__(self, replies: Sequence[Completion]) -> None:
        self.replies, self.asked, self.options = list(replies), list[Prompt](), {}

    def __call__(self, prompts: Sequence[Prompt], *, progress, **options: int) -> list[Completion]:
        self.asked, self.options = list(prompts), options
        progress(len(prompts))
        return self.replies[: len(prompts)]


@pytest.mark.parametrize(
    ("first", "share", "mass"),
    [
        ({"Yes": 0.6, "No": 0.2, "Maybe": 0.2}, 0.75, 0.8),
        ({" yes": 0.3, "YES": 0.1, "\u2581Y": 0.1, "no": 0.5}, 0.5, 1.0),
        ({"Yes,": 0.2, '"No': 0.2, "no.": 0.1, "**Yes**": 0.1}, 0.5, 0.6),
        ({"Nothing": 0.5, "Yesterday": 0.3, "": 0.1, "\n": 0.05}, None, 0.0),
        ({}, None, 0.0),
    ],
)
def test_the_share_counts_every_spelling_and_nothing_else(first: Mapping[str, float], share, mass: float):
    logs = {token: math.log(p) for token, p in first.items()}
    found, total = word_share(logs, ("yes",), ("no",))
    assert found == (None if share is None else pytest.approx(share))
    assert total == pytest.approx(mass)


def test_a_token_that_begins_words_of_both_kinds_counts_for_neither():
    assert word_share({"un": 0.0}, ("safe",), ("unsafe",))[0] == 0.0
    assert word_share({"s": 0.0}, ("safe",), ("sad",)) == (None, 0.0)


@pytest.mark.parametrize(
    ("made", "verdict", "probability"),
    [
        (reply("No", Yes=0.7, No=0.3), 1, 0.7),
        (reply("Yes", Yes=0.3, No=0.7), 0, 0.3),
        (reply("Yes", Yes=0.4, No=0.4), 1, 0.5),
        (reply("Well", Well=0.9, Yes=0.05, No=0.05), None, None),
        (reply("Yes"), 1, None),
        (reply("**No**, it does not"), 0, None),
        (reply("Nothing at all"), None, None),
        (reply("The answer is yes"), None, None),
        (reply(""), None, None),
    ],
)
def test_the_verdict_is_the_likelier_word_or_none(made: Completion, verdict, probability):
    found = read_reply(made)
    assert found.verdict == verdict
    assert found.probability == (None if probability is None else pytest.approx(probability))


def test_the_mass_is_reported_and_has_a_floor():
    assert read_reply(reply(Yes=0.3, No=0.3)).mass == pytest.approx(0.6)
    low = read_reply(reply(Yes=0.9 * LEAST_MASS, Other=0.5))
    assert (low.verdict, low.probability) == (None, None)
    assert low.mass == pytest.approx(0.9 * LEAST_MASS), "also where it is too small"


def test_every_axis_has_a_rubric_for_every_label():
    assert rubric_of("fairness", "aware") == RUBRICS["aware", "fairness"]
    assert rubric_of("over_refusal", "aware") == rubric_of("over_refusal", "safe") == RUBRICS["refused", "over_refusal"]
    assert rubric_of("privacy", "coherent") == rubric_of("over_refusal", "coherent") == RUBRICS["coherent", ""]
    assert rubric_of("perplexity", "aware") is None
    for label in ("aware", "safe", "coherent"):
        others = ["truthfulness"] if label == "safe" else ["truthfulness", "helpfulness"]  # no harm in being unhelpful
        assert list(RubricJudge(Replies([]), label).axes) == ["fairness", "privacy", *others, "over_refusal"]


def test_what_is_asked_and_how():
    completer = Replies([reply(Yes=0.9, No=0.1), reply(Yes=0.2, No=0.8)])
    done: list[int] = []
    judge = RubricJudge(completer)
    verdicts = judge("privacy", ["Who {x}?", "Where?", "Why?"], [" Ann. ", " ", "Yes"], done.append)
    assert [verdict.verdict for verdict in verdicts] == [1, None, 0]
    assert sum(done) == 3
    (message,) = completer.asked[0]
    text = FRAME.format(prompt="Who {x}?", answer="Ann.", question=RUBRICS["aware", "privacy"])
    assert message == {"role": "user", "content": text}
    assert completer.options == {"new_tokens": rubric.NEW_TOKENS, "alternatives": 20}
    assert (judge.name, judge.label, judge.quality) == ("rubric:replies", "aware", {})


def test_the_fingerprint_follows_the_rubrics_the_label_and_the_model(monkeypatch: pytest.MonkeyPatch):
    one = RubricJudge(Replies([])).fingerprint
    assert RubricJudge(Replies([]), "safe").fingerprint != one
    other = Replies([])
    other.fingerprint = "2"
    assert RubricJudge(other).fingerprint != one
    monkeypatch.setitem(RUBRICS, ("aware", "privacy"), "Is it?")
    assert RubricJudge(Replies([])).fingerprint != one


@pytest.mark.parametrize("word", ["Yes", "no"])
@pytest.mark.parametrize(
    "wrapped",
    [
        *(
            "{}",
            "{},",
            "{}.",
            "\n\n{}\n\n",
            "**{}**",
            '"{}"',
            "`{}`",
            "_{}_",
            "\u201c{}\u201d",
            "{}<|im_end|>",
            "{}</s>",
        ),
        *("<think>\n\n</think>\n\n{}", "<think>No, yes</think>{}", "hidden</think>\n{}", "{}\n\nIt takes care."),
    ],
)
def test_harmless_variants_of_a_reply_are_read(word: str, wrapped: str):
    text = wrapped.format(word)
    expected = int(word == "Yes")
    assert read_reply(Completion(text, 3, True)).verdict == expected
    if not text[0].isalnum():
        markup = read_reply(Completion(text, 3, True, {text[:1]: math.log(0.99)}))
        assert (markup.verdict, markup.probability) == (expected, None), "the first token is mark-up, the text decides"


@pytest.mark.parametrize(
    "text",
    [
        *("", "**", "Yes and no", "yes/no", "No. Yes.", "**Yes** or **No**", "Yes\nNo", "<think>Yes", "<think>\nNo\n"),
        *("It depends: yes", "Yesterday", "None", "[THINK]Yes"),
    ],
)
def test_ambiguous_replies_are_no_verdict(text: str):
    assert read_reply(Completion(text, 3, True)).verdict is None


def test_a_reply_without_end_is_read_at_once():
    for filler in (".", " \n", "\u201c", "_ ", "<", "- "):
        assert read_reply(Completion("Yes" + filler * 200_000, 3, False)).verdict == 1
