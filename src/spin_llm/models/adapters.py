"""Adapter folders: what a fine-tuning method learned, apart from the model that it belongs to.

In: a folder with `adapter_config.json` (LoRA or DoRA, as PEFT writes it) or `reft_config.json` (reft.py). Out: the name
of its base model; the loaded base with the adapter in it: LoRA and DoRA merged into the weights, ReFT as hooks. Every
tensor of the adapter must have a place in the model, and every place its tensor. Left out: other kinds of PEFT
adapters, and pickled ones (`adapter_model.bin`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from spin_llm.errors import SpinError
from spin_llm.files import is_folder, read_typed
from spin_llm.models import reft
from spin_llm.models.disk.checkpoint import Checkpoint, adapter_file

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
ONE_NAME = "default"  # what PEFT calls an adapter that has no name


@dataclass(frozen=True)
class PeftConfig:
    """What this package reads of `adapter_config.json`; PEFT reads the rest."""

    peft_type: str | None = None
    base_model_name_or_path: str | None = None
    r: int = 8
    lora_alpha: float = 8
    target_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    use_dora: bool = False


def adapter_base(folder: Path) -> str | None:
    """The base model that an adapter folder names; None for a folder that is no adapter (a checkpoint has config.json).
    A relative path is looked for in the adapter's folder first, then in the current one. SpinError when it names
    none."""
    config = adapter_config(folder)
    if config is None:
        return None
    if config.name == PEFT_CONFIG:
        key, base = "base_model_name_or_path", read_typed(config, PeftConfig).base_model_name_or_path
    else:
        key, base = "base", reft.read_config(folder).base
    if not base:
        raise SpinError(f"{config} names no base model.", change=f"add it under {key!r}.")
    beside = folder / Path(base).expanduser()
    named = str(beside) if is_folder(beside) and (beside / "config.json").is_file() else base
    if is_folder(named) and adapter_config(Path(named).expanduser()):
        raise SpinError(
            f"The base model that {config} names, {base}, is an adapter itself.",
            change=f"merge that one with PEFT, and name the merged checkpoint under {key!r}.",
        )
    return named


def adapter_config(folder: Path) -> Path | None:
    """The file that makes a folder an adapter; None for a folder that is none."""
    names = (PEFT_CONFIG, reft.CONFIG) if adapter_file(folder) else ()
    return next((folder / name for name in names if (folder / name).is_file()), None)


def put_on(model: Any, folder: Path, base: Path) -> tuple[Any, tuple[str, ...]]:
    """The loaded model of the checkpoint folder `base` with the adapter in it, and what is to be said of it."""
    if adapter_config(folder) == folder / PEFT_CONFIG:
        return _merged(model, folder, base)
    adapter = reft.load_reft(folder)
    checkpoint = Checkpoint(base)
    if adapter.config.base_fingerprint not in (checkpoint.identity.weights, checkpoint.sampled_fingerprint):
        raise SpinError(
            f"{base} is not the model that the ReFT adapter {folder} was trained on.",
            cause="another model, or another version of it, under the same name.",
            change=f"restore the model {adapter.config.base}.",
        )
    reft.attach(model, adapter)
    return model, ()


def _merged(model: Any, folder: Path, base: Path) -> tuple[Any, tuple[str, ...]]:
    """The base with a LoRA or DoRA merged in; SpinError when they do not fit each other."""
    peft = import_peft()
    known = read_typed(folder / PEFT_CONFIG, PeftConfig)
    if known.peft_type != "LORA" or not (folder / PEFT_WEIGHTS).is_file():
        kind, pickled = known.peft_type, ""
        if (folder / "adapter_model.bin").is_file():
            pickled = " but a pickled adapter_model.bin, which is never read"
        raise SpinError(
            f"{folder} is not a LoRA or DoRA adapter in safetensors.",
            cause=f"peft_type is {kind!r}." if kind != "LORA" else f"it has no {PEFT_WEIGHTS}{pickled}.",
            change="merge it with PEFT and give the merged checkpoint.",
        )
    tensors = _read_tensors(folder, known)
    _resize(model, tensors)
    what = f"The adapter {folder} does not fit its base model {base}"
    misfit = partial(
        SpinError,
        cause="another base model than the one it was trained on, another PEFT version, or a damaged adapter.",
        change="name the base model that it was trained on under 'base_model_name_or_path', or merge it with PEFT.",
    )
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        wrapped = peft.PeftModel(model, config, ONE_NAME)
        result = wrapped.load_adapter(str(folder), ONE_NAME, torch_device=str(model.device))
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, NotImplementedError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        shapes = [line for line in lines if line.startswith("size mismatch")]
        raise misfit(f"{what}: {(shapes or lines)[0]}") from error
    lost, extra = list(result.missing_keys), list(result.unexpected_keys)
    if lost or extra:
        shown = [*(f"{name} has no place" for name in extra[:2]), *(f"{name} is missing" for name in lost[:2])]
        raise misfit(
            f"{what}: {len(tensors) - len(extra)} of its {len(tensors)} tensors have a place in it, and "
            f"{len(lost)} that it should have are missing ({'; '.join(shown)})."
        )
    return wrapped.merge_and_unload(), _without_effect(folder, tensors)


def _read_tensors(folder: Path, config: PeftConfig) -> dict[str, torch.Tensor]:
    """The adapter's tensors; SpinError when they are damaged, not finite, no numbers, or not of the rank announced."""
    file = folder / PEFT_WEIGHTS
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise SpinError(f"{file} cannot be read: {error}", cause="a damaged or incomplete adapter.") from None
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise SpinError(
                f"{file}: {name} is stored as {str(tensor.dtype).removeprefix('torch.')}.",
                cause="a quantised adapter, whose stored numbers are not its weights.",
                change="give the adapter in float32, bfloat16 or float16.",
            )
        if not bool(torch.isfinite(tensor).all()):
            raise SpinError(
                f"{file}: {name} holds NaN or infinite numbers.",
                cause="training that diverged, or a damaged file.",
                change="train or fetch the adapter again.",
            )
    ranks = {config.r, *config.rank_pattern.values()}
    largest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    if not tensors or min(ranks) < 1 or max(ranks) > largest:
        raise SpinError(
            f"{folder / PEFT_CONFIG} announces rank {max(ranks)}, and {PEFT_WEIGHTS} holds {len(tensors)} tensors of "
            f"at most {largest} rows.",
            cause="a damaged adapter, or the configuration of another one.",
        )
    return tensors


