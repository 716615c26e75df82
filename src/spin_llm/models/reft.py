"""LoReFT: low-rank edits of hidden states at a few prompt tokens, put on a loaded model and taken off again.

    Phi(h) = h + R^T (W h + b - R h),   R (rank, hidden) with orthonormal rows, W (rank, hidden), b (rank,)

(Wu et al. 2024, "ReFT: Representation Finetuning for Language Models", equation 2.) In: a folder with
`reft_config.json` and `reft.safetensors`, or untrained interventions. Out: the model whose chosen decoder layers give
Phi(h) at the first `prefix` and the last `suffix` tokens of each prompt, and h everywhere else; the two kinds of
places have interventions of their own, and of a short prompt each takes at most half, as in the authors' pyreft.
The places depend on the prompt, so that this cannot be merged into weights. Left out: training (baselines).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from spin_llm.errors import SpinError
from spin_llm.files import read_typed, write_json
from spin_llm.models.structure import decoder_layers
from spin_llm.outputs import writing

CONFIG = "reft_config.json"
WEIGHTS = "reft.safetensors"


@dataclass(frozen=True)
class ReftConfig:
    """`base` names the model, `base_fingerprint` hashes its weights; decoder `layers` are counted from 0."""

    base: str
    base_fingerprint: str
    hidden: int
    rank: int
    layers: tuple[int, ...]
    prefix: int
    suffix: int


class Loreft(nn.Module):
    """One intervention: (..., hidden) to (..., hidden), computed in the dtype of its parameters."""

    def __init__(self, hidden: int, rank: int) -> None:
        super().__init__()
        self.rotation = nn.Parameter(nn.init.orthogonal_(torch.empty(rank, hidden)))
        self.source = nn.Linear(hidden, rank)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        rotation = self.rotation  # once: while it is trained it is computed
        wide = states.to(rotation.dtype)
        # (..., rank) @ (rank, hidden)
        return (wide + (self.source(wide) - wide @ rotation.T) @ rotation).to(states.dtype)


class Reft(nn.Module):
    """The interventions of all layers, and where in the batch that is being computed they apply."""

    def __init__(self, config: ReftConfig) -> None:
        super().__init__()
        self.config = config
        parts = [part for part in ("prefix", "suffix") if getattr(config, part)]
        self.interventions = nn.ModuleDict(
            {f"{layer}-{part}": Loreft(config.hidden, config.rank) for layer in config.layers for part in parts}
        )
        self.lengths: Sequence[int] | None = None  # of the prompts of a batch padded on the right, where they are told
        self.generating = False  # whether prompts come padded on the left, then their answers token by token
        self.places: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def find_places(self, width: int, mask: torch.Tensor | None) -> None:
        """Set `places` for the batch that comes: (rows, columns) of the prefix and of the suffix tokens. The prompts
        are `lengths` where they are told, else, when generation starts, all that the mask shows. SpinError when neither
        says where a prompt ends."""
        self.places = {}
        if self.lengths is not None:
            spans = [(0, length) for length in self.lengths]
        elif not self.generating:
            raise SpinError(
                "A model with ReFT has to be told where the prompts end.",
                cause="it was asked for likelihoods by code that knows nothing of prompts, such as an lm-eval task.",
                change="leave out --capabilities for this model.",
            )
        else:
            assert mask is not None
            if mask.shape[1] != width:  # an answer's tokens: the mask shows the prompts too
                return
            spans = list(zip(mask.argmax(1).tolist(), mask.sum(1).tolist(), strict=True))
        assert all(start + length <= width for start, length in spans)
        for part in ("prefix", "suffix"):
            places = [(row, column) for row, span in enumerate(spans) for column in self._columns(part, *span)]
            if places:
                rows, columns = torch.tensor(places).T
                self.places[part] = (rows, columns)

    def _columns(self, part: str, start: int, length: int) -> range:
        count = min(getattr(self.config, part), length // 2)
        return range(start, start + count) if part == "prefix" else range(start + length - count, start + length)

    def edit(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """The hidden states (prompts, tokens, hidden) after one layer with the interventions in them."""
        for part, places in self.places.items():
            here = (places[0].to(hidden.device), places[1].to(hidden.device))
            hidden = hidden.index_put(here, self.interventions[f"{layer}-{part}"](hidden[here]))
        return hidden


def attach(model: Any, reft: Reft) -> list[Any]:
    """Put `reft` on a model as its submodule `reft`; the hooks that do it, without which the model is as before."""
    layers = decoder_layers(model)[1]
    if max(reft.config.layers) >= len(layers) or reft.config.hidden != model.config.get_text_config().hidden_size:
        raise SpinError(
            f"The ReFT interventions do not fit this model of {len(layers)} layers.",
            cause="they are for another model.",
        )
    model.reft = reft.to(next(model.parameters()).device)

    def before(module: nn.Module, args: tuple[Any, ...], options: dict[str, torch.Tensor]) -> None:
        tokens = args[0] if args else options["input_ids"]
        reft.find_places(tokens.shape[1], options.get("attention_mask"))

    def after(layer: int) -> Any:
        def edit(module: nn.Module, args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (reft.edit(layer, output[0]), *output[1:])
            return reft.edit(layer, output)

        return edit

    hooks = [model.register_forward_pre_hook(before, with_kwargs=True)]
    return hooks + [layers[layer].register_forward_hook(after(layer)) for layer in reft.config.layers]


def generating(model: Any) -> AbstractContextManager[None]:
    """Inside, prompts come padded on the left, then their answers; without ReFT this changes nothing."""
    return _told(model, "generating", True)


def prompt_lengths(model: Any, lengths: Sequence[int]) -> AbstractContextManager[None]:
    """Inside, a batch padded on the right has prompts of `lengths` tokens; without ReFT this changes nothing."""
    return _told(model, "lengths", lengths)


@contextmanager
def _told(model: Any, name: str, value: object) -> Iterator[None]:
    """Inside, the interventions of a model, if it has any, have `value` as their attribute `name`."""
    reft = getattr(model, "reft", None)
    before = getattr(reft, name, None)
    if reft is not None:
        setattr(reft, name, value)
    try:
        yield
    finally:
        if reft is not None:
            setattr(reft, name, before)


def save_reft(folder: Path, reft: Reft) -> None:
    """Write the folder that `load_reft` reads; the configuration, by which a folder is known, comes last."""
    tensors: dict[str, torch.Tensor] = {}
    for name, one in reft.interventions.items():
        assert isinstance(one, Loreft)
        parts = {"rotation": one.rotation, "source.weight": one.source.weight, "source.bias": one.source.bias}
        tensors |= {f"{name}.{part}": tensor.detach().cpu().contiguous() for part, tensor in parts.items()}
    with writing(folder / WEIGHTS) as part_file:
        save_file(tensors, part_file)
    write_json(folder / CONFIG, asdict(reft.config))


def read_config(folder: Path) -> ReftConfig:
    """The configuration of a ReFT folder; SpinError when it is damaged or describes no intervention."""
    config = read_typed(folder / CONFIG, ReftConfig)
    layers = config.layers
    sizes = (config.hidden, config.rank, config.prefix + config.suffix)
    if not layers or min(layers) < 0 or len(set(layers)) < len(layers) or min(sizes) < 1 or config.rank > config.hidden:
        raise SpinError(
            f"{folder / CONFIG} describes no interventions that can be: rank {config.rank} of {config.hidden}, layers "
            f"{str(list(layers))[:60]}, {config.prefix} first and {config.suffix} last tokens.",
            cause="the file is damaged or was edited by hand.",
        )
    return config


def load_reft(folder: Path) -> Reft:
    """Read a ReFT folder; SpinError when it is incomplete or damaged, or its tensors are not those it describes."""
    config = read_config(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise SpinError(f"{folder} is not a readable ReFT adapter: {str(error).splitlines()[0]}") from None
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("rotation", "source.weight"), (config.rank, config.hidden))
    shapes["source.bias"] = (config.rank,)
    parts = [part for part in ("prefix", "suffix") if getattr(config, part)]
    wanted = {
        f"{layer}-{part}.{name}": shape for layer in config.layers for part in parts for name, shape in shapes.items()
    }
    wrong = [name for name in {**wanted, **tensors} if name not in tensors or tensors[name].shape != wanted.get(name)]
    wrong += [name for name, tensor in tensors.items() if not tensor.is_floating_point() or not tensor.isfinite().all()]
    if wrong:
        raise SpinError(
            f"{folder} is not a readable ReFT adapter: of its {len(tensors)} tensors and the {len(wanted)} that it "
            f"should have, {len(wrong)} do not fit or hold no finite numbers ({', '.join(sorted(set(wrong))[:3])}).",
            cause="a damaged adapter, or the configuration of another one.",
        )
    reft = Reft(config)
    reft.interventions.load_state_dict(tensors)
    return reft
