"""A checkpoint folder loaded for scoring or generating.

In: a local folder, a dtype, a device. Out: the transformers model in eval mode with no parameter asking for a gradient,
its tokenizer, where both came from, and what transformers warned of. Every weight of it is the checkpoint's: missing,
mismatched and not finite tensors are refused. An adapter folder (adapters.py) is loaded as its base model with the
adapter in it. Left out: fetching (resolve.py), what else a folder may be (kinds.py), and which matrices can be edited
(structure.py).
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from spin_llm.errors import SpinError
from spin_llm.files import read_typed
from spin_llm.models import kinds
from spin_llm.models.adapters import adapter_base, put_on
from spin_llm.models.checkpoint import Checkpoint
from spin_llm.models.resolve import Say, resolve
from spin_llm.models.structure import decoder_layers

DTYPE_CHOICES = ("auto", "float32", "bfloat16")
UNHEARD = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning, ResourceWarning)


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory.

    `name` is what the user typed, `checkpoint` the folder it was read from, `notes` what was found odd or warned of
    while it was loaded, a line each.
    """

    name: str
    model: Any
    tokenizer: Any
    checkpoint: Checkpoint
    notes: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def context(self) -> int:
        """Most tokens that the model can see; a very large number where its config does not say."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 2**62)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(dtype: str = "auto", device: torch.device | None = None) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies it natively, else float32."""
    if dtype not in DTYPE_CHOICES:
        raise SpinError(f"Unknown dtype {dtype!r}.", change=f"--dtype takes one of {', '.join(DTYPE_CHOICES)}.")
    if dtype != "auto":
        return torch.float32 if dtype == "float32" else torch.bfloat16
    return torch.bfloat16 if native_bfloat16(device or pick_device()) else torch.float32


def native_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 itself: every CUDA card from Ampere (AMD's by what ROCm says), CPUs with
    AVX512-BF16 or AMX.

    PyTorch computes it on older ones too, by way of float32, and by default calls that support.
    """
    if device.type == "cuda":
        cards = [device.index] if device.index is not None else range(max(1, torch.cuda.device_count()))
        new = torch.version.hip is not None or all(torch.cuda.get_device_capability(card)[0] >= 8 for card in cards)
        return new and torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def load(
    model: str,
    *,
    dtype: str = "auto",
    device_map: str | None = None,
    trust_remote_code: bool = False,
    say: Say = lambda message: None,
) -> LoadedModel:
    """Resolve and load `model`.

    Raises SpinError when it is unknown, quantised, incomplete, or not a causal language model.
    """
    given = resolve(model, trust_remote_code=trust_remote_code, say=say)
    base = adapter_base(given)
    folder = given if base is None else resolve(base, trust_remote_code=trust_remote_code, say=say)
    with quiet_transformers() as heard:
        tokenizer = _read_tokenizer(given, folder, trust_remote_code)
        loaded, notes = _read_model(folder, pick_dtype(dtype), device_map, trust_remote_code)
        if base is not None:
            loaded, more = put_on(loaded, given, folder)
            notes += more
    refuse_not_finite(str(given), loaded)
    _refuse_unknown_tokens(given, loaded, tokenizer)
    loaded.requires_grad_(False).eval()
    notes = tuple(dict.fromkeys((*notes, *heard)))
    for note in notes:
        say(f"note: {note}")
    return LoadedModel(model, loaded, tokenizer, Checkpoint(given, None if base is None else folder), notes)


def _read_model(
    folder: Path, dtype: torch.dtype, device_map: str | None, trust_remote_code: bool
) -> tuple[Any, tuple[str, ...]]:
    """The model of a checkpoint folder on its device, and a note of tensors that have no place in it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    placing = {"device_map": device_map} if device_map else {}
    read: Any = AutoModelForCausalLM.from_pretrained  # its type knows no output_loading_info
    kinds.refuse_foreign_config(folder, trust_remote_code=trust_remote_code)
    with _said_by(folder):
        config = AutoConfig.from_pretrained(folder, **options)
    kinds.refuse_other_kinds(config, folder, trust_remote_code=trust_remote_code)
    _refuse_much_larger(config, folder, trust_remote_code)
    with _said_by(folder):
        loaded, loading = read(
            folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **placing, **options
        )
    notes = refuse_misfits(str(folder), loaded, loading)
    return (loaded if device_map else loaded.to(pick_device())), notes


def _read_tokenizer(given: Path, folder: Path, trust_remote_code: bool) -> Any:
    """The tokenizer of `given`, an adapter's folder, where it has one, else of its base `folder`; the adapter's chat
    template goes before the base's."""
    from transformers import AutoTokenizer

    own = given if kinds.has_vocabulary(given) else folder
    kinds.refuse_without_tokenizer(own)
    with _said_by(own):
        tokenizer = AutoTokenizer.from_pretrained(own, trust_remote_code=trust_remote_code, local_files_only=True)
        seen = list(tokenizer("The sky is blue.")["input_ids"])
    if len(set(seen)) < 2:
        raise SpinError(
            f"The tokenizer of {own} makes {len(seen)} token(s) of 'The sky is blue.'.",
            cause="its vocabulary is missing: transformers makes an empty tokenizer of what is left.",
            change="copy the tokenizer's files (tokenizer.json) of the model that it was made from into the folder.",
        )
    if own != given and (template := _own_template(given)):
        tokenizer.chat_template = template
    return tokenizer


def _own_template(folder: Path) -> str | None:
    """The chat template of an adapter that has no vocabulary of its own."""
    if (folder / "chat_template.jinja").is_file():
        try:
            return (folder / "chat_template.jinja").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SpinError(f"{folder / 'chat_template.jinja'} cannot be read: {error}.") from None
    if not (folder / "tokenizer_config.json").is_file():
        return None
    return read_typed(folder / "tokenizer_config.json", _TokenizerConfig).chat_template


@contextmanager
def _said_by(folder: Path) -> Iterator[None]:
    """What transformers raises while it reads `folder`, as one SpinError."""
    try:
        yield
    except (OSError, ValueError, LookupError, ImportError, RuntimeError, TypeError, AttributeError) as error:
        raise kinds.unreadable(folder, error) from error
    except (SafetensorError, AssertionError, NotImplementedError) as error:
        raise kinds.unreadable(folder, error) from error


def _refuse_much_larger(config: Any, folder: Path, trust_remote_code: bool) -> None:
    """SpinError for a configuration of many more weights than the folder holds.

    transformers would fill the rest with random numbers until memory ends, and tell of it afterwards.
    """
    from transformers import AutoModelForCausalLM

    stored = Checkpoint(folder).tensors
    held = sum(math.prod(tensor.shape) for tensor in stored.values())
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0) or 0
    what = f"{folder} lacks most of the model's tensors: its config.json describes"
    cause = "config.json is another model's, or most of the weight files were left out."
    if isinstance(layers, int) and layers > len(stored):
        raise SpinError(f"{what} {layers:,} layers, and {len(stored):,} tensors are there.", cause=cause)
    with _said_by(folder), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    wanted = sum(parameter.numel() for parameter in model.parameters())
    if wanted > 2 * held + 1_000_000:
        raise SpinError(f"{what} {wanted:,} weights, and {held:,} are there.", cause=cause)


