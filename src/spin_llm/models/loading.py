"""A checkpoint folder loaded for scoring or generating.

In: a local folder, a dtype, a device. Out: the transformers model in eval mode with no parameter asking for a gradient,
its tokenizer, where both came from, and what transformers warned of. Every weight of it is the checkpoint's: missing,
mismatched and not finite tensors are refused. An adapter folder (adapters.py) is loaded as its base model with the
adapter in it. Left out: fetching (disk/resolve.py), what else a folder may be (said.py), which matrices can be
edited (structure.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spin_llm.errors import SpinError
from spin_llm.files import read_typed
from spin_llm.models import said
from spin_llm.models.adapters import adapter_base, put_on
from spin_llm.models.disk.checkpoint import Checkpoint
from spin_llm.models.disk.resolve import resolve
from spin_llm.progress import Say

DTYPE_CHOICES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory. `name` is what the user typed, `checkpoint` the folder it was read from, `notes` what was
    found odd or warned of while it was loaded, a line each."""

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
    AVX512-BF16 or AMX. PyTorch computes it on older ones too, by way of float32, and by default calls that support."""
    if device.type == "cuda":
        cards = [device.index] if device.index is not None else range(max(1, torch.cuda.device_count()))
        new = torch.version.hip is not None or all(torch.cuda.get_device_capability(card)[0] >= 8 for card in cards)
        return new and torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def checkpoint_of(model: str, *, trust_remote_code: bool = False, say: Say = lambda message: None) -> Checkpoint:
    """The checkpoint folder of a model, an adapter's with its base, without loading it."""
    folder = resolve(model, trust_remote_code=trust_remote_code, say=say)
    base = adapter_base(folder)
    return Checkpoint(folder, None if base is None else resolve(base, trust_remote_code=trust_remote_code, say=say))


def load(
    model: str,
    *,
    dtype: str = "auto",
    device_map: str | dict[str, str] | None = None,
    trust_remote_code: bool = False,
    checkpoint: Checkpoint | None = None,
    check: Callable[[Any], object] = lambda tokenizer: None,
    say: Say = lambda message: None,
) -> LoadedModel:
    """Resolve and load `model`; `checkpoint` is what it was resolved to, where that is known; `check` may refuse its
    tokenizer before the weights are read. Raises SpinError when it is unknown, quantised, incomplete, or not a causal
    language model."""
    checkpoint = checkpoint or checkpoint_of(model, trust_remote_code=trust_remote_code, say=say)
    given, folder = checkpoint.folder, checkpoint.base or checkpoint.folder
    with said.quiet_transformers() as heard:
        tokenizer = _read_tokenizer(given, folder, trust_remote_code)
        check(tokenizer)
        loaded, notes = _read_model(folder, pick_dtype(dtype), device_map, trust_remote_code)
        if checkpoint.base:
            loaded, more = put_on(loaded, given, folder)
            notes += more
    if away := sum(parameter.is_meta for parameter in loaded.parameters()):
        raise SpinError(
            f"{given} does not fit the devices that there are: {away} of its tensors would be left in slower memory.",
            cause="--device-map spread it, and what is left was not to be loaded.",
            change="use more devices, or larger ones (spin-llm doctor MODEL --as 8x80g tells how many).",
        )
    said.refuse_not_finite(str(given), loaded)
    _refuse_unknown_tokens(given, loaded, tokenizer)
    loaded.requires_grad_(False).eval()
    notes = tuple(dict.fromkeys((*notes, *heard)))
    for note in notes:
        say(f"note: {note}")
    return LoadedModel(model, loaded, tokenizer, checkpoint, notes)


def load_empty(model: str, *, dtype: str = "auto", trust_remote_code: bool = False) -> LoadedModel:
    """`model` without its weights, on the meta device: of a local folder, config.json and the tokenizer are enough."""
    from transformers import AutoConfig

    path = Path(model).expanduser()
    here = path / "config.json"
    checkpoint = Checkpoint(path) if here.is_file() else checkpoint_of(model, trust_remote_code=trust_remote_code)
    folder = checkpoint.base or checkpoint.folder
    with said.quiet_transformers():
        tokenizer = _read_tokenizer(folder, folder, trust_remote_code)
        with said.reading(folder):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
        said.refuse_other_kinds(config, folder, trust_remote_code=trust_remote_code)
        empty = _empty(config, folder, trust_remote_code).to(torch.float32 if dtype == "float32" else torch.bfloat16)
    return LoadedModel(model, empty.requires_grad_(False).eval(), tokenizer, checkpoint)


def _empty(config: Any, folder: Path, trust_remote_code: bool) -> Any:
    """A model of this configuration on the meta device."""
    from transformers import AutoModelForCausalLM

    with said.reading(folder), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def _read_model(
    folder: Path, dtype: torch.dtype, device_map: str | dict[str, str] | None, trust_remote_code: bool
) -> tuple[Any, tuple[str, ...]]:
    """The model of a checkpoint folder on its device, and a note of tensors that have no place in it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    def read(kind: Any, **options: object) -> Any:
        return kind.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True, **options)

    placing = {"device_map": device_map} if device_map else {}
    said.refuse_foreign_config(folder, trust_remote_code=trust_remote_code)
    with said.reading(folder):
        config = read(AutoConfig)
    said.refuse_other_kinds(config, folder, trust_remote_code=trust_remote_code)
    _refuse_much_larger(config, folder, trust_remote_code)
    with said.reading(folder):
        loaded, loading = read(
            AutoModelForCausalLM, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **placing
        )
    notes = said.refuse_misfits(str(folder), loaded, loading)
    return (loaded if device_map else loaded.to(pick_device())), notes


def _read_tokenizer(given: Path, folder: Path, trust_remote_code: bool) -> Any:
    """The tokenizer of `given`, an adapter's folder, where it has one, else of its base `folder`; the adapter's chat
    template goes before the base's."""
    from transformers import AutoTokenizer

    own = given if said.has_vocabulary(given) else folder
    said.refuse_without_tokenizer(own)
    with said.reading(own):
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


def _refuse_much_larger(config: Any, folder: Path, trust_remote_code: bool) -> None:
    """SpinError for a configuration of many more weights than the folder holds. transformers would fill the rest with
    random numbers until memory ends, and tell of it afterwards."""
    stored = Checkpoint(folder).tensors
    held = sum(math.prod(tensor.shape) for tensor in stored.values())
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0) or 0
    what = f"{folder} lacks most of the model's tensors: its config.json describes"
    cause = "config.json is another model's, or most of the weight files were left out."
    if isinstance(layers, int) and layers > len(stored):
        raise SpinError(f"{what} {layers:,} layers, and {len(stored):,} tensors are there.", cause=cause)
    wanted = sum(parameter.numel() for parameter in _empty(config, folder, trust_remote_code).parameters())
    if wanted > 2 * held + 1_000_000:
        raise SpinError(f"{what} {wanted:,} weights, and {held:,} are there.", cause=cause)


def _refuse_unknown_tokens(folder: Path, model: Any, tokenizer: Any) -> None:
    """SpinError when the tokenizer makes tokens that the embedding has no row for. Added tokens that neither the
    tokenizer nor its template uses may be such (Gemma's for images, in its text models)."""
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