def _resize(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Give the model the vocabulary of an adapter that brings an embedding, or a head, of another size."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {name: module for name, module in model.named_modules() if module is embedding or module is head}
    for name, module in names.items():
        for key, tensor in tensors.items():
            whole = key.removeprefix("base_model.model.").removesuffix(".weight").removesuffix(".base_layer")
            if whole.removesuffix(".modules_to_save") == name and tensor.shape[-1] == module.weight.shape[-1]:
                if len(tensor) != len(module.weight):
                    model.resize_token_embeddings(len(tensor), mean_resizing=False)
                return


def _without_effect(folder: Path, tensors: dict[str, torch.Tensor]) -> tuple[str, ...]:
    """A line for an adapter that changes nothing: the second factor of every product is zero."""
    second = [tensor for name, tensor in tensors.items() if "lora_B" in name or "lora_embedding_B" in name]
    others = [name for name in tensors if "lora_" not in name or "magnitude" in name]
    if others or not second or any(bool(tensor.any()) for tensor in second):
        return ()
    return (f"the adapter {folder} changes nothing: all of its {len(second)} B matrices are zero, as before training",)


def import_peft() -> Any:
    """The package peft, which only adapters need; SpinError when it is not installed."""
    try:
        import peft
    except ImportError:
        change = "pip install 'spin-llm[baselines]', or peft."
        raise SpinError("LoRA and DoRA need the package peft.", change=change) from None
    return peft
