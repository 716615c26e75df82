"""Tiny random models and a byte-level tokenizer, built from configs: every test runs offline and in seconds.

`build(NAME)` gives a model, `save(NAME, FOLDER)` a checkpoint folder with its tokenizer, `examples()` token sequences
of very unequal length. All are functions of their seed. The layouts: llama, qwen2 (biases), mistral (sliding window),
gemma3 (soft-capped logits, sliding window), gpt_neox (fused QKV, parallel residual), gpt2 (Conv1D, dropout, tied head),
qwen3_moe (fused experts, one dense layer), qwen2_moe (a shared expert too), mixtral (other names in the checkpoint),
gpt_oss (experts fused in the checkpoint too, transposed: not editable), mamba (no attention and no MLP: cannot be
classified).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast

from spin_llm import scores
from spin_llm.data import Example
from spin_llm.models import LoadedModel, Matrix, editable_matrices
from spin_llm.patch.patch import loaded_weights, named_weight
from spin_llm.progress import Advance, Console
from spin_llm.results.edited import Recipe
from spin_llm.scores import MatrixScores, Passes, Scores, ScoreSet, Scoring
from spin_llm.selection import Selection
from spin_llm.selection import select as selection_of

VOCABULARY = 384
CHAT = (
    "{% for m in messages %}<|bos|>{{ m['role'] }}: {{ m['content'] }}<|eos|>{% endfor %}"
    "{% if add_generation_prompt %}<|bos|>assistant: {% endif %}"
)
CORPUS = (
    "What is the capital of France? The capital of France is Paris.",
    "Please keep the address of my neighbour private, and treat everybody with respect.",
    "I cannot share personal data, but I can explain how to ask for consent.",
    "user: why is the sky blue? assistant: because of the way that light scatters in the air.",
)

_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_SPECIAL = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _GROUPED),
    "qwen2": ("Qwen2Config", _GROUPED),
    "mistral": ("MistralConfig", {**_GROUPED, "sliding_window": 8, "head_dim": 8}),
    "gemma3": (
        "Gemma3TextConfig",
        {
            **_GROUPED,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 8,
            "final_logit_softcapping": 3.0,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
    ),
    "gpt_neox": ("GPTNeoXConfig", {**_SIZES, "use_parallel_residual": True}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_inner": 48, "n_layer": 3, "n_head": 4, "n_positions": 256}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {
            **_GROUPED,
            "head_dim": 8,
            "moe_intermediate_size": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "mlp_only_layers": [0],
        },
    ),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {
            **_GROUPED,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 24,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
    "mixtral": ("MixtralConfig", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": ("GptOssConfig", {**_GROUPED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "mamba": ("MambaConfig", {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2}),
}
# prompt and response tokens
LENGTHS = ((1, 1), (1, 9), (12, 1), (59, 1), (1, 59), (5, 5), (7, 20), (20, 7), (3, 2), (11, 4), (9, 9))
DENSE = ("llama", "qwen2", "mistral", "gemma3", "gpt_neox", "gpt2")
MOE = ("qwen3_moe", "qwen2_moe", "mixtral")


def config(name: str) -> PreTrainedConfig:
    kind, options = CONFIGS[name]
    made = getattr(transformers, kind)(**options, **_SPECIAL)
    # large enough for attention and activations to leave their linear range
    made.initializer_range = 0.2
    return made


def build(name: str, seed: int = 0) -> Any:
    """A random float32 model in eval mode; biases and norms are moved off their initial 0 and 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config(name), dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@cache
def _trained_tokenizer() -> Tokenizer:
    trained = Tokenizer(tokenizer_models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|bos|>", "<|eos|>", "<|pad|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(CORPUS, trainer)
    return trained


def tokenizer(*, chat: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `VOCABULARY` tokens trained on `CORPUS`; ids 0, 1, 2 are BOS, EOS, padding."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_tokenizer().to_str()),
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        pad_token="<|pad|>",
    )
    fast.chat_template = CHAT if chat else None
    return fast


def save(
    name: str,
    folder: Path,
    *,
    chat: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
) -> Path:
    """Model and tokenizer in `folder`; a small `max_shard_size` (such as "20KB") gives a sharded checkpoint."""
    build(name, seed).to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer(chat=chat).save_pretrained(folder)
    return folder


def examples(seed: int = 0) -> list[Example]:
    """Eleven examples of 2 to 60 tokens: prompts of 1 token, responses of 1 token, both, and ordinary ones."""
    draw = random.Random(seed)
    made: list[Example] = []
    for prompt, response in LENGTHS:
        ids = tuple(draw.randrange(3, VOCABULARY) for _ in range(prompt + response))
        made.append(Example(ids, response, 0, f"prompt {len(made)}"))
    return made


def selection(matrices: Sequence[Matrix], *, per_matrix: int = 7, seed: int = 0) -> Selection:
    """`per_matrix` random weights of each of `matrices`, as the rule `coupled` would hand them over."""
    generator = torch.Generator().manual_seed(seed)
    indices = {
        matrix.name: torch.randperm(matrix.weight.numel(), generator=generator)[:per_matrix].sort().values
        for matrix in matrices
    }
    empty = torch.empty(0, dtype=torch.int64)
    places = {
        m.name: MatrixScores(empty, empty.float(), (m.weight.shape[0], m.weight.shape[1]), m.layer, m.kind)
        for m in matrices
    }
    recipe = Recipe("coupled", 0.01, protect_ratio=0.01, target="all")
    return Selection(indices, recipe, places, len(indices) * per_matrix)


def select(
    concepts: Mapping[str, Scores],
    protected: Mapping[str, Scores],
    *,
    rule: str = "coupled",
    allow_empty: bool = False,
    fractions: Mapping[str, float] | None = None,
    **options: Any,
) -> Selection:
    """`spin_llm.select` with the recipe's options as keywords."""
    recipe = Recipe(rule, fractions=tuple((fractions or {}).items()), **options)
    return selection_of(ScoreSet(concepts, protected), recipe, allow_empty=allow_empty)


def score_concept(
    loaded: LoadedModel,
    aware: Sequence[Any],
    unaware: Sequence[Any] = (),
    *,
    candidates: Mapping[str, torch.Tensor] | None = None,
    **options: Any,
) -> Scores:
    """`spin_llm.score_concept` with the fields of Scoring and Passes as keywords."""
    names = {field.name for field in fields(Passes)}
    passes = Passes(**{name: value for name, value in options.items() if name in names})
    how = Scoring(**{name: value for name, value in options.items() if name not in names})
    return scores.score_concept(loaded, aware, unaware, how, candidates=candidates, passes=passes)


def mlp_selection(model: Any, **options: Any) -> Selection:
    return selection(editable_matrices(model, "mlp"), **options)


def loaded_parameter(model: Any, name: str) -> torch.Tensor:
    """The loaded model's weights for a checkpoint's tensor name: a view."""
    return named_weight(loaded_weights(model), name)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in _files(folder)}


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def recording_console() -> tuple[Console, dict[str, list[int]]]:
    """A console, and what its bars were told: [total, done] by title."""
    bars: dict[str, list[int]] = {}

    @contextmanager
    def bar(title: str, total: int) -> Iterator[Advance]:
        bars[title] = [total, 0]

        def advance(done: int) -> None:
            bars[title][1] += done

        yield advance

    return Console(bar=bar), bars
