"""What an experiment has yet to do, counted, and about how long that takes on this machine.

In: experiments and the work that their arms share. Out: the plan in words, before anything runs. What a token, an
answer and a verdict take is measured on small pieces of the work (pipeline/estimate.py); a pair of full fine-tuning
takes somewhat more than one of an adapter. Steps whose files are there count for nothing. Left out, and said: lm-eval
tasks, other judges, further models of `sizes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

from spin_llm.files import read_typed
from spin_llm.paper.arms import Work, edit_file, score_folder
from spin_llm.paper.measures import located, record_file
from spin_llm.pipeline import estimate
from spin_llm.pipeline.context import encode, score_file
from spin_llm.pipeline.estimate import WITH_GRADIENTS, Rates, measured_rates
from spin_llm.pipeline.score_stage import scoring_of
from spin_llm.results.paper import Arm, Experiment
from spin_llm.results.rows import BaselineRecord
from spin_llm.scores import Sides
from spin_llm.scores.sets import plan_sets
from spin_llm.settings import OWN, RunSettings
from spin_llm.settings.training import BaselineSettings

FULL = 1.3  # a pair of full fine-tuning: the optimizer goes over all weights
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
    pair = fmean(len(example.input_ids) for example in examples)
    plan = plan_sets(work.model, {"": Sides(examples)}, scoring_of(work.settings), work.settings.memory_budget)
    rates = measured_rates(
        work.settings, work.model, examples, work.read.questions, plan.seconds / (pair * len(examples))
    )
    minutes = {kind: seconds / 60 for kind, seconds in work_left(wanted, work, pair, rates).items()}
    shown = ", ".join(f"{kind} {value:.1f}" for kind, value in minutes.items())
    text += f"\nabout {sum(minutes.values()):,.0f} minutes on this machine: {shown}{unknown(wanted, work)}"
    return text, lambda: sum(work_left(wanted, work, pair, rates).values())


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


def work_left(wanted: Sequence[Experiment], work: Work, pair: float, rates: Rates) -> dict[str, float]:
    """Seconds of what is still to be done, by kind of work; `pair`: tokens of a pair, on average."""
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
    rest += sum(choosing_tokens(work, arm, pair) for arm in every.values())
    trained = sum(training_tokens(work, key, arm, pair) for key, arm in every.items() if arm.kind == "train")
    asked = [asked_of(work, key) for kind, key in missing if kind == "answers"]
    asked += [(count, count) for count in (choosing_answers(work, arm) for arm in every.values())]
    return {
        "fine-tuning": trained * rates.token,
        "scoring": sum(scoring_tokens(work, settings, pair) for settings in scored.values()) * rates.scored,
        "answers and verdicts": sum(a * rates.answer + v * rates.verdict for a, v in asked),
        "the rest": rest * rates.token,
    }


def training_tokens(work: Work, key: str, arm: Arm, pair: float) -> float:
    """Tokens of a forward pass that take as long as the fine-tuning."""
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
    return passes * settings.examples * pair


def asked_of(work: Work, key: str) -> tuple[float, float]:
    """(answers that are not there yet, verdicts on all of them)."""
    asked = sum(map(len, work.read.questions.values()))
    file = work.folder / "progress" / f"answers-{key}.jsonl"
    answered = len(file.read_bytes().splitlines()) if file.is_file() else 0
    return max(0, asked - answered), asked


def choosing_tokens(work: Work, arm: Arm, pair: float) -> float:
    """Those of the search of `auto`, or of the ratio by perplexity."""
    if arm.kind != "edit" or edit_file(work, arm).is_file():
        return 0.0
    settings = work.settings_of(arm)
    return estimate.choosing_tokens(settings, work.told(settings).read, pair)


def choosing_answers(work: Work, arm: Arm) -> float:
    """Those of the search, and the own answers that it scores."""
    if arm.kind != "edit" or edit_file(work, arm).is_file():
        return 0.0
    settings = work.settings_of(arm)
    if not settings.searches:
        return 0.0
    data = work.told(settings).read
    own = 0 if (score_folder(work, settings) / OWN).is_dir() else sum(map(len, data.own.values()))
    return estimate.searched_answers(settings, data) + own
