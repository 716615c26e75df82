"""What a run works with: the model that is scored and edited, pairs as its tokens, and the judge.

In: `RunSettings`. Out: a loaded checkpoint; encoded examples; a judge that is none of the models it judges. Left out:
how models (models/) and judges (evaluate/judging.py) are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence

from spin_llm.data import Example, Pair, encode_all
from spin_llm.errors import SpinError
from spin_llm.evaluate import Judge, load_judge
from spin_llm.evaluate.judging import refuse_fingerprint
from spin_llm.models import LoadedModel, load, resolve
from spin_llm.models.adapters import adapter_base
from spin_llm.progress import SILENT, Console
from spin_llm.settings import RunSettings


def load_model(settings: RunSettings, console: Console = SILENT) -> LoadedModel:
    """The model of these settings, to score and edit: a checkpoint, not an adapter."""
    if adapter_base(resolve(settings.model, say=console.say)):
        raise SpinError(
            f"{settings.model} is an adapter: it has no weights of its own to score and edit.",
            change="give a merged checkpoint (`spin-llm baseline` writes one for lora and dora).",
        )
    return load(
        settings.model,
        dtype=settings.dtype,
        device_map=settings.device_map,
        trust_remote_code=settings.trust_remote_code,
        say=console.say,
    )


def encode(settings: RunSettings, loaded: LoadedModel, pairs: Sequence[Pair]) -> list[Example]:
    """Examples of at most --max-length tokens, and no more than the model can see."""
    length = min(settings.max_length, loaded.context)
    return encode_all(loaded.tokenizer, pairs, template=settings.template, max_length=length)


def judge_of(settings: RunSettings, *models: LoadedModel) -> Judge:
    """The judge of these settings; SpinError when it has the weights of one of the models under evaluation."""
    judge = load_judge(settings.judge, quality=settings.judge_quality, trust_remote_code=settings.trust_remote_code)
    refuse_fingerprint(judge, [model.checkpoint for model in models])
    return judge
