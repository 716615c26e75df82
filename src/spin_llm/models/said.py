"""What transformers says of a checkpoint folder, in words of our own.

In: a folder, the configuration that transformers read from it, its exceptions, its warnings, and what it told of the
loaded model. Out: nothing for a causal language model with a tokenizer whose tensors are all the checkpoint's own, and
a SpinError for all else: another kind of model (told before its weights are read), a folder that cannot be read, a
weight that is missing, unexpected, of another shape or not finite; warnings as lines. Left out: loading (loading.py),
folders that are no checkpoint at all (disk/resolve.py).
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError

from spin_llm.errors import SpinError
from spin_llm.files import read_typed
from spin_llm.models.structure import decoder_layers

VOCABULARIES = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "*.tiktoken", "*.spm", "spiece.model"),
    *("tekken.json", "*.vocab", "sentencepiece*.model"),
)
SENSES = ("vision_config", "audio_config", "visual", "vision_tower", "mm_vision_tower", "speech_config", "vit_config")
FAILURES = (OSError, ValueError, LookupError, ImportError, RuntimeError, TypeError, AttributeError, AssertionError)
TASKS = {  # endings of the class that a configuration names, and what such a model does
    "ForSequenceClassification": "classifies texts (a reward model or classifier)",
    "RewardModel": "scores texts (a reward model)",
    "ForTokenClassification": "labels tokens",
    "ForQuestionAnswering": "marks answers in a text",
    "ForMaskedLM": "fills in masked tokens (an encoder)",
    "ForMultipleChoice": "chooses between texts",
    "ForImageClassification": "classifies images",
}
UNHEARD = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning, ResourceWarning)


def refuse_other_kinds(config: Any, folder: Path, *, trust_remote_code: bool) -> None:
    """SpinError unless `config` is of a causal language model that can be loaded, edited and asked."""
    from transformers.models.auto import modeling_auto

    refuse_quantised(config, folder)
    kind = getattr(config, "model_type", "?")
    named = [name for name in getattr(config, "architectures", None) or [] if isinstance(name, str)]
    chat = "give a chat model of text alone."
    for ending, does in TASKS.items():
        if any(name.endswith(ending) for name in named):
            raise SpinError(f"{folder} is a model that {does} ({named[0]}), and writes no answers.", change=chat)
    if getattr(config, "is_encoder_decoder", False):
        what = f"{folder} is an encoder-decoder model ({kind}), not a causal language model."
        raise SpinError(what, change="give a decoder-only chat model.")
    own = getattr(config, "auto_map", None) or {}
    if kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or (trust_remote_code and "AutoModelForCausalLM" in own):
        return
    several = kind in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    if several or any(getattr(config, sense, None) is not None for sense in SENSES):
        raise SpinError(
            f"{folder} is a multimodal model (images, sound or video beside text: {kind}), which transformers has not "
            "as a causal language model.",
            cause="its language model lies inside a larger one, which this version does not take apart.",
            change="give a text model of the same family, or save the language model alone with transformers "
            "(model.language_model, with its head) and give that folder.",
        )
    if own:
        raise _needs_code(folder)
    raise SpinError(
        f"{folder} could not be loaded as a causal language model: {', '.join(named) or kind} is none.",
        cause="an encoder, or a model of images or sound.",
        change="give a chat model.",
    )


def refuse_quantised(config: Any, folder: Path) -> None:
    """SpinError for quantised checkpoints: their stored numbers are not the weights that the method scores."""
    quantisation = getattr(config, "quantization_config", None)
    if quantisation:
        method = quantisation.get("quant_method", "?") if isinstance(quantisation, dict) else quantisation
        raise SpinError(
            f"{folder} is quantised ({method}); its weights cannot be scored or edited.",
            change="load the float16, bfloat16 or float32 model that it was made from, and quantise after the edit.",
        )


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Inside, what transformers raises while it reads `folder` becomes one SpinError, by its cause."""
    try:
        yield
    except (*FAILURES, SafetensorError) as error:
        text = str(error).strip()
        first = (text.splitlines() or [type(error).__name__])[0]
        if "trust_remote_code" in text or "custom code" in text:
            raise _needs_code(folder) from error
        if isinstance(error, ImportError):
            raise SpinError(
                f"{folder} needs a package that is not installed: {first}",
                cause="its tokenizer or its own code is built on it.",
                change="install that package in this environment.",
            ) from error
        cause = "a damaged or incomplete folder, or an architecture that this transformers version does not know."
        raise SpinError(f"{folder} could not be loaded as a causal language model: {first}", cause=cause) from error


def _needs_code(folder: Path) -> SpinError:
    return SpinError(
        f"{folder} is a model with Python code of its own, which is not run unless it is trusted.",
        change="read its *.py files, then give --trust-remote-code; or give a model that transformers knows.",
    )


