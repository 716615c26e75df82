"""About how long a run takes, found out on small real pieces of its work before it begins.

In: a run's settings and data, its loaded model, examples. Out: what a token of a forward pass, a scored one, an answer
and a verdict take on this machine as busy as it is (`Rates`), and by them the seconds of a run by kind of work. Left
out, and said: lm-eval tasks, resamples, judges but the local one; what experiments have yet to do (paper/estimate.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from spin_llm.data import Example, Question, render_prompt, rendering_of
from spin_llm.generation.batches import BATCH_PROMPTS
from spin_llm.generation.decoding import STRIDE, decode
from spin_llm.models import LoadedModel
from spin_llm.models.losses import response_losses
from spin_llm.pipeline.inputs import RunData
from spin_llm.progress import Pace
from spin_llm.search.trials import BATCH_TOKENS, KL_PAIRS
from spin_llm.settings import RunSettings

WITH_GRADIENTS = 3  # forward passes that one with gradients takes as long as
VERDICT = 60 * 135e6  # tokens of a forward pass, times weights, of a verdict of the local judge (docs/search.md)
TRIED = (2, 12)  # prompts that are answered to know how long that takes
READ = (1, 4, 16)  # examples that are read for it
RATIOS_TRIED = 6


@dataclass(frozen=True)
class Rates:
    """Seconds of a token that is scored, forwards and backwards, of one of a forward pass alone, of an answer, and of a
    verdict."""

    scored: float
    token: float
    answer: float
    verdict: float


def measured_rates(
    settings: RunSettings,
    loaded: LoadedModel,
    examples: Sequence[Example],
    questions: Mapping[str, Sequence[Question]],
    scored: float | None = None,
) -> Rates:
    """The rates of batches of the size that a run has; `scored` is known where scoring is planned."""
    by_length = sorted(examples, key=lambda example: len(example.input_ids))

    def read(some: Sequence[Example]) -> None:
        with torch.inference_mode():
            response_losses(loaded, some).tolist()

    def middle(count: int) -> tuple[int, Sequence[Example]]:
        some = by_length[max(0, (len(by_length) - count) // 2) :][:count]
        return len(some) * max(len(example.input_ids) for example in some), some

    whole = min(BATCH_TOKENS, sum(len(example.input_ids) for example in examples))
    token = Pace.of(read, map(middle, READ))(whole) / whole
    weights = sum(parameter.numel() for parameter in loaded.model.parameters())
    verdict = VERDICT / weights * token
    answer = seconds_of_answer(settings, loaded, [one for asked in questions.values() for one in asked])
    return Rates(WITH_GRADIENTS * token if scored is None else scored, token, answer, verdict)


def seconds_of_answer(settings: RunSettings, loaded: LoadedModel, questions: Sequence[Question]) -> float:
    """Seconds of an answer of full length in a batch of these questions: prompts of middle length are read and answered
    by one token, then by more, a few prompts and then more of them."""
    if not questions:
        return 0.0
    prompts = [render_prompt(loaded.tokenizer, one.asked, rendering_of(settings)) for one in questions]
    prompts = sorted(prompts, key=len)[len(prompts) // 2 :] * max(TRIED)
    most = settings.new_tokens + (settings.thinking_tokens or 0)
    few, more = (
        Pace.of(
            lambda some, tokens=tokens: decode(loaded, some, tokens, ()),  # type: ignore[misc]
            [(count, prompts[:count]) for count in TRIED],
        )
        for tokens in (1, 1 + STRIDE)
    )
    rows = min(BATCH_PROMPTS, len(questions))
    step = max(0.0, more(rows) - few(rows)) / STRIDE
    return (few(rows) + (most - 1) * step) / rows


def expected(settings: RunSettings, data: RunData, rates: Rates, scoring: float, pair: float) -> dict[str, float]:
    """The seconds of a run by kind of work, of which those of scoring are planned; a pair has `pair` tokens."""
    edits = 1 + len(settings.wanted_controls)
    answers: float = sum(map(len, data.questions.values())) * (1 + edits)
    if settings.searches:
        answers += searched_answers(settings, data)
    return {
        "scoring": scoring,
        "search": choosing_tokens(settings, data, pair) * rates.token,
        "answers": answers * rates.answer,
        "verdicts": answers * rates.verdict if settings.judge == "local" else 0.0,
        "perplexity": edits * 2 * len(data.final) * pair * rates.token,
    }


def units(settings: RunSettings, data: RunData, rates: Rates, seconds: Mapping[str, float]) -> dict[str, float]:
    """Planned seconds of a unit by the first words of the bar that counts it."""
    trials = settings.budget.trials if settings.searches else RATIOS_TRIED
    return {
        "trying edits": seconds["search"] / trials,
        "choosing the ratio": seconds["search"] / trials,
        "answers": rates.answer,
        "judging": rates.verdict,
        "perplexity": seconds["perplexity"] / max(1, (1 + len(settings.wanted_controls)) * len(data.final)),
    }


def left_out(settings: RunSettings) -> str:
    """What `expected` leaves out, in words."""
    parts = ["lm-eval tasks"] if settings.capabilities else []
    parts += ["resamples"] if settings.resamples else []
    parts += [f"the verdicts of {settings.judge}"] if settings.judge != "local" else []
    return f"; not in it: {', '.join(parts)}" if parts else ""


def choosing_tokens(settings: RunSettings, data: RunData, pair: float) -> float:
    """Tokens that are put through the model to choose the edit: by a search's trials, or the ratio by perplexity."""
    if not settings.searches:
        return RATIOS_TRIED * len(data.choose) * pair if settings.ratio is None else 0.0
    general = min(len(data.choose), 2 * settings.budget.pairs)
    pairs = general + min(KL_PAIRS, general)
    pairs += sum(len(side) for sides in data.contrasts.values() for side in sides)
    return (1 + settings.budget.trials) * pairs * pair  # once as it was


def searched_answers(settings: RunSettings, data: RunData) -> float:
    """How many answers a search judges: half of the questions by the base and all survivors, half by the base and the
    better half of these."""
    return sum(map(len, data.search.values())) * (1 + 0.75 * settings.budget.survivors)
