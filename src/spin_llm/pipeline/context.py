"""What a run works with: its model, its data, its judges, scores and patch, each made once, when it is first asked for.

In: `RunSettings`, a folder, a console. Out: `Run`, which every stage is given. What several runs share (the arms of
the paper's experiments) is on a `Shelf`: files that were read, judges, models in use. Left out: writing scores and
patch, which a run reads (score_stage.py, select_stage.py), and how own answers become pairs (evaluate/own.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar
from weakref import WeakValueDictionary

from spin_llm.data import Example, Pair, Question, encode_all, rendering_of, rows_sha256
from spin_llm.data.examples import check_options
from spin_llm.data.rows import Row, read_rows
from spin_llm.errors import SpinError
from spin_llm.evaluate.answers import Evaluation
from spin_llm.evaluate.comparison import warn_untuned
from spin_llm.evaluate.own import own_pairs
from spin_llm.files import write_json
from spin_llm.generation.server import served
from spin_llm.judges.local import load_coherence_judge
from spin_llm.judges.named import load_judge, refuse_fingerprint
from spin_llm.judges.quality.reading import Asked, asked_of, reading
from spin_llm.judges.verdict import Judge
from spin_llm.models import Checkpoint, LoadedModel, checkpoint_of, load
from spin_llm.ownership import is_vacant
from spin_llm.patch.patch import Patch
from spin_llm.pipeline import resuming
from spin_llm.pipeline.folder import NOTHING, located, model_record, there
from spin_llm.pipeline.inputs import RunData, fitting, read_data, with_rule
from spin_llm.pipeline.resuming import Opened, own_patch
from spin_llm.progress import SILENT, Console
from spin_llm.records import PATCH, RECORD, Compared, ModelRecord, is_run, read_record
from spin_llm.scores import ScoreSet, load_scores
from spin_llm.settings import OWN, STAGES, RunSettings, scope_of

Made = TypeVar("Made")
Told = ParamSpec("Told")
UNMEASURED = "unmeasured.json"  # in the folder own/: where the judge that divided was not measured, and why
NOBODY = Asked()


class Shelf:
    """What is made once for all runs that share it; a model as long as one of them works with it."""

    def __init__(self) -> None:
        self._made: dict[Any, Any] = {}
        self.models: WeakValueDictionary[tuple[object, ...], LoadedModel] = WeakValueDictionary()

    def once(self, make: Callable[Told, Made], *args: Told.args, **options: Told.kwargs) -> Made:
        """What `make` makes of these arguments, made when it is first asked for."""
        key = (make, args, tuple(options.items()))
        if key not in self._made:
            self._made[key] = make(*args, **options)
        found: Made = self._made[key]
        return found

    def forget(self, *makers: Callable[..., object]) -> None:
        """Let go of what these made."""
        self._made = {key: made for key, made in self._made.items() if key[0] not in makers}

    def rows(self, path: Path) -> tuple[Row, ...]:
        """The rows of a data file."""
        return self.once(all_rows, path)


def all_rows(path: Path) -> tuple[Row, ...]:
    return tuple(read_rows(path))


@dataclass(eq=False)
class Run:
    """A run and what it works with. `settings` are final when its folder is opened (`opened`); `others`
    are models that are compared with its own; `scores_alone`: nothing is searched or evaluated, and what that would
    need is neither read nor checked."""

    settings: RunSettings
    folder: Path
    console: Console = SILENT
    shelf: Shelf = field(default_factory=Shelf, repr=False)
    others: tuple[LoadedModel, ...] = ()
    scores_alone: bool = False

    @classmethod
    def of(cls, settings: RunSettings | str, folder: str | Path, console: Console = SILENT) -> Run:
        """A run by its settings, or of a model with the command's defaults."""
        return cls(RunSettings(settings) if isinstance(settings, str) else settings, Path(folder), console)

    def told(self, settings: RunSettings, folder: Path | None = None) -> Self:
        """A run with other settings; what both have in common is not made again."""
        return replace(self, settings=settings, folder=folder or self.folder)

    def opened(
        self,
        model: Checkpoint | ModelRecord,
        *,
        stages: Sequence[str] = STAGES,
        overwrite: bool = False,
        compared: Compared = NOTHING,
    ) -> Opened:
        """What may be done with the folder, by a command that has a say in `stages`; settings of the others are the
        run's, and all are final then. `model` is a checkpoint, or what a server says of itself."""
        folder, say, begun = self.folder, self.console.say, is_run(self.folder)
        data = self.read.record(located(self.settings))
        if not begun and not is_vacant(folder):
            raise SpinError(
                f"The output {folder} exists and is not a run.", change="choose another folder with --output."
            )
        if overwrite or not begun:
            self.settings = resuming.with_date(self.settings)
            return Opened(folder, self.settings, None, "all" if begun else "", True, data, compared)
        before = read_record(folder)
        told = before.told(folder / RECORD)
        later = {name: getattr(told, name) for name in vars(told) if scope_of(name) in set(STAGES) - set(stages)}
        # a run of 0.1.0 has no date: that of the day
        now = self.settings = replace(self.settings, **{"date": self.settings.date or told.date, **later})
        changes = [*resuming.settings_changes(told, located(now), before.files)]
        changes += [*resuming.compared_changes(before.compared, compared)]
        changes += [*resuming.model_changes(before, model, self.console), *resuming.data_changes(before, data, told)]
        changes = [change for change in changes if change.stage in ("all", *stages)]
        changed = {change.stage for change in changes}
        stale = "all" if "all" in changed else min(changed, key=STAGES.index, default="")
        if stale == "all":
            resuming.refuse_bound(folder, changes)
            say(f"what is in {folder} was begun with other settings and finished no scores: it begins anew")
        else:
            kept = not stale or not any(there(folder, resuming.made_after(stale)))  # nothing of it is there
            stale = resuming.with_patch(folder, "" if kept else stale, told, now)
        if stale in STAGES:
            words = "; ".join(change.words for change in changes[:4])
            say(f"the scores stay; made again from the stage {stale} on: {words}")
        return Opened(folder, now, before, stale, bool(changes), data, compared)

    def begin(self, opened: Opened) -> None:
        """Load the model, delete what has to be made again, and write run.json."""
        opened.write(model_record(self.settings, self.model), self.fitted.record(located(self.settings)), self.console)

    def settle_rule(self) -> None:
        """Put the paper's rule in the place of `auto` where the data allow no search (inputs.py: `with_rule`)."""
        self.settings = with_rule(self.settings, self.console, self.shelf.rows)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The model as files, an adapter's with its base."""
        settings = self.settings
        return checkpoint_of(settings.model, trust_remote_code=settings.trust_remote_code, say=self.console.say)

    @cached_property
    def scored_checkpoint(self) -> Checkpoint:
        """The checkpoint to score and edit; SpinError for an adapter, which has no weights of its own."""
        if self.checkpoint.base:
            raise SpinError(
                f"{self.settings.model} is an adapter: it has no weights of its own to score and edit.",
                change="give a merged checkpoint (`spin-llm baseline` writes one for lora and dora).",
            )
        return self.checkpoint

    @cached_property
    def model(self) -> LoadedModel:
        """The model; one without a chat template is warned of."""
        told = self.settings
        key = (told.model, told.dtype, told.device_map, told.trust_remote_code)
        if (found := self.shelf.models.get(key)) is not None:
            return found
        model = load(
            told.model,
            dtype=told.dtype,
            device_map=told.device_map,
            trust_remote_code=told.trust_remote_code,
            checkpoint=self.checkpoint,
            check=partial(check_options, template=rendering_of(told)),
            say=self.console.say,
        )
        if not getattr(model.tokenizer, "chat_template", None):  # said before anything is done with it
            self.console.say(f"warning: {warn_untuned(model.name)}")
        self.shelf.models[key] = model
        return model

    @cached_property
    def read(self) -> RunData:
        """What the sources hold, sampled."""
        return read_data(self.settings, self._once_said, self.shelf.rows, search=not self.scores_alone)

    @cached_property
    def fitted(self) -> RunData:
        """What was read, as far as it fits the models."""
        read, alone = self.read, self.scores_alone
        looked_at = replace(read, choose=(), final=(), questions={}) if alone else read
        fits = fitting(self.settings, looked_at, self.model, *self.others, console=self._once_said)
        return replace(fits, choose=read.choose, final=read.final, questions=read.questions) if alone else fits

    @cached_property
    def inputs(self) -> RunData:
        """What is scored, searched with and reported on: what fits, with the model's own answers in the place of the
        responses where the settings ask for them."""
        return with_own_answers(self, self.fitted) if self.fitted.own else self.fitted

    @property
    def _once_said(self) -> Console:
        return Console(lambda line: self.shelf.once(self.console.say, line), self.console.bar)

    @cached_property
    def judge(self) -> Judge:
        """Who reports; SpinError when it has the weights of a model under evaluation."""
        return self._judge(self.settings.judge)

    @cached_property
    def divider(self) -> Judge:
        """Who divides the model's own answers."""
        return self._judge(self.settings.dividing_judge)

    def _judge(self, name: str) -> Judge:
        told = self.settings
        quality = told.judge_quality if name == told.judge else None
        trusted = told.trust_remote_code
        judge = self.shelf.once(load_judge, name, quality=quality, trust_remote_code=trusted, date=told.date)
        own = () if served(told.model) else (self.checkpoint,)
        refuse_fingerprint(judge, [*own, *(model.checkpoint for model in self.others)])
        return judge

    @cached_property
    def coherence(self) -> Judge:
        """Who says whether an answer is readable."""
        return self.shelf.once(load_coherence_judge)

    def dismiss_judges(self) -> None:
        """Let go of the judges, which may be models, after their last use."""
        for name in ("judge", "divider", "coherence"):
            vars(self).pop(name, None)
        self.shelf.forget(load_judge, load_coherence_judge)

    @cached_property
    def evaluation(self) -> Evaluation:
        """What the models are asked; general pairs by the tokenizer of the run's own."""
        asked = asked_of([self.model, *self.others], self.settings.questions)
        general = encode(self.settings, self.model, self.fitted.final)
        return asking(self.settings, self.fitted.questions, general, asked)

    @cached_property
    def scores(self) -> ScoreSet:
        """The scores in the folder."""
        return stored_scores(self.settings, self.folder)

    @cached_property
    def patch(self) -> Patch:
        """The patch that this run wrote; SpinError when it is another one, put there by `spin-llm select` for
        instance."""
        return own_patch(self.settings, self.folder / PATCH)


