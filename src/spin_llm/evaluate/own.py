"""The model's own answers as the pairs that are scored: on-policy margins.

In: the unedited model, prompts of each concept, the judges. Out: per concept the prompts with the model's own answers,
aware ones and the others apart. For an answer y to a prompt, drawn from the model, and its verdict A(y) in {0, 1}, the
rate of awareness p = E[A] changes with the weights as

    grad p = E[A grad log pi(y)] = p (1 - p) (E[grad log pi | A = 1] - E[grad log pi | A = 0])

because E[grad log pi] = 0 (the score-function identity behind REINFORCE, Williams 1992). The bracket is the gradient of
the margin between these very answers, so that a weight's `margin` (scores/importance.py) is, up to the factor p (1 - p)
and the answers' length, the first-order change of the rate itself when the weight is suppressed. Margins between
answers that somebody else wrote are not: the model does not give them (docs/beyond.md). What is asked is the greedy
answer, which is what is evaluated; the identity holds for drawn ones. An answer counts as aware when it is judged aware
and coherent. Left out: prompts that the run asks again (pipeline/inputs.py), which are never among these.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from spin_llm.data import Pair, Question
from spin_llm.errors import SpinError
from spin_llm.evaluate.answers import Evaluation, answers, judge_rows
from spin_llm.files import read_typed, read_typed_lines, write_json, write_jsonl
from spin_llm.judges.verdict import COHERENCE, Judge, remembering
from spin_llm.models import LoadedModel
from spin_llm.progress import SILENT, Console
from spin_llm.results.measured import BASE
from spin_llm.results.rows import OwnAnswer

PROMPTS_PER_EXAMPLE = 4  # prompts asked for each example wanted: the rarer kind of answer is often one in four
PROBE = 48  # prompts of each concept that say whether it is worth asking the others
LEAST_SCORED, LEAST_HELD_BACK = 24, 8  # of each kind
LEAST_PROMPTS = 2 * (LEAST_SCORED + LEAST_HELD_BACK)
HELD_BACK_TIMES = 4  # they cost nothing but their forward passes, and a margin over few answers says little


@dataclass(frozen=True)
class OwnPairs:
    """A concept's prompts with the model's own answers, by verdict."""

    aware: tuple[Pair, ...]
    unaware: tuple[Pair, ...]

    @property
    def rarer(self) -> int:
        return min(len(self.aware), len(self.unaware))

    def divided(self, examples: int, held_back: int) -> tuple[tuple[Pair, ...], ...]:
        """(aware, unaware, held-back aware, held-back unaware). Of each kind a quarter, at most `held_back`, is kept
        from scoring first; of the others at most `examples` are scored; what is left is held back too, at most
        HELD_BACK_TIMES `held_back` in all."""
        parts = []
        for kind in (self.aware, self.unaware):
            least = max(min(held_back, len(kind) // 4), LEAST_HELD_BACK)
            rest = kind[:least] + kind[least + examples :]
            parts.append((kind[least : least + examples], rest[: HELD_BACK_TIMES * held_back]))
        scored, held = zip(*parts, strict=True)
        return *scored, *held


def own_pairs(
    loaded: LoadedModel,
    prompts: Mapping[str, Sequence[Question]],
    judges: tuple[Judge, Judge | None],
    folder: Path,
    *,
    asked: Evaluation,
    told: Mapping[str, object],
    console: Console = SILENT,
) -> dict[str, OwnPairs]:
    """Own pairs by concept. A first PROBE prompts of each concept show whether it is worth asking the others.

    `asked` gives template, new tokens and seed. What is done is kept in `folder` (answers.jsonl) beside what decides it
    (`told`), and read when it is there. Raises SpinError when that differs, and when there are too few of a kind.
    """
    path = folder / "told.json"
    if not path.is_file():  # other ranks read what the first one wrote
        write_json(path, dict(told))
    elif read_typed(path, dict[str, object]) != told:
        raise SpinError(
            f"{folder} holds answers that were made or judged in another way.",
            cause="another --judge or --own-judge, --new-tokens or other questions were given since the scores began.",
            change="give the same options again, or start anew with --overwrite.",
        )
    kept = folder / "answers.jsonl"
    if kept.is_file():
        return divide(read_typed_lines(kept, OwnAnswer, change="start anew with --overwrite."), prompts)
    refuse_too_few(too_few_prompts(prompts))
    rows: list[OwnAnswer] = []
    pairs: dict[str, OwnPairs] = {}
    for part, these in (("probe", slice(PROBE)), ("rest", slice(PROBE, None))):
        wanted = {name: tuple(asks[these]) for name, asks in prompts.items() if asks[these]}
        rows += judged_answers(loaded, wanted, judges, folder / part, asked, console) if wanted else []
        pairs = divide(rows, prompts)
        refuse_too_few(too_few(pairs, prompts if part == "probe" else {}))
    write_jsonl(kept, map(vars, rows))
    for part in ("probe", "rest"):
        shutil.rmtree(folder / part, ignore_errors=True)
    for name, own in pairs.items():
        console.say(f"{name}: {len(own.aware)} own answers are aware and coherent, {len(own.unaware)} are not")
    return pairs


def refuse_too_few(why: str) -> None:
    """SpinError when there is a reason."""
    if why:
        raise SpinError(
            f"The model's own answers cannot be scored: {why}.",
            cause="few prompts; the model answers nearly all of them in one way, or the judge says so; or it has no "
            "verdict on them (a human's sheet of other answers).",
            change="give more or other prompts with --concept, or leave out --responses own.",
        )


def judged_answers(
    loaded: LoadedModel,
    prompts: Mapping[str, Sequence[Question]],
    judges: tuple[Judge, Judge | None],
    folder: Path,
    asked: Evaluation,
    console: Console,
) -> list[OwnAnswer]:
    """One row per prompt: whether its answer is aware and coherent (None: a verdict is lacking)."""
    part = replace(asked, questions=prompts)
    rows = answers(BASE, lambda: nullcontext(loaded), part, folder, console=console)
    judge, coherence = judges
    judged = judge_rows(remembering(judge, folder / "judged.jsonl"), rows, coherence=coherence, console=console)
    verdicts = {(row.id, row.axis): row.verdict for row in judged}
    found = []
    for row in rows:
        said = (verdicts.get((row.id, row.axis)), verdicts.get((row.id, COHERENCE), 1))
        found.append(OwnAnswer(row.axis, row.prompt, row.answer, None if None in said else said == (1, 1)))
    if lacking := sum(row.aware is None for row in found):
        console.say(f"{lacking} of {len(found)} own answers have no verdict: they are not scored")
    return found


def divide(rows: Sequence[OwnAnswer], prompts: Mapping[str, Sequence[Question]]) -> dict[str, OwnPairs]:
    """Own pairs by concept from judged rows; answers without text or without a verdict belong to neither kind."""
    turns = {question.prompt: question.turns for asked in prompts.values() for question in asked}
    kinds: dict[tuple[str, bool | None], list[Pair]] = {}
    for row in rows:
        if row.answer.strip():
            pair = Pair(row.prompt, row.answer, turns=turns.get(row.prompt, ()))
            kinds.setdefault((row.concept, row.aware), []).append(pair)
    return {name: OwnPairs(*(tuple(kinds.get((name, kind), ())) for kind in (True, False))) for name in prompts}


def too_few_prompts(prompts: Mapping[str, Sequence[Question]]) -> str:
    """Why these prompts are too few however they are answered; "" when they are not."""
    short = [f"{len(asks)} of {name}" for name, asks in prompts.items() if len(asks) < LEAST_PROMPTS]
    return f"there are {' and '.join(short)} prompts, and {LEAST_PROMPTS} are the least" if short else ""


def too_few(pairs: Mapping[str, OwnPairs], prompts: Mapping[str, Sequence[Question]]) -> str:
    """Why these pairs are too few, "" when they are not. With `prompts` the pairs are those of a probe, and twice their
    share of all prompts must be enough."""
    needed = LEAST_SCORED + LEAST_HELD_BACK
    for name, part in pairs.items():
        asked = len(part.aware) + len(part.unaware)
        total = len(prompts.get(name, ()))
        expected = 2 * part.rarer * total / max(asked, 1) if total > asked else part.rarer
        if expected < needed:
            return (
                f"of {asked} own answers to prompts of {name} {len(part.aware)} were aware and coherent and "
                f"{len(part.unaware)} not, and {needed} of each kind are needed"
            )
    return ""
