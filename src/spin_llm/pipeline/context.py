"""What a run works with: the model that is scored and edited, pairs as its tokens, and the judge.

In: `RunSettings`. Out: a loaded checkpoint; encoded examples; a judge that is none of the models it judges. Left out:
how models (models/) and judges (judges/named.py) are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spin_llm.data import Example, Pair, Question, encode_all, rendering_of
from spin_llm.data.lengths import Long, long_pairs, long_questions, refuse_long_pairs, refuse_long_questions
from spin_llm.errors import SpinError
from spin_llm.evaluate import Evaluation
from spin_llm.evaluate.condition import warn_untuned
from spin_llm.judges.named import load_judge, refuse_fingerprint
from spin_llm.judges.quality.reading import Asked
from spin_llm.judges.verdict import Judge
from spin_llm.models import Checkpoint, LoadedModel, load
from spin_llm.models.adapters import adapter_base
from spin_llm.models.disk import resolve
from spin_llm.pipeline.inputs import RunData
from spin_llm.progress import SILENT, Console
from spin_llm.settings import RunSettings

SKIP = "give --skip-long to leave them out"

NOBODY = Asked()


def checkpoint_of(model: str, console: Console = SILENT, *, trust_remote_code: bool = False) -> Checkpoint:
    """The checkpoint folder of a model, an adapter's with its base, without loading it."""
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "say": console.say}
    folder = resolve(model, **options)
    base = adapter_base(folder)
    return Checkpoint(folder, None if base is None else resolve(base, **options))


def scored_checkpoint(settings: RunSettings, console: Console = SILENT) -> Checkpoint:
    """The checkpoint to score and edit; SpinError for an adapter, which has no weights of its own."""
    checkpoint = checkpoint_of(settings.model, console, trust_remote_code=settings.trust_remote_code)
    if checkpoint.base:
        raise SpinError(
            f"{settings.model} is an adapter: it has no weights of its own to score and edit.",
            change="give a merged checkpoint (`spin-llm baseline` writes one for lora and dora).",
        )
    return checkpoint


def load_model(settings: RunSettings, console: Console = SILENT) -> LoadedModel:
    """The model of these settings, to score and edit: a checkpoint, not an adapter."""
    scored_checkpoint(settings, console)
    loaded = load(
        settings.model,
        dtype=settings.dtype,
        device_map=settings.device_map,
        trust_remote_code=settings.trust_remote_code,
        say=console.say,
    )
    say_untuned(loaded, console)
    return loaded


def say_untuned(loaded: LoadedModel, console: Console) -> None:
    """A line when a model has no chat template, before anything is done with it."""
    if not getattr(loaded.tokenizer, "chat_template", None):
        console.say(f"warning: {warn_untuned(loaded.name)}")


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


def fitting(settings: RunSettings, data: RunData, *models: LoadedModel, console: Console = SILENT) -> RunData:
    """The data, when all of it fits the models and --max-length; with --skip-long without what does not, which is said.

    Every prompt and response is rendered, so that any error of one comes before the work. Raises SpinError otherwise,
    which names the rows, and when too little is left of a set.
    """
    gone: set[Pair | Question] = set()
    new_tokens = settings.new_tokens + (settings.thinking_tokens or 0)
    for loaded in models:
        most = min(settings.max_length, loaded.context) - 1
        if settings.asks_own and settings.new_tokens > most:
            raise SpinError(
                f"An answer of --new-tokens {settings.new_tokens} would not fit to be scored: {most} tokens do.",
                change=f"give --new-tokens {most} or fewer, or a larger --max-length where the model's context allows.",
            )
        longs = _long(settings, data, loaded)
        gone |= {long.item for long in longs}
        if not settings.skip_long:
            pairs, questions = ([long for long in longs if isinstance(long.item, kind)] for kind in (Pair, Question))
            refuse_long_pairs(pairs, max_length=settings.max_length, context=loaded.context, others=SKIP)
            refuse_long_questions(questions, new_tokens=new_tokens, context=loaded.context, others=SKIP)
    return data.without(gone, "too long", console) if gone else data


def _long(settings: RunSettings, data: RunData, loaded: LoadedModel) -> list[Long]:
    """What of the data does not fit one model."""
    groups = (data.concepts, data.protect, data.unaware)
    pairs = [pair for group in groups for part in group.values() for pair in part]
    pairs += [pair for sides in data.contrasts.values() for side in sides for pair in side]
    pairs += [*data.choose, *data.final]
    asked = [q for group in (data.questions, data.search, data.own) for part in group.values() for q in part]
    options = {"tokenizer": loaded.tokenizer, "template": rendering_of(settings)}
    new_tokens = settings.new_tokens + (settings.thinking_tokens or 0)
    length, room = min(settings.max_length, loaded.context), loaded.context - new_tokens
    return [
        *long_pairs(pairs=pairs, max_length=length, **options),
        *long_questions(questions=asked, room=room, **options),
    ]


def judge_of(settings: RunSettings, *models: LoadedModel) -> Judge:
    """The judge of these settings; SpinError when it has the weights of one of the models under evaluation."""
    judge = load_judge(
        settings.judge, quality=settings.judge_quality, trust_remote_code=settings.trust_remote_code, date=settings.date
    )
    refuse_fingerprint(judge, [model.checkpoint for model in models])
    return judge