def encode(settings: RunSettings, loaded: LoadedModel, pairs: Sequence[Pair]) -> list[Example]:
    """Examples of at most --max-length tokens, and no more than the model can see."""
    length = min(settings.max_length, loaded.context)
    return encode_all(loaded.tokenizer, pairs, template=rendering_of(settings), max_length=length)


def asking(
    settings: RunSettings,
    questions: Mapping[str, Sequence[Question]],
    general: Sequence[Example] = (),
    asked: Asked = NOBODY,
) -> Evaluation:
    """These questions, put as the settings say; `asked`: whose answers these are."""
    thinking = settings.thinking_tokens or 0
    return Evaluation(questions, general, rendering_of(settings), settings.new_tokens, settings.seed, asked, thinking)


def score_file(folder: Path, name: str) -> Path:
    return folder / "scores" / f"{name}.safetensors"


def stored_scores(settings: RunSettings, folder: Path) -> ScoreSet:
    """The score files of a run; OWN is protected where it was scored."""
    protected = [name for name, _ in settings.protect] + ([OWN] if score_file(folder, OWN).is_file() else [])
    sides = ([name for name, _ in settings.concepts], protected)
    concepts, protect = ({name: load_scores(score_file(folder, name)) for name in side} for side in sides)
    return ScoreSet(concepts, protect)