def refuse_foreign_config(folder: Path, *, trust_remote_code: bool) -> None:
    """SpinError for a config.json that transformers would fail on with another reason than the true one."""
    raw = read_typed(folder / "config.json", dict[str, Any])
    kind = raw.get("model_type")
    if raw.get("auto_map") and trust_remote_code:
        targets = raw["auto_map"].values() if isinstance(raw["auto_map"], dict) else ()
        own = [target for target in targets if isinstance(target, str) and "--" not in target]
        files = {f"{target.rpartition('.')[0]}.py" for target in own}
        if missing := sorted(name for name in files if not (folder / name).is_file()):
            what = f"{folder} is a model with Python code of its own, and lacks {', '.join(missing)}."
            raise SpinError(what, change="copy these files of the original model into the folder.")
    if not isinstance(kind, str) and not raw.get("auto_map"):
        raise SpinError(
            f"{folder / 'config.json'} could not be loaded as a causal language model: it names no model_type.",
            cause="the configuration of another program, or a damaged file.",
            change="give the folder that save_pretrained wrote.",
        )


def has_vocabulary(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in VOCABULARIES)


def refuse_without_tokenizer(folder: Path) -> None:
    """SpinError for a folder without the files of a tokenizer, from which transformers might make an empty one."""
    if not has_vocabulary(folder) and not (folder / "tokenizer_config.json").is_file():  # that of code or of bytes
        raise SpinError(
            f"{folder} has no tokenizer.",
            cause="the model was saved without it.",
            change="copy the tokenizer's files (tokenizer.json, tokenizer_config.json) of the model that it was made "
            "from into the folder.",
        )


@contextmanager
def quiet_transformers() -> Iterator[list[str]]:
    """No progress bars, warnings or advice inside: this command prints its own. Yields the warnings, filled at the end.
    Left out: what is for programmers (deprecations), and the report of a load's keys, which `refuse_misfits` words."""
    from transformers.utils import logging as theirs

    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    heard: list[str] = []
    logger, kept = logging.getLogger("transformers"), BufferingHandler(sys.maxsize)
    kept.setLevel(logging.WARNING)
    before, logger.handlers = logger.handlers, [kept]
    theirs.set_verbosity_warning()
    theirs.disable_progress_bar()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield heard
    finally:
        logger.handlers = before
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()
        lines = [record.getMessage() for record in kept.buffer]
        lines += [str(one.message) for one in caught if not issubclass(one.category, UNHEARD)]
        heard += [line for line in dict.fromkeys(map(_one_line, lines)) if "LOAD REPORT" not in line]


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:299]}…"


class Loading(TypedDict):
    """What transformers' `output_loading_info` gives, in as much of it as is read."""

    missing_keys: set[str]
    unexpected_keys: set[str]
    mismatched_keys: set[tuple[str, tuple[int, ...], tuple[int, ...]]]  # name, stored shape, shape in the model


def refuse_misfits(name: str, model: Any, loading: Loading) -> tuple[str, ...]:
    """What `output_loading_info` tells: SpinError for tensors that are missing, of another shape, or of decoder layers
    that the model does not have; notes for others that have no place in it (another tower's, for instance)."""
    missing, extra = sorted(loading["missing_keys"]), sorted(loading["unexpected_keys"])
    if mismatched := sorted(loading["mismatched_keys"]):
        tensor, stored, wanted = mismatched[0]
        raise SpinError(
            f"{name} could not be loaded: {len(mismatched)} of its tensors have another shape than its config.json "
            f"says, such as {tensor}: {tuple(stored)} is stored, {tuple(wanted)} is wanted.",
            cause="config.json and weights belong to different models, or a damaged conversion.",
        )
    if missing:  # transformers fills these with random numbers
        raise SpinError(
            f"{name} lacks {len(missing)} of the model's tensors, such as {', '.join(missing[:3])}.",
            cause="an incomplete checkpoint, or an encoder's, which has no language-model head.",
            change="fetch the checkpoint again, or give the one that it was made from.",
        )
    stack = decoder_layers(model)[0] if extra else ""
    inside = [key for key in extra if key.startswith(f"{stack}.")]
    if inside:
        raise SpinError(
            f"{name} holds {len(inside)} tensors in {stack} for which its config.json has no place, such as "
            f"{', '.join(inside[:3])}.",
            cause="config.json describes a smaller model, or one without these parts; they would be dropped.",
            change="give the config.json that belongs to these weights, or save the model again without them.",
        )
    return (f"{len(extra)} unexpected tensors have no place in the model: {', '.join(extra[:3])}",) if extra else ()


def refuse_not_finite(name: str, model: Any) -> None:
    """SpinError that names a parameter with NaN or infinite numbers; one pass over the weights."""
    for tensor, parameter in model.named_parameters():
        if parameter.device.type != "meta" and not bool(torch.isfinite(parameter).all()):
            raise SpinError(
                f"{name}: {tensor} holds NaN or infinite numbers.",
                cause="training or merging that diverged, a damaged file, or numbers too large for this dtype.",
                change="fetch or make the model again; for the last, give --dtype float32.",
            )
