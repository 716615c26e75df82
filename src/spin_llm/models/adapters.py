"""Adapter folders: what a fine-tuning method learned, apart from the model that it belongs to.

In: a folder with `adapter_config.json` (LoRA or DoRA, as PEFT writes it) or `reft_config.json` (reft.py). Out: the name
of its base model; the loaded base with the adapter in it: LoRA and DoRA merged into the weights, ReFT as hooks. Left
out: other kinds of PEFT adapters, and pickled adapters (`adapter_model.bin`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spin_llm.errors import SpinError
from spin_llm.files import read_json
from spin_llm.models import reft
from spin_llm.models.checkpoint import Checkpoint

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
BASE_KEYS = {PEFT_CONFIG: "base_model_name_or_path", reft.CONFIG: "base"}


def adapter_base(folder: Path) -> str | None:
    """The base model that an adapter folder names; None for a folder that is no adapter (a checkpoint has config.json).

    SpinError when it names none.
    """
    config = adapter_config(folder)
    if config is None:
        return None
    base = read_json(config).get(BASE_KEYS[config.name])
    if not isinstance(base, str) or not base:
        raise SpinError(f"{config} names no base model.", change=f"add it under {BASE_KEYS[config.name]!r}.")
    return base


def adapter_config(folder: Path) -> Path | None:
    """The file that makes a folder an adapter."""
    if (folder / "config.json").is_file():
        return None
    return next((folder / name for name in BASE_KEYS if (folder / name).is_file()), None)


def put_on(model: Any, folder: Path, base: Path) -> Any:
    """The loaded model of the checkpoint folder `base` with the adapter in it."""
    if adapter_config(folder) == folder / PEFT_CONFIG:
        return _merged(model, folder)
    adapter = reft.load_reft(folder)
    checkpoint = Checkpoint(base)
    if adapter.config.base_fingerprint not in (checkpoint.identity.weights, checkpoint.sampled_fingerprint):
        raise SpinError(
            f"{base} is not the model that the ReFT adapter {folder} was trained on.",
            cause="another model, or another version of it, under the same name.",
            change=f"restore the model {adapter.config.base}.",
        )
    reft.attach(model, adapter)
    return model


def _merged(model: Any, folder: Path) -> Any:
    peft = import_peft()
    kind = read_json(folder / PEFT_CONFIG).get("peft_type")
    if kind != "LORA" or not (folder / PEFT_WEIGHTS).is_file():
        raise SpinError(
            f"{folder} is not a LoRA or DoRA adapter in safetensors.",
            cause=f"peft_type is {kind!r}." if kind != "LORA" else f"it has no {PEFT_WEIGHTS}.",
            change="merge it with PEFT and give the merged checkpoint.",
        )
    return peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload()


def import_peft() -> Any:
    """The package peft, which only adapters need; SpinError when it is not installed."""
    try:
        import peft
    except ImportError:
        raise SpinError(
            "LoRA and DoRA need the package peft.", change="pip install 'spin-llm[baselines]', or peft."
        ) from None
    return peft
