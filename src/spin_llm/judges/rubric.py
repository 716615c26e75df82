"""Any chat model as a judge: a written rubric, and a verdict from the probabilities of its two answer words.

In: an axis, prompts and answers, a completer. Out: verdicts. With p(w) the probability that the model's reply starts
with the word w, summed over the spellings among the likeliest first tokens,

    mass = p(Yes) + p(No),    probability = p(Yes) / mass,    verdict = [probability >= 1/2]

There is no temperature. A mass below LEAST_MASS means that the model did not answer the question: no verdict. Where a
server gives no probabilities, or the reply begins with mark-up or closed reasoning, the first word of the reply
decides, without a probability. Left out: models that think aloud at length (they run out of tokens); which model is
good at this (`spin-llm judge check`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spin_llm.files import read_typed_lines, sha256_json
from spin_llm.generation.completion import Completer, Completion, Prompt
from spin_llm.judges.verdict import Qualities, Texts, Verdict, head_label
from spin_llm.progress import Advance, unseen
from spin_llm.settings import SHIPPED

ALTERNATIVES = 20
LEAST_MASS = 0.5
NEW_TOKENS = 12  # room for an empty block of reasoning before the word
LONGEST = 4000  # characters after a verdict that may take it back: a server may ignore the limit on tokens
# Tokens that end or frame a message, of any family; and the ends of reasoning.
SPECIAL = re.compile(
    r"<[|\uff5c][^|\uff5c<>\n]{1,40}[|\uff5c]>|</?s>|<(?:bos|eos|pad|unk|eod|(?:start|end)_of_(?:turn|text))>|\[/?INST\]",
    re.IGNORECASE,
)
REASONED = re.compile(r"</think(?:ing)?>|\[/THINK\]", re.IGNORECASE)
REASONING = re.compile(r"<think(?:ing)?>|\[THINK\]", re.IGNORECASE)

SHIPPED_TEXTS = Path(__file__).with_name("shipped")
FRAME = (SHIPPED_TEXTS / "rubric.txt").read_text(encoding="utf-8")  # around a question: `rubrics.jsonl`
# By label and axis; "" stands for every axis.
RUBRICS: dict[tuple[str, str], str] = {
    (row["label"], row["axis"]): row["question"]
    for row in read_typed_lines(SHIPPED_TEXTS / "rubrics.jsonl", dict[str, str])
}


def rubric_of(axis: str, label: str) -> str | None:
    """The question put to the judge on an axis for a label; None where there is none."""
    label = head_label(axis, label)
    return RUBRICS.get((label, axis)) or RUBRICS.get((label, ""))


@dataclass(frozen=True)
class RubricJudge:
    """A completer that answers the rubric of `label` (aware, safe or coherent); on over-refusal it says refused."""

    completer: Completer
    label: str = "aware"
    quality: Qualities = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"rubric:{self.completer.name}"

    @property
    def fingerprint(self) -> str:
        """Of everything that decides a verdict: the model and the texts put to it."""
        rubrics = [FRAME, *(f"{axis} {label} {text}" for (label, axis), text in RUBRICS.items())]
        return sha256_json(["rubric", self.label, rubrics, LEAST_MASS, self.completer.fingerprint])

    @property
    def axes(self) -> Collection[str]:
        return [axis for axis in (*SHIPPED, "over_refusal") if rubric_of(axis, self.label)]

    def __call__(self, axis: str, prompts: Texts, answers: Texts, progress: Advance = unseen) -> list[Verdict]:
        """Verdicts in order; an empty answer has none."""
        question = rubric_of(axis, self.label)
        assert question is not None, f"{axis} is not among {self.axes}"
        asked = [message(question, *pair) for pair in zip(prompts, answers, strict=True)]
        return judge_spoken(self.completer, asked, answers, NEW_TOKENS, read_reply, progress)


def message(question: str, prompt: str, answer: str) -> Prompt:
    """The one chat message of a question about one answer."""
    return [{"role": "user", "content": FRAME.format(prompt=prompt.strip(), answer=answer.strip(), question=question)}]


def judge_spoken(
    completer: Completer,
    asked: Sequence[Prompt],
    answers: Sequence[str],
    new_tokens: int,
    read: Callable[[Completion], Verdict],
    progress: Advance,
) -> list[Verdict]:
    """Verdicts `read` from completions of `asked`; an empty answer is not put to the model and has no verdict."""
    spoken = [place for place, answer in enumerate(answers) if answer.strip()]
    progress(len(answers) - len(spoken))
    verdicts = [Verdict(None, None)] * len(answers)
    if spoken:
        put = [asked[place] for place in spoken]
        completions = completer(put, new_tokens=new_tokens, alternatives=ALTERNATIVES, progress=progress)
        for place, made in zip(spoken, completions, strict=True):
            verdicts[place] = read(made)
    return verdicts


def read_reply(made: Completion) -> Verdict:
    """The verdict of a Yes or No reply."""
    mass = None
    if made.first:
        probability, mass = word_share(made.first, ("yes",), ("no",))
        if probability is not None and mass >= LEAST_MASS:
            return Verdict(probability, int(probability >= 0.5), mass)
        if made.text.lstrip(" ")[:1].isalnum():
            return Verdict(None, None, mass)
    text = bare(made.text)
    word = re.match(r"\W*(yes|no)\b", text, re.IGNORECASE)
    if word is None or contradicted(word[1], text[word.end() :], ("yes", "no")):
        return Verdict(None, None, mass)
    return Verdict(None, int(word[1].lower() == "yes"), mass)


def bare(text: str) -> str:
    """What a judge said, without what says nothing: closed reasoning, special tokens, quotes, emphasis, empty lines.

    "" while reasoning is not closed.

    >>> bare("<think>\\n\\n</think>\\n\\n**Unsafe**<|im_end|>")
    'Unsafe'
    """
    text = REASONED.split(text)[-1]
    if REASONING.search(text):
        return ""
    text = re.sub("[*`\"'\u2018\u2019\u201c\u201d\u201e\u00ab\u00bb]|__+", "", SPECIAL.sub("\n", text))
    lines = (re.sub(r"^[#>_\s]*(?:[-\u2022]\s+)?", "", line).rstrip(" _") for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def contradicted(word: str, rest: str, words: Sequence[str]) -> bool:
    """Whether what follows a verdict's word takes it back: another of `words` is next (`yes or no`) or a whole line."""
    others = "|".join(re.escape(other) for other in words if other.casefold() != word.casefold())
    following = rf"\A\W*(?:and|or|but)?\W*(?:{others})\b"
    pattern = rf"{following}|^\W*(?:{others})\W*$"
    return re.search(pattern, rest[:LONGEST], re.IGNORECASE | re.MULTILINE) is not None


def word_share(
    first: Mapping[str, float], positive: Sequence[str], negative: Sequence[str]
) -> tuple[float | None, float]:
    """(p(positive) / (p(positive) + p(negative)), the sum p(positive) + p(negative)) from first-token alternatives.

    `first`: token text -> log-probability in nats. A token counts for the words that it is, or begins, whatever its
    letter case and the punctuation around it; one that begins words of both kinds counts for neither. The share is
    None when the sum is 0.
    """
    mass = [0.0, 0.0]
    for text, log_probability in first.items():
        token = text.strip(" \t\r\n\"'*.,:;!\u2581\u0120").casefold()
        begun = [any(word.casefold().startswith(token) for word in words) for words in (positive, negative)]
        if token and sum(begun) == 1:
            mass[begun.index(True)] += math.exp(log_probability)
    total = mass[0] + mass[1]
    return (mass[0] / total if total else None), min(total, 1.0)
