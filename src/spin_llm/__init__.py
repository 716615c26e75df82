"""Spin-llm: find the weights that couple a chat model's fairness and privacy awareness, suppress them, and prove what
changed.

The verbs of the command are functions with the command's defaults: `run`, `sweep`, `select_from_folder`,
`evaluate_models`, `stability`, `apply_checkpoint`, `revert_checkpoint`; without a run folder `load`, `load_pairs`,
`score`, `search`, `select` by a `Recipe`, `make_patch`, `evaluate` by what `load_judge` gives, `write_report` of its
results, and `Patch`, whose `applied(model)` is a context manager. Importing this package imports nothing heavy: a name
is looked up when it is first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_HOMES = {  # the module of each public name
    "SpinError": "errors",
    "RunSettings": "settings",
    **dict.fromkeys(("load_pairs", "load_questions"), "data"),
    "load": "models",
    **dict.fromkeys(("score", "score_concept", "Scoring", "ScoreSet", "load_scores", "save_scores"), "scores"),
    "Recipe": "results.edited",
    "search": "search.find",
    "select": "selection",
    "Patch": "patch.patch",
    **dict.fromkeys(("make_patch", "load_patch", "save_patch", "apply_checkpoint", "revert_checkpoint"), "patch.file"),
    **dict.fromkeys(("sweep", "run", "select_from_folder", "evaluate_models", "stability"), "pipeline"),
    "load_judge": "judges.named",
    **dict.fromkeys(("evaluate", "write_report"), "pipeline.compare_stage"),
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("spin-llm")
    if name not in _HOMES:
        raise AttributeError(f"module 'spin_llm' has no attribute {name!r}")
    return getattr(import_module(f"spin_llm.{_HOMES[name]}"), name)


class _Verbs(ModuleType):
    """This package: the verbs `search` and `evaluate` stay verbs when the import system binds folders of these
    names."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Verbs
