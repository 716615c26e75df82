"""What transformers says while it loads: its warnings as lines, tensors that do not fit as errors.

In: a loaded model and what transformers told of the loading. Out: a context in which it prints nothing and its warnings
are kept; SpinError where a weight is missing, unexpected, of another shape or not finite, and so not the checkpoint's
own. Left out: loading (loading.py).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypedDict

import torch

from spin_llm.errors import SpinError
from spin_llm.models.structure import decoder_layers

UNHEARD = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning, ResourceWarning)


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
