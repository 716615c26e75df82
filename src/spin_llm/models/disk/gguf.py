"""A GGUF file as a model: what it is said in words, its tensors de-quantised.

In: a `.gguf` file. Out: what it is, where it is no whole chat model (SpinError); a float32 safetensors folder that
holds every tensor of the file and no other. Left out: splits, adapters, projectors and other files that are no chat
model, which are refused; the header's bytes (headers.py); where the folder is kept (resolve.py).
"""

from __future__ import annotations

import io
import math
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from spin_llm.errors import SpinError
from spin_llm.models.disk.headers import Array, GgufHeader, StoredTensor, read_gguf_header
from spin_llm.models.said import quiet_transformers, refuse_misfits, refuse_not_finite

ROPE_FACTORS = "rope_freqs.weight"
OTHER_KINDS = {
    "adapter": ("a LoRA adapter", "merge it into its base model, or give the adapter as a PEFT folder."),
    "mmproj": ("the vision or audio projector of a multimodal model", "give the GGUF file of the language model."),
    "imatrix": ("an importance matrix for quantising", "give the GGUF file of the model."),
    "vocab": ("a vocabulary without weights", "give the GGUF file of the model."),
    "diffusion": ("an image model", "give a chat model."),
}
ENCODERS = (
    *("bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "modern-bert"),
    *("gemma-embedding", "t5encoder"),
)


def refuse_other_kinds(header: GgufHeader, path: Path) -> None:
    """SpinError for GGUF files that are no whole chat model, by what they say of themselves."""
    get, architecture = header.metadata.get, header.architecture
    kind = get("general.type", "model")
    if "lora_a" in " ".join(name.rpartition(".")[2] for name in header.tensors):
        kind = "adapter"
    kind = "mmproj" if architecture == "clip" else kind
    parts = get("split.count", 1)
    if isinstance(parts, int) and parts > 1:
        number = get("split.no", 0)
        raise SpinError(
            f"{path} is part {number + 1 if isinstance(number, int) else '?'} of {parts} of a split model.",
            change=f"merge the parts with llama.cpp (llama-gguf-split --merge {path.name} WHOLE.gguf) and give that.",
        )
    if kind in OTHER_KINDS:
        what, change = OTHER_KINDS[str(kind)]
        raise SpinError(f"{path} is {what}, not a model.", change=change)
    if not header.tensors:
        raise SpinError(f"{path} holds no tensors.", cause="it has a vocabulary alone.", change=OTHER_KINDS["vocab"][1])
    pooled = get(f"{architecture}.pooling_type", 0) not in (0, -1, None)
    if architecture in ENCODERS or pooled or get(f"{architecture}.attention.causal") is False:
        raise SpinError(
            f"{path} is an embedding or encoder model ({architecture}), which writes no answers.",
            change="give the GGUF file of a chat model.",
        )
    tokens = get("tokenizer.ggml.tokens")
    merges = get("tokenizer.ggml.merges")
    lacking = "general.architecture" if not architecture else ""
    if not isinstance(tokens, Array) or not tokens.count:
        lacking = lacking or "tokenizer.ggml.tokens"
    elif get("tokenizer.ggml.model") == "gpt2" and (not isinstance(merges, Array) or not merges.count):
        lacking = lacking or "tokenizer.ggml.merges"
    if lacking:
        raise SpinError(
            f"{path} lacks {lacking}, without which it has no tokenizer or no layout.",
            cause="a conversion by an old or unfinished tool; some left out the merges of a BPE tokenizer.",
            change="give a newer GGUF file of the model, or its checkpoint folder.",
        )
    _check_blocks(header, path)


def _check_blocks(header: GgufHeader, path: Path) -> None:
    """SpinError where the layers that are announced are not the layers that are there."""
    announced = header.metadata.get(f"{header.architecture}.block_count")
    blocks = header.blocks
    if not isinstance(announced, int) or len(blocks) != announced or max(blocks, default=-1) != announced - 1:
        lost = next((number for number in range(len(blocks)) if number not in blocks), len(blocks))
        lacks = f" (blk.{lost} is not there)" if isinstance(announced, int) and announced > lost else ""
        raise SpinError(
            f"{path} announces {str(announced)[:40]} layers and holds {len(blocks)}{lacks}.",
            cause="a part of a split model, or a damaged conversion.",
            change="give the whole model (llama-gguf-split --merge joins parts).",
        )


def convert(path: Path, folder: Path) -> None:
    """De-quantise a GGUF file into the folder `folder`: a float32 safetensors checkpoint with its tokenizer. Raises
    SpinError when the file is not a whole chat model that transformers can read, when it lacks tensors, or when it
    holds some that would be dropped."""
    header = read_gguf_header(path)
    refuse_other_kinds(header, path)
    with quiet_transformers(), redirect_stderr(io.StringIO()):  # the GGUF reader draws a bar of its own
        model, tokenizer = _read_model(header, path)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _read_model(header: GgufHeader, path: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of a GGUF file, every weight of which is the file's."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    def read(kind: Any, **options: object) -> Any:
        return kind.from_pretrained(str(path.parent), gguf_file=path.name, local_files_only=True, **options)

    try:
        config = read(AutoConfig)
        _check_tensors(header, config, path)
        model, loading = read(
            AutoModelForCausalLM, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
        tokenizer = read(AutoTokenizer)
    except SpinError:
        raise
    except Exception as error:  # what two libraries raise on a strange file is no closed list
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SpinError(
            f"{path} could not be read as a GGUF model of the architecture {header.architecture!r}: {first}",
            cause="an architecture that this version of transformers cannot read from GGUF, or a damaged file.",
            change="update transformers, or give the model's checkpoint folder or hub id.",
        ) from error
    left_out = header.tensors.keys() - held_tensors(header)
    loading["unexpected_keys"] = set(loading["unexpected_keys"]) - left_out - {ROPE_FACTORS}
    refuse_misfits(str(path), model, loading)
    refuse_not_finite(str(path), model)
    _set_rope(model.config, header, path)
    for mark in ("is_quantized", "quantization_method", "hf_quantizer"):  # a model that says it is cannot be saved
        vars(model).pop(mark, None)
    vars(model.config).pop("quantization_config", None)
    return model, tokenizer


def held_tensors(header: GgufHeader) -> dict[str, StoredTensor]:
    """The tensors of the model itself: without rotary factors, and without layers that only predict further tokens."""
    further = header.metadata.get(f"{header.architecture}.nextn_predict_layers", 0)
    last = len(header.blocks) - (further if isinstance(further, int) else 0)
    left_out = tuple(f"blk.{number}." for number in header.blocks if number >= last)
    kept = [name for name in header.tensors if name != ROPE_FACTORS and not name.startswith(left_out)]
    return {name: header.tensors[name] for name in kept}


def _check_tensors(header: GgufHeader, config: Any, path: Path) -> None:
    """SpinError unless the weights of the model that `config` describes are as many as the file's. Only names known to
    the gguf package can be compared, and transformers drops, without a word, what it has no place for; numbers of
    weights leave nothing out."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    wanted = sum(parameter.numel() for parameter in model.parameters())
    held = {name: math.prod(tensor.shape) for name, tensor in held_tensors(header).items()}
    if config.tie_word_embeddings and "output.weight" in held:  # llama.cpp writes the tied head of some families twice
        del held["output.weight"]
    if wanted == sum(held.values()):
        return
    architecture = next((key for key, name in MODEL_ARCH_NAMES.items() if name == header.architecture), None)
    places: dict[str, str] = {}
    if architecture is not None:
        names = get_tensor_name_map(architecture, len(header.blocks))
        for name, _ in model.named_parameters():
            stem, _, suffix = name.rpartition(".")
            places[f"{names.get_name(stem)}.{suffix}"] = name
    lost = [place for place in places if place not in held and not place.startswith("None.")]
    extra = [name for name in held if name not in places]
    if wanted > sum(held.values()):
        what = f"lacks tensors of its model{f': {_some(lost)}' if lost else ''}"
        cause = "a part of a split model, or a damaged or unfinished conversion; their weights would be random."
    else:
        what = f"holds tensors for which its model has no place{f': {_some(extra)}' if extra else ''}"
        cause = "transformers reads this architecture from GGUF without them: another model would be measured."
    raise SpinError(
        f"{path} {what} ({wanted:,} weights are wanted, {sum(held.values()):,} are there).",
        cause=cause,
        change="give another GGUF file of the model, or its checkpoint folder or hub id.",
    )


def _set_rope(config: Any, header: GgufHeader, path: Path) -> None:
    """Put the rotary scaling of a GGUF file, which transformers does not read, into the configuration. llama.cpp stores
    the scaling of Llama 3 as a factor for each frequency. SpinError for factors of another scaling."""
    if ROPE_FACTORS not in header.tensors:
        return
    factors = header.tensors[ROPE_FACTORS]  # in float32, by llama.cpp
    stored = torch.frombuffer(factors.read(), dtype=torch.float32) if factors.dtype == "F32" else torch.zeros(1)
    if bool((stored == 1).all()):
        return
    base = header.metadata.get(f"{header.architecture}.rope.freq_base")
    theta = float(base) if isinstance(base, int | float) else 10_000.0
    rope = Llama3Rope(theta, float(stored.max()))
    if not torch.allclose(rope.factors(2 * len(stored)), stored, rtol=1e-3):
        raise SpinError(
            f"{path} scales its rotary positions by {ROPE_FACTORS} in a way that is not Llama 3's.",
            cause="transformers does not read these factors: another model would be measured.",
            change="give the model's checkpoint folder or hub id.",
        )
    config.rope_parameters = asdict(rope)


@dataclass(frozen=True)
class Llama3Rope:
    """The rotary scaling of Llama 3.1 and 3.2, with the numbers that all of its checkpoints share."""

    rope_theta: float
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    rope_type: str = "llama3"

    def factors(self, width: int) -> torch.Tensor:
        """What each of `width` / 2 frequencies is divided by, as llama.cpp's converter writes it."""
        waves = 2 * math.pi * self.rope_theta ** (torch.arange(0, width, 2) / width)
        smooth = self.original_max_position_embeddings / waves - self.low_freq_factor
        smooth = smooth / (self.high_freq_factor - self.low_freq_factor)
        between = 1 / ((1 - smooth) / self.factor + smooth)
        return torch.where(smooth > 1, torch.ones(()), torch.where(smooth < 0, torch.tensor(self.factor), between))


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
