"""What an experiment has yet to do, counted, and about how long that takes on this machine.

In: experiments and the work that their arms share. Out: the plan in words, before anything runs. Work is counted in
tokens of a forward pass (pipeline/score_stage.py), and a few examples, timed on the loaded model, say what such a token
takes; a pair of full fine-tuning takes somewhat more than one of an adapter. Steps whose
files are there count for nothing. Left out, and said: lm-eval tasks, other judges, further models of `sizes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

from spin_llm.files import read_typed
from spin_llm.paper.arms import Work, edit_file, score_folder
from spin_llm.paper.measures import located, record_file
from spin_llm.pipeline.context import encode, score_file
from spin_llm.pipeline.score_stage import (
    WITH_GRADIENTS,
    answer_tokens,
    searched_answers,
    seconds_per_token,
    trial_tokens,
)
from spin_llm.results.paper import Arm, Experiment
from spin_llm.results.rows import BaselineRecord
from spin_llm.settings import OWN, SEARCHED, RunSettings
from spin_llm.settings.training import BaselineSettings

FULL = 1.3  # a pair of full fine-tuning: the optimizer goes over all weights
RATIOS_TRIED = 6
REPORTS = 6  # information: three pairings, before and after
SAMPLE = 32  # pairs of each set that are encoded to know how long they are


def planned(wanted: Sequence[Experiment], work: Work) -> tuple[str, Callable[[], float]]:
    """(how many models there are, how many are done, what the rest asks for, the minutes of that by kind unless all is
    done; the seconds that are planned for what is left, whenever it is asked)."""
    models = dict(arms_of(wanted, work))
    missing = {key: arm for key, arm in models.items() if not record_file(work, *key).is_file()}
    trained, edits = (sum(arm.kind == kind for arm in missing.values()) for kind in ("train", "edit"))
    asked = sum(map(len, work.read.questions.values()))
    text = (
        f"plan: {len(wanted)} experiments, {len(models)} models, {len(models) - len(missing)} of them done; to do: "
        f"{trained} to fine-tune, {edits} to edit, {sum(kind == 'answers' for kind, _ in missing)} to answer "
        f"{asked} questions"
    )
    if not missing:
        return text, lambda: 0.0
    data = work.fitted
    pairs = [pair for sets in (data.concepts, data.protect) for part in sets.values() for pair in part[:SAMPLE]]
    examples = encode(work.settings, work.model, pairs)
    second = seconds_per_token(work.model, examples)
    pair = fmean(len(example.input_ids) for example in examples)
    minutes = {kind: tokens * second / 60 for kind, tokens in work_left(wanted, work, pair).items()}
    shown = ", ".join(f"{kind} {value:.1f}" for kind, value in minutes.items())
    text += f"\nabout {sum(minutes.values()):,.0f} minutes on this machine: {shown}{unknown(wanted, work)}"
    return text, lambda: second * sum(work_left(wanted, work, pair).values())


def unknown(wanted: Sequence[Experiment], work: Work) -> str:
    """What the estimate leaves out, in words."""
    parts = ["lm-eval tasks"] if any(experiment.kind == "tasks" for experiment in wanted) else []
    parts += ["further models of sizes"] if any(experiment.name == "sizes" for experiment in wanted) else []
    parts += [f"the verdicts of {work.settings.judge}"] if work.settings.judge != "local" else []
    return f"; not in it: {', '.join(parts)}" if parts else ""


def arms_of(wanted: Sequence[Experiment], work: Work) -> Iterator[tuple[tuple[str, str], Arm]]:
    """((what is measured, the arm's key), arm); the base alone has nothing to measure but its answers."""
    for experiment in wanted:
        for arm in experiment.arms:
            if experiment.kind == "answers" or arm.kind != "base":
                yield (experiment.kind, work.key(arm)), arm


def work_left(wanted: Sequence[Experiment], work: Work, pair: float) -> dict[str, float]:
    """Tokens of a forward pass that are still to be computed, by kind of work; `pair`: tokens of a pair, on average."""
    missing = {key: arm for key, arm in arms_of(wanted, work) if not record_file(work, *key).is_file()}
    every = {work.key(arm): arm for arm in missing.values()}
    scored: dict[str, RunSettings] = {}
    for (kind, _), arm in missing.items():
        if arm.kind == "edit":
            for one in (arm, *(located(arm, work) if kind == "information" else ())):
                settings = work.settings_of(one)
                scored[score_folder(work, settings).name] = settings
    data = work.read
    rest = sum(2 * len(data.final) * pair for kind, _ in missing if kind == "answers")
    rest += sum(2 * REPORTS * work.settings.examples * pair for kind, _ in missing if kind == "information")
    rest += sum(4 * work.settings.budget.pairs * 2 * pair for kind, _ in missing if kind == "margins")
    return {
        "fine-tuning": sum(training_tokens(work, key, arm, pair) for key, arm in every.items() if arm.kind == "train"),
        "scoring": sum(scoring_tokens(work, settings, pair) for settings in scored.values()),
        "answers and verdicts": sum(asked_tokens(work, key) for kind, key in missing if kind == "answers"),
        "the rest": rest + sum(choosing_tokens(work, arm, pair) for arm in every.values()),
    }


def training_tokens(work: Work, key: str, arm: Arm, pair: float) -> float:
    record = work.folder / "trained" / key / "baseline.json"
    if record.is_file() and read_typed(record, BaselineRecord).result:
        return 0.0
    more = FULL if arm.options["method"] == "full" else 1.0
    return WITH_GRADIENTS * (work.epochs or BaselineSettings.epochs) * arm.options["examples"] * pair * more


def scoring_tokens(work: Work, settings: RunSettings, pair: float) -> float:
    folder, passes = score_folder(work, settings), 0
    for role, names in (("concepts", settings.concepts), ("protect", settings.protect)):
        both_kinds = role == "concepts" and "margin" in settings.wanted_statistics
        passes += sum(1 + both_kinds for name, _ in names if not score_file(folder, name).is_file())
    return WITH_GRADIENTS * passes * settings.examples * pair


def asked_tokens(work: Work, key: str) -> float:
    """Of all questions the verdicts, and of those that are not answered yet the answers."""
    asked = sum(map(len, work.read.questions.values()))
    file = work.folder / "progress" / f"answers-{key}.jsonl"
    answered = len(file.read_bytes().splitlines()) if file.is_file() else 0
    return answer_tokens(work.settings, max(0, asked - answered), asked)


def choosing_tokens(work: Work, arm: Arm, pair: float) -> float:
    """The search of `auto` (pipeline/score_stage.py: `expected`) and the own answers that it scores, or
    the ratio by perplexity."""
    if arm.kind != "edit" or edit_file(work, arm).is_file():
        return 0.0
    settings = work.settings_of(arm)
    data = work.told(settings).read
    if settings.rule != SEARCHED:
        return 0.0 if settings.ratio is not None else RATIOS_TRIED * len(data.choose) * pair
    answers = searched_answers(settings, data)
    if not (score_folder(work, settings) / OWN).is_dir():
        answers += sum(map(len, data.own.values()))
    return trial_tokens(settings, data, pair) + answer_tokens(settings, answers)