def with_own_answers(run: Run, data: RunData) -> RunData:
    """The data with the model's own answers in the place of the responses. They are kept in the run's folder own/.
    What the aware ones need is protected too, as the set OWN: suppression that makes them unlikely moves the model to
    answers that nobody judged."""
    settings, judge = run.settings, run.divider
    if unknown := [name for name in data.own if name not in judge.axes]:
        raise SpinError(
            f"The judge {judge.name} does not judge {', '.join(unknown)}: it cannot divide the model's own answers.",
            change="give --own-judge, or leave out --responses own.",
        )
    asked = asked_of([run.model], settings.concepts)
    read = {name: reading(judge, name, asked).why_not for name in data.own}
    unmeasured = {name: why for name, why in read.items() if why}
    if not (run.folder / OWN / UNMEASURED).is_file():
        write_json(run.folder / OWN / UNMEASURED, unmeasured)
    for name, why in unmeasured.items():
        run.console.say(
            f"warning: {name}: the model's own answers are divided by {judge.name}, {why}; the edit is for what that "
            "judge takes for aware. Give --own-judge, such as a human's sheet, to be sure"
        )
    pairs = own_pairs(
        run.model,
        data.own,
        (judge, run.coherence),
        run.folder / OWN,
        asked=asking(settings, {}, asked=asked),
        told={"judge": judge.name, "tokens": settings.new_tokens}
        | {name: rows_sha256(asked) for name, asked in data.own.items()},
        console=run.console,
    )
    parts = {name: part.divided(settings.examples, settings.budget.pairs) for name, part in pairs.items()}
    by_margin = "margin" in settings.wanted_statistics
    aware = [pair for part in parts.values() for pair in part[0][: max(1, settings.examples // len(parts))]]
    return replace(
        data,
        protect={**data.protect, **({OWN: aware} if by_margin else {})},
        concepts={name: part[0] for name, part in parts.items()},
        unaware={name: part[1] for name, part in parts.items() if by_margin},
        contrasts={name: (part[2], part[3]) for name, part in parts.items()} if settings.searches else {},
    )