def refuse_misfits(name: str, model: Any, loading: Mapping[str, Any]) -> tuple[str, ...]:
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


def _refuse_unknown_tokens(folder: Path, model: Any, tokenizer: Any) -> None:
    """SpinError when the tokenizer makes tokens that the embedding has no row for.

    Added tokens that neither the tokenizer nor its template uses may be such (Gemma's for images, in its text models).
    """
    rows = model.get_input_embeddings().weight.shape[0]
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    template = str(getattr(tokenizer, "chat_template", None) or "")
    own = {tokenizer.bos_token, tokenizer.eos_token}
    added = set(tokenizer.get_added_vocab()) if beyond else set()
    used = [token for token in beyond if token not in added or token in own or token in template]
    if used:
        raise SpinError(
            f"The tokenizer of {folder} knows {max(beyond.values()) + 1} tokens, and the model's embedding has {rows} "
            f"rows: {len(beyond)} tokens, such as {used[0]!r}, have none.",
            cause="the tokenizer of another model, or tokens that were added without resizing the embedding.",
            change="give the tokenizer that belongs to the model, or resize the embedding (resize_token_embeddings).",
        )


@dataclass(frozen=True)
class _TokenizerConfig:
    chat_template: str | None = None


class _Heard(logging.Handler):
    """Keeps warnings as single lines."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(_one_line(record.getMessage()))


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:299]}…"


@contextmanager
def quiet_transformers() -> Iterator[list[str]]:
    """No progress bars, warnings or advice inside: this command prints its own. Yields the warnings, filled at the end.

    Left out: what is for programmers (deprecations), and the report of a load's keys, which `refuse_misfits` words.
    """
    from transformers.utils import logging as theirs

    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    lines: list[str] = []
    heard: list[str] = []
    logger = logging.getLogger("transformers")
    before = logger.handlers[:]
    logger.handlers = [_Heard(lines)]
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
        lines += [_one_line(str(one.message)) for one in caught if not issubclass(one.category, UNHEARD)]
        heard += [line for line in dict.fromkeys(lines) if "LOAD REPORT" not in line]
