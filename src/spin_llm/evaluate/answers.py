"""A model's answers to the questions, resumable.

In: a view of a model (or of one behind a URL), questions by axis. Out: rows of generations.jsonl; batches that were
done before a kill are taken from `progress/`. Left out: judging (verdicts.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spin_llm.data import Example, Question, Rendering
from spin_llm.evaluate.likelihood import View
from spin_llm.files import read_progress, sync_append
from spin_llm.generation.batches import NEW_TOKENS, generate
from spin_llm.generation.batches import Answer as Made
from spin_llm.generation.server import ServerCompleter, server_answers
from spin_llm.judges.quality.reading import Asked
from spin_llm.progress import SILENT, Console
from spin_llm.results.rows import Answer

Served = Callable[[], AbstractContextManager[ServerCompleter]]  # a view of a model behind a URL


@dataclass(frozen=True)
class Evaluation:
    """What to measure and with what: `questions` by axis, encoded `general` pairs, and how answers are made and
    judged."""

    questions: Mapping[str, Sequence[Question]]
    general: Sequence[Example]
    template: str | Rendering
    new_tokens: int = NEW_TOKENS
    seed: int = 0
    asked: Asked = field(default_factory=Asked)  # whose answers these are, for the judge's quality
    thinking_tokens: int = 0


def answers(
    name: str, view: View | Served, evaluation: Evaluation, folder: Path, *, console: Console = SILENT
) -> list[Answer]:
    """One row per question of the model `name`, in the questions' order; batches done before a kill are not run
    again."""
    asked = [
        (axis, number, q) for axis, questions in evaluation.questions.items() for number, q in enumerate(questions)
    ]
    done_file = folder / "progress" / f"answers-{name}.jsonl"
    done_file.parent.mkdir(parents=True, exist_ok=True)
    done = {answer.index: answer for answer in read_progress(done_file, Made)}
    with console.bar(f"answers, {name}", len(asked)) as advance, view() as loaded:
        advance(len(done))
        made: Any = server_answers if isinstance(loaded, ServerCompleter) else generate
        for batch in made(
            loaded,
            [question.asked for _, _, question in asked],
            template=evaluation.template,
            new_tokens=evaluation.new_tokens,
            thinking_tokens=evaluation.thinking_tokens,
            skip=frozenset(done),
        ):
            sync_append(done_file, map(vars, batch))
            done.update((answer.index, answer) for answer in batch)
            advance(len(batch))
        for remark in loaded.remarks() if isinstance(loaded, ServerCompleter) else ():
            console.say(remark)
    return [
        Answer(
            id=f"{axis}-{number:04d}",
            axis=axis,
            facet=question.facet,
            prompt=question.prompt,
            model=name,
            **{key: value for key, value in vars(done[index]).items() if key != "index"},
        )
        for index, (axis, number, question) in enumerate(asked)
    ]
