"""What all tests share: tiny checkpoints made once per session, tolerances, and the shared data where it is.

Nothing here touches SPIN_LLM_CACHE or the network; tests marked `real_model` use the cache that the user has.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import settings
from skips import pytest_sessionfinish, pytest_terminal_summary  # noqa: F401

from spin_llm.models import LoadedModel, load

# The same draws on every machine; no deadline, since a shared machine stalls.
settings.register_profile("spin", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("spin")

# How far a quantity of two computations may lie apart, relative to the largest entry of the reference.
# float32: sums of a few hundred products, each rounded to 2**-24, in another order; measured below 2e-6.
# bfloat16: activations and gradients rounded to 2**-9 through three layers, forwards and backwards; a plain autograd
# pass in bfloat16 is up to 0.08 away from float32 on the tiny models.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.1}
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

TinyFolder = Callable[..., Path]
TinyModel = Callable[..., LoadedModel]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> TinyFolder:
    """`tiny_folder(NAME, **options of tiny.save)`: a checkpoint folder, made once; tests must not write to it."""
    made: dict[tuple[Any, ...], Path] = {}

    def folder(name: str, **options: Any) -> Path:
        key = (name, *sorted(options.items(), key=str))
        if key not in made:
            made[key] = tiny.save(name, tmp_path_factory.mktemp(name), **options)
        return made[key]

    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: TinyFolder) -> TinyModel:
    """`tiny_model(NAME, dtype="float32", **options of tiny.save)`: a newly loaded model, which the test may change."""

    def loaded(name: str, *, dtype: str = "float32", **options: Any) -> LoadedModel:
        return load(str(tiny_folder(name, **options)), dtype=dtype)

    return loaded


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data files beside the checkout; the data are licensed for non-commercial use and not shipped."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the data folder ../shared/data is not beside this checkout")
    return SHARED_DATA
