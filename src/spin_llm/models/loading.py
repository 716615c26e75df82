"""A checkpoint folder loaded for scoring or generating.

In: a local folder, a dtype, a device. Out: the transformers model in eval mode with no parameter asking for a gradient,
its tokenizer, and where both came from. An adapter folder (adapters.py) is loaded as its base model with the adapter in
it. Left out: fetching (resolve.py) and which matrices can be edited (structure.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from spin_llm.errors import SpinError
from spin_llm.models.adapters import adapter_base, put_on
from spin_llm.models.checkpoint import Checkpoint
from spin_llm.models.resolve import Say, resolve

DTYPE_CHOICES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory.

    `name` is what the user typed, `checkpoint` the folder it was read from.
    """

    name: str
    model: Any
    tokenizer: Any
    checkpoint: Checkpoint

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
    """`auto` is bfloat16 where the hardware multiplies it natively (CUDA from Ampere, CPUs with AVX512-BF16 or AMX),
    else float32."""
    if dtype not in DTYPE_CHOICES:
        raise SpinError(f"Unknown dtype {dtype!r}.", change=f"--dtype takes one of {', '.join(DTYPE_CHOICES)}.")
    if dtype != "auto":
        return torch.float32 if dtype == "float32" else torch.bfloat16
    device = device or pick_device()
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def load(
    model: str,
    *,
    dtype: str = "auto",
    device_map: str | None = None,
    trust_remote_code: bool = False,
    say: Say = lambda message: None,
) -> LoadedModel:
    """Resolve and load `model`.

    Raises SpinError when it is unknown, quantised, or not a causal language model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    given = resolve(model, say=say)
    base = adapter_base(given)
    folder = given if base is None else resolve(base, say=say)
    device = pick_device()
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    placing = {"device_map": device_map} if device_map else {}
    read: Any = AutoModelForCausalLM.from_pretrained  # its type knows no output_loading_info
    try:
        with quiet_transformers():
            refuse_quantised(AutoConfig.from_pretrained(folder, **options), folder)
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
            loaded, loading = read(
                folder, dtype=pick_dtype(dtype, device), output_loading_info=True, **placing, **options
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SpinError(
            f"{folder} could not be loaded as a causal language model: {first_line}",
            cause="a damaged or incomplete folder, or an architecture that this transformers version does not know.",
        ) from error
    if missing := sorted(loading["missing_keys"]):  # transformers fills these with random numbers
        raise SpinError(
            f"{folder} lacks {len(missing)} of the model's tensors, such as {', '.join(missing[:3])}.",
            cause="an incomplete checkpoint, or an encoder's, which has no language-model head.",
        )
    if not device_map:
        loaded.to(device)
    if base is not None:
        loaded = put_on(loaded, given, folder)
    loaded.requires_grad_(False).eval()
    return LoadedModel(model, loaded, tokenizer, Checkpoint(given, None if base is None else folder))


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
def quiet_transformers() -> Iterator[None]:
    """No progress bars or advice from transformers inside: this command prints its own."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
