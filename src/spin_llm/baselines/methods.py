"""What each method trains, and what it leaves on disk.

In: a loaded model and settings. Out: the model with the method's parameters asking for gradients; afterwards a
checkpoint folder (full; lora and dora merged), a PEFT adapter folder (lora, dora), or a ReFT folder (reft). Every one
of them is a MODEL to `spin-llm eval`. Left out: the loop (loop.py); adapters of experts' fused parameters and of
biases.
"""

from __future__ import annotations

import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import parametrizations

from spin_llm.errors import SpinError
from spin_llm.models import Checkpoint, LoadedModel, editable_matrices, reft
from spin_llm.models.adapters import import_peft
from spin_llm.models.reft import Reft, ReftConfig, attach, save_reft
from spin_llm.models.said import quiet_transformers
from spin_llm.models.structure import decoder_layers
from spin_llm.outputs import scratch
from spin_llm.settings.training import BaselineSettings, layer_numbers, parse_positions

Placing = Callable[[list[str]], None]
ADAPTER = "adapter"
BESIDE_WEIGHTS = (".json", ".jinja", ".model", ".txt", ".py")  # of a checkpoint folder: config, tokenizer, template


def prepare(loaded: LoadedModel, settings: BaselineSettings) -> Any:
    """Make the method's parameters ask for gradients, new ones seeded; what `save` needs (the PEFT model, the Reft).

    full trains every parameter; the others leave the model's own frozen.
    """
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return {"full": _full, "lora": _lora, "dora": _lora, "reft": _reft}[settings.method](loaded, settings)


def _full(loaded: LoadedModel, settings: BaselineSettings) -> Any:
    for parameter in loaded.model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return loaded.model


def _lora(loaded: LoadedModel, settings: BaselineSettings) -> Any:
    peft = import_peft()
    matrices = editable_matrices(loaded.model, str(settings.target))
    if any(matrix.part is not None for matrix in matrices):
        raise SpinError(
            f"{settings.method} cannot be put on the experts of {settings.model}.",
            cause="they are fused in one parameter, on which PEFT has neither dropout nor DoRA.",
            change="give --target attention.",
        )
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=[matrix.name.removesuffix(".weight") for matrix in matrices],
        use_dora=settings.method == "dora",
        fan_in_fan_out=matrices[0].transposed,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name(settings.model),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT 0.21 asks transformers 5.23 by an old name
        adapted = peft.get_peft_model(loaded.model, config)  # changes loaded.model in place
    adapted.peft_config["default"].base_model_name_or_path = base_name(settings.model)
    return adapted


def _reft(loaded: LoadedModel, settings: BaselineSettings) -> Any:
    prefix, suffix = parse_positions(str(settings.positions))
    layers = layer_numbers(str(settings.layers)) or tuple(range(len(decoder_layers(loaded.model)[1])))
    hidden = loaded.model.config.get_text_config().hidden_size
    assert settings.rank is not None
    config = ReftConfig(
        base_name(settings.model), loaded.checkpoint.identity.weights, hidden, settings.rank, layers, prefix, suffix
    )
    reft = Reft(config)
    for one in reft.interventions.values():
        parametrizations.orthogonal(one, "rotation")
    attach(loaded.model, reft)
    return reft


def base_name(model: str) -> str:
    """How an adapter names its base, in whatever folder it is used later."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


def save(trained: Any, loaded: LoadedModel, settings: BaselineSettings, folder: Path, placing: Placing) -> Path:
    """Write what was trained; the folder of the model or adapter. Merged checkpoints are `save_checkpoint`'s.

    `placing` is told the names of files before the first of them is in the folder itself.
    """
    if settings.method == "full":
        save_checkpoint(loaded.model, loaded.checkpoint, folder, placing)
        return folder
    if settings.method == "reft":
        placing([reft.WEIGHTS, reft.CONFIG])
        save_reft(folder, trained)
        return folder
    trained.save_pretrained(folder / ADAPTER)
    (folder / ADAPTER / "README.md").unlink(missing_ok=True)  # PEFT's model card with nothing filled in
    return folder / ADAPTER


def save_checkpoint(model: Any, base: Checkpoint, folder: Path, placing: Placing) -> None:
    """Write the weights in the dtype of the checkpoint `base`, and beside them its config and tokenizer files as they
    are; config.json comes last, so that the folder is no model until it is complete."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()  # the base's own is copied; some cannot be saved by transformers
    with scratch(folder) as part:
        with quiet_transformers():
            model.to(stored_dtype(base)).save_pretrained(part)
        for path in base.folder.iterdir():
            if path.is_file() and path.suffix in BESIDE_WEIGHTS and not path.name.endswith(".index.json"):
                shutil.copyfile(path, part / path.name)
        placing(sorted(path.name for path in part.iterdir()))
        for path in sorted(part.iterdir(), key=lambda path: path.name == "config.json"):
            path.replace(folder / path.name)


def stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The dtype of most of a checkpoint's bytes."""
    sizes = Counter[torch.dtype]()
    for tensor in checkpoint.tensors.values():
        sizes[tensor.torch_dtype] += tensor.length
    return sizes.most_common(1)[0][0]
