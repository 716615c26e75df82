"""How long it takes, in tokens of a forward pass.

In: a loaded model, a few examples, the work ahead. Out: seconds. A pass with gradients takes as long as three; a token
of an answer as long as four, a verdict of the local judge as long as 60 (measured in batches: docs/search.md).
Left out: what work there is (score_stage.py, paper/estimate.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch

from spin_llm.data import Example
from spin_llm.models import LoadedModel, Matrix, mlp_coverage, unknown_modules, unknown_text
from spin_llm.models.losses import response_losses
from spin_llm.pipeline.context import Run
from spin_llm.pipeline.inputs import RunData
from spin_llm.scores import Plan, accumulators, make_batches, make_plan, parse_bytes
from spin_llm.search.proxy import KL_PAIRS
from spin_llm.settings import RunSettings

WITH_GRADIENTS = 3  # forward passes
ANSWER_TOKEN, VERDICT = 4, 60  # tokens of a forward pass


def plan_sets(
    run: Run,
    matrices: Sequence[Matrix],
    aware: Mapping[str, Sequence[Example]],
    unaware: Mapping[str, Sequence[Example]],
) -> tuple[Plan, float]:
    """(one plan for all sets to be scored, the seconds that it takes, with what comes after it where an edit is
    searched), said before the work begins."""
    settings, loaded, say = run.settings, run.model, run.console.say
    if settings.target != "attention" and (coverage := mlp_coverage(loaded.model)) < 1:
        say(f"only {coverage:.0%} of the MLP weights are scored; the others are experts fused in another form")
    if unknown := unknown_modules(loaded.model):
        say(unknown_text(unknown))
    plan = make_plan(
        loaded,
        [batch for name in aware for batch in make_batches(aware[name], unaware[name], matrices=matrices)],
        matrices,
        accumulators(settings.wanted_statistics),
        statistics=len(settings.wanted_statistics),
        budget=parse_bytes(settings.memory_budget) if settings.memory_budget else None,
        checkpoints=True,
    )
    say(plan.text())
    if settings.searches:
        tokens = sum(len(example.input_ids) for part in (aware, unaware) for rows in part.values() for example in rows)
        seconds = expected(settings, run.inputs, plan.seconds, tokens)
        parts = ", ".join(f"{name} {value / 60:.1f}" for name, value in seconds.items())
        say(f"effort {settings.effort}: about {sum(seconds.values()) / 60:.0f} minutes ({parts})")
        return plan, sum(seconds.values())
    return plan, plan.seconds


def expected(settings: RunSettings, data: RunData, scoring: float, tokens: int) -> dict[str, float]:
    """The seconds that a run with a search will take by kind of work, from those of scoring."""
    forward = scoring / max(tokens, 1) / WITH_GRADIENTS
    scored = sum(map(len, (*data.concepts.values(), *data.unaware.values(), *data.protect.values())))
    reported = sum(map(len, data.questions.values())) * (2 + len(settings.wanted_controls))
    return {
        "scoring": scoring,
        "search": trial_tokens(settings, data, tokens / max(1, scored)) * forward,
        "answers and verdicts": answer_tokens(settings, reported + searched_answers(settings, data)) * forward,
    }


def trial_tokens(settings: RunSettings, data: RunData, pair: float) -> float:
    """Tokens that a search puts through the model to try edits on pairs of `pair` tokens."""
    pairs = 2 * settings.budget.pairs + KL_PAIRS + sum(len(kind) for kinds in data.contrasts.values() for kind in kinds)
    return settings.budget.trials * pairs * pair


def searched_answers(settings: RunSettings, data: RunData) -> float:
    """How many answers a search judges: the base's, those of the survivors, and of the pick."""
    return sum(map(len, data.search.values())) * (1.5 + 0.75 * settings.budget.survivors)


def answer_tokens(settings: RunSettings, answers: float, verdicts: float | None = None) -> float:
    """Tokens of a forward pass that take as long as so many answers and their verdicts, one each unless told."""
    return answers * ANSWER_TOKEN * settings.new_tokens + (answers if verdicts is None else verdicts) * VERDICT


PATIENCE = 0.5  # seconds; a pass that took longer is measurement enough


def seconds_per_token(loaded: LoadedModel, examples: Sequence[Example]) -> float:
    """Seconds that a token of a forward pass takes: a short example once unmeasured, since it loads kernels and
    weights, then again, then a few of middle length; what takes long is not followed by more."""
    ordered = sorted(examples, key=lambda example: len(example.input_ids))
    middle = len(ordered) // 2
    found = 0.0
    for number, batch in enumerate((ordered[:1], ordered[:1], ordered[middle : middle + 4])):
        start = time.perf_counter()
        with torch.inference_mode():
            response_losses(loaded, batch).tolist()
        seconds = time.perf_counter() - start
        found = seconds / (len(batch) * max(len(example.input_ids) for example in batch))
        if number and seconds > PATIENCE:
            break
    return found
