"""What a run reads: pairs of the concepts and of the protected sets, questions, and what a search needs beside them.

In: `RunSettings`. Out: `RunData`, every source loaded and sampled with the run's seed, what is scored, searched with
and reported on kept apart; the rule that these data allow; what of them fits a model. Left out: the model's own
answers (context.py), and the sources themselves (data/).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from spin_llm.data import Pair, Question, load_pairs, load_prompts, load_questions, rows_sha256, sample, split_sample
from spin_llm.data.chat import rendering_of
from spin_llm.data.examples import refuse_long_pairs, refuse_long_questions, too_long
from spin_llm.data.rows import read_rows
from spin_llm.data.sources import PairSet, ReadRows
from spin_llm.errors import SpinError
from spin_llm.evaluate.own import LEAST_PROMPTS, PROMPTS_PER_EXAMPLE
from spin_llm.models import LoadedModel
from spin_llm.progress import SILENT, Console
from spin_llm.records import DataRecord
from spin_llm.scores.sets import GENERAL_PAIRS, LEAST_GENERAL
from spin_llm.search.find import LEAST_CONTRAST, split_questions
from spin_llm.settings import OWN, SEARCHED, RunSettings

Item = TypeVar("Item", Pair, Question)
PARTS = {  # of `RunData`, by name, as a message calls them
    **{"concepts": "concept", "unaware": "unaware pairs", "protect": "protect", "questions": "questions"},
    **{"search": "search questions", "own": "own answers"},
}
ROLES = {"concept": "pairs of", "protect": "protected set", "questions": "questions on"}
SKIP = "give --skip-long to leave them out"


@dataclass(frozen=True)
class Reader:
    """The sources of a run, read from the folder and the columns that its settings say; `rows` reads a file. What was
    not taken of them is put into `left_out`."""

    settings: RunSettings
    rows: ReadRows = read_rows
    left_out: dict[tuple[str, str], Sequence[str]] = field(default_factory=dict)

    @property
    def where(self) -> dict[str, str | None]:
        return {"data_dir": self.settings.data_dir, "prompt_column": self.settings.prompt_column}

    def pairs(self, source: str, concept: str, responses: str = "aware") -> PairSet:
        where = {**self.where, "response_column": self.settings.response_column}
        return load_pairs(source, concept=concept, responses=responses, rows=self.rows, **where)

    def protected(self, console: Console) -> tuple[dict[str, Sequence[Pair]], Sequence[Pair]]:
        """(pairs by protected set, general pairs that none of them has: what the samples leave, or the starter set's
        where too few are left)."""
        settings, protect = self.settings, dict[str, Sequence[Pair]]()
        rest: list[Pair] = []
        for name, source in settings.protect:
            found = self.pairs(source, name)
            pairs, self.left_out["protect", name] = found.pairs, found.left_out
            protect[name], left = split_sample(pairs, settings.examples, settings.seed, f"the protected set {name}")
            rest += list(left)
        if len(rest) < LEAST_GENERAL:
            console.say(
                "too few general pairs are left beside the scored ones: perplexity is taken on the starter set's"
            )
            used = {pair.prompt for pairs in protect.values() for pair in pairs}
            starter = load_pairs("starter", concept="general", rows=self.rows).pairs
            rest = [pair for pair in starter if pair.prompt not in used]
        return protect, sample(rest, min(len(rest), 2 * GENERAL_PAIRS), settings.seed)

    def asked(self) -> tuple[dict[str, Sequence[Question]], dict[str, Sequence[Question]]]:
        """(questions to report on, questions to search with), by axis."""
        settings, questions = self.settings, dict[str, Sequence[Question]]()
        searched: dict[str, Sequence[Question]] = {}
        for axis, source in settings.questions:
            found = load_questions(source, concept=axis, rows=self.rows, **self.where)
            asked, self.left_out["questions", axis] = found.questions, found.left_out
            if settings.searches_answers:
                searched[axis], asked = split_questions(asked, settings.budget.search_questions, settings.seed)
            most = settings.max_questions or (settings.budget.final_questions if settings.searches else None)
            questions[axis] = sample(asked, min(len(asked), most or len(asked)), settings.seed)
        return questions, searched


@dataclass(frozen=True)
class RunData:
    """What a run reads, sampled: pairs by concept and by protected set, general pairs to choose and to report on,
    questions by axis; and for a search (aware, unaware) pairs by concept that nothing is scored on, and questions to
    search with, none of which is among the others; and the prompts that the model answers itself, to be scored on.
    `left_out` says by role and name which rows of a source were not taken, and why."""

    concepts: Mapping[str, Sequence[Pair]]
    protect: Mapping[str, Sequence[Pair]]
    choose: Sequence[Pair]
    final: Sequence[Pair]
    questions: Mapping[str, Sequence[Question]]
    unaware: Mapping[str, Sequence[Pair]]
    contrasts: Mapping[str, tuple[Sequence[Pair], Sequence[Pair]]]
    search: Mapping[str, Sequence[Question]]
    own: Mapping[str, Sequence[Question]]
    left_out: Mapping[tuple[str, str], Sequence[str]] = field(default_factory=dict)

    def record(self, settings: RunSettings) -> list[DataRecord]:
        """Role, name, source, size and SHA-256 of everything used, for run.json."""
        rest, held_back = "held-back rows of the protected sets", "rows that nothing is scored on"
        unasked, own = "rows that nothing is reported on", "prompts that the model answers to be scored on"
        sets: list[tuple[str, str, str, Sequence[Pair] | Sequence[Question]]] = [
            *(("concept", name, source, self.concepts[name]) for name, source in settings.concepts),
            *(("protect", name, source, self.protect[name]) for name, source in settings.protect),
            *(("questions", axis, source, self.questions[axis]) for axis, source in settings.questions),
            *(("choose the ratio", "general", rest, self.choose), ("perplexity", "general", rest, self.final)),
            *(("search by margins", name, held_back, (*both[0], *both[1])) for name, both in self.contrasts.items()),
            *(("search questions", axis, unasked, asked) for axis, asked in self.search.items()),
            *(("own answers", name, own, asked) for name, asked in self.own.items()),
        ]
        told = {key: list(why) for key, why in self.left_out.items() if key[0] in ROLES}
        return [
            DataRecord(role, name, source, len(items), rows_sha256(items), told.get((role, name), []))
            for role, name, source, items in sets
        ]

    def without(self, gone: Collection[Pair | Question], why: str, console: Console = SILENT) -> RunData:
        """The data without these pairs and questions, counted in `left_out` and said. SpinError when too few of a set
        are left."""
        left_out = dict(self.left_out)

        def kept(items: Sequence[Item], role: str, name: str, least: int = 1) -> Sequence[Item]:
            found = [item for item in items if item not in gone]
            if len(found) == len(items):
                return items
            rows = [item.where for item in items if item in gone]
            text = f"{len(rows)} of {len(items)} {why} ({', '.join(rows[:3])}{', ...' if len(rows) > 3 else ''})"
            left_out[role, name] = (*left_out.get((role, name), ()), text)
            console.say(f"{role}, {name}: left out are {text}")
            if len(found) < least:
                raise SpinError(
                    f"{role}, {name}: {text}, and {least} {'is' if least == 1 else 'are'} needed of the others.",
                    change="give shorter rows, or more of them.",
                )
            return found

        sets: dict[str, Any] = {
            part: {name: kept(items, role, name) for name, items in getattr(self, part).items()}
            for part, role in PARTS.items()
        }
        sets["contrasts"] = {
            name: tuple(kept(side, "search by margins", name, LEAST_CONTRAST) for side in sides)
            for name, sides in self.contrasts.items()
        }
        sets |= {part: kept(getattr(self, part), "general pairs", part) for part in ("choose", "final")}
        return replace(self, **sets, left_out=left_out)


def with_rule(settings: RunSettings, console: Console = SILENT, rows: ReadRows = read_rows) -> RunSettings:
    """The settings with the paper's rule in the place of `auto` where nothing can be searched: without unaware
    responses beside the aware ones there is no margin."""
    if settings.rule != SEARCHED:
        return settings
    reader = Reader(settings, rows)
    why = "the data are unaware responses alone" if settings.responses == "unaware" else ""
    for name, source in settings.concepts if not why and settings.responses != OWN else ():
        aware = reader.pairs(source, name)
        try:
            if aware.pairs != reader.pairs(source, name, "unaware").pairs:
                continue
        except SpinError:  # what reads as aware and not as unaware lacks its columns or rows
            pass
        why = f"{source} has one kind of response for {name}"
        break
    if why:
        console.say(f"the rule is coupled, the paper's: {why}, so there is no margin to search by")
        return replace(settings, rule="coupled")
    return settings


def read_data(
    settings: RunSettings, console: Console = SILENT, rows: ReadRows = read_rows, *, search: bool = True
) -> RunData:
    """Load and sample every source; without `search` not what a search needs beside the scores.

    General pairs that nothing is scored on are halved: one half chooses the ratio, one reports.
    """
    reader = Reader(settings, rows)
    concepts: dict[str, Sequence[Pair]] = {}
    unaware: dict[str, Sequence[Pair]] = {}
    contrasts = {}
    left_out = reader.left_out
    for name, source in settings.concepts:
        if settings.responses == OWN:  # the data's own responses are not looked at: there need not be any
            concepts[name] = unaware[name] = ()
            continue
        found = reader.pairs(source, name, settings.given_responses)
        pairs, left_out["concept", name] = found.pairs, found.left_out
        concepts[name] = sample(pairs, settings.examples, settings.seed, f"the concept {name}")
        if "margin" in settings.wanted_statistics:
            others = reader.pairs(source, name, "unaware").pairs
            if others == pairs:
                raise SpinError(
                    f"The margin needs aware and unaware responses, and {source} has one kind for {name}.",
                    change="give data with the columns prompt, aware and unaware, or --rule coupled.",
                )
            unaware[name] = sample(others, settings.examples, settings.seed, f"the concept {name}, unaware")
        if search and settings.searches:
            used = {pair.prompt for pair in (*concepts[name], *unaware[name])}
            contrasts[name] = held_back(name, used, pairs, others, settings)
    protect, general = reader.protected(console)
    questions, searched = reader.asked()
    own = own_prompts(reader, {q.prompt for asked in (questions, searched) for part in asked.values() for q in part})
    for (role, name), reasons in left_out.items():
        if reasons:
            console.say(f"left out of the {ROLES[role]} {name}: {'; '.join(reasons)}")
    halves = general[::2], general[1::2]
    return RunData(concepts, protect, *halves, questions, unaware, contrasts, searched, own, left_out)


def own_prompts(reader: Reader, others: Collection[str]) -> dict[str, Sequence[Question]]:
    """Prompts by concept that the model answers itself to be scored on; none of them is in `others`, what is searched
    and reported on."""
    settings, found = reader.settings, dict[str, Sequence[Question]]()
    for name, source in settings.concepts if settings.asks_own else ():
        prompts = load_prompts(source, concept=name, rows=reader.rows, **reader.where)
        asked = [question for question in prompts if question.prompt not in others]
        found[name] = sample(asked, min(len(asked), PROMPTS_PER_EXAMPLE * settings.examples), settings.seed)
        if len(found[name]) < LEAST_PROMPTS:
            few = len(asked) < LEAST_PROMPTS
            least = -(-LEAST_PROMPTS // PROMPTS_PER_EXAMPLE)
            raise SpinError(
                f"The model's own answers to {len(found[name])} prompts of {name} cannot be scored: {LEAST_PROMPTS} "
                "are the least.",
                cause=f"{source} has {len(asked)} prompts that no question has."
                if few
                else f"--examples {settings.examples} asks for {PROMPTS_PER_EXAMPLE} prompts each.",
                change=("give more prompts with --concept" if few else f"give --examples {least} or more")
                + ", or leave out --responses own.",
            )
    return found


def held_back(
    name: str, used: set[str], aware: Sequence[Pair], unaware: Sequence[Pair], settings: RunSettings
) -> tuple[Sequence[Pair], Sequence[Pair]]:
    """(aware, unaware) pairs to search with, as many as the effort has at most: none has a prompt that was scored
    (`used`). Raises SpinError when fewer than 8 of a kind are left."""
    kinds = [[pair for pair in pairs if pair.prompt not in used] for pairs in (aware, unaware)]
    if min(map(len, kinds)) < LEAST_CONTRAST:
        raise SpinError(
            f"Too few pairs of {name} are left to search with: {len(kinds[0])} aware and {len(kinds[1])} unaware ones "
            f"have prompts that nothing was scored on, and {LEAST_CONTRAST} of each are needed.",
            change="give fewer --examples, or more data; or --rule coupled, which needs none.",
        )
    first, second = (sample(kind, min(len(kind), settings.budget.pairs), settings.seed) for kind in kinds)
    return first, second


def fitting(settings: RunSettings, data: RunData, *models: LoadedModel, console: Console = SILENT) -> RunData:
    """The data, when all of it fits the models and --max-length; with --skip-long without what does not, which is said.

    Every prompt and response is rendered, so that any error of one comes before the work. Raises SpinError otherwise,
    which names the rows, and when too little is left of a set.
    """
    gone: set[Pair | Question] = set()
    groups = (data.concepts, data.protect, data.unaware)
    pairs = [pair for group in groups for part in group.values() for pair in part]
    pairs += [pair for sides in data.contrasts.values() for side in sides for pair in side]
    pairs += [*data.choose, *data.final]
    asked = [q for group in (data.questions, data.search, data.own) for part in group.values() for q in part]
    new_tokens, template = settings.new_tokens + (settings.thinking_tokens or 0), rendering_of(settings)
    for loaded in models:
        length, context = min(settings.max_length, loaded.context), loaded.context
        if settings.asks_own and settings.new_tokens > length - 1:
            raise SpinError(
                f"An answer of --new-tokens {settings.new_tokens} would not fit to be scored: {length - 1} tokens do.",
                change=f"give --new-tokens {length - 1} or fewer, or a larger --max-length where the model's context "
                "allows.",
            )
        long = too_long(loaded.tokenizer, pairs, template=template, room=length - 1)
        long_asked = too_long(loaded.tokenizer, asked, template=template, room=context - new_tokens)
        gone |= {one.item for one in (*long, *long_asked)}
        if not settings.skip_long:
            refuse_long_pairs(long, max_length=settings.max_length, context=context, others=SKIP)
            refuse_long_questions(long_asked, new_tokens=new_tokens, context=context, others=SKIP)
    return data.without(gone, "too long", console) if gone else data
