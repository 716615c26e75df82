"""Tensors that do not fit: missing, unexpected, mismatched or not finite.

In: a loaded model and what transformers said of the loading. Out: SpinError where a weight is not the checkpoint's own.
Left out: loading (loading.py).
"""

from __future__ import annotations

from typing import Any, TypedDict

import torch

from spin_llm.errors import SpinError
from spin_llm.models.structure import decoder_layers


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
