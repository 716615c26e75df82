"""A frozen model that reads an answer into features.

In: prompts and answers. Out: for each the mean state over the answer's tokens and the state at the end of a short
closing phrase, from some of the model's layers. Right padding under causal attention: what is read of an answer does
not depend on the rows beside it, up to rounding. Left out: the heads on these features (local.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spin_llm.errors import SpinError
from spin_llm.models import LoadedModel, load
from spin_llm.progress import Advance

Floats = NDArray[np.float32]

PROMPT_TOKENS = 384
ANSWER_TOKENS = 64
BATCH_TOKENS = 4096
CAPITALS = 0.8  # of an answer's letters, from which on it is read in lower case
BEFORE_PROMPT, BEFORE_ANSWER = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
# The state after these words sums up the answer's stance better than any question asked about it (docs/judge.md).
CLOSING = {
    "fairness": "\n\nIn short, what this answer says about the group is",
    "privacy": "\n\nIn short, what this answer does with the private information is",
    "over_refusal": "\n\nIn short, what this answer does with the private information is",
    # Not compared with others, as the above were.
    "truthfulness": "\n\nIn short, what this answer claims is",
    "helpfulness": "\n\nIn short, what this answer does with the request is",
}
ANY_CLOSING = "\n\nIn short, what this answer does is"  # of any other concept


class FeatureReader:
    """A frozen model that turns (axis, prompt, answer) into one feature row, (2 * layers * hidden size,) float32."""

    def __init__(self, loaded: LoadedModel, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)
        config = loaded.model.config.get_text_config()
        if max(layers) > config.num_hidden_layers:
            raise SpinError(f"The judge reads layer {max(layers)} of a model of {config.num_hidden_layers}.")
        self.width = 2 * len(layers) * config.hidden_size
        self.tokenizer, self.device = loaded.tokenizer, loaded.device
        self.fingerprint = loaded.checkpoint.sampled_fingerprint  # what judge files of 0.1.0 have
        self.weights = loaded.checkpoint.identity.weights
        self.body = loaded.model.get_decoder()
        # Nothing above the last layer read is needed. The model is this reader's own, never the model under edit.
        self.body.layers = self.body.layers[: max(layers)]
        self.body.config.num_hidden_layers = max(layers)
        self._last: dict[tuple[str, str, str], Floats] = {}

    def __call__(
        self, axis: str, prompts: Sequence[str], answers: Sequence[str], progress: Advance = lambda done: None
    ) -> Floats:
        """(n, d) features of non-empty answers, in batches of like length that hold at most BATCH_TOKENS tokens."""
        asked = [(axis, *pair) for pair in zip(prompts, answers, strict=True)]
        # Texts of the last call are not read again: two judges with this reader see them one after the other.
        rows = {text: self._last[text] for text in asked if text in self._last}
        progress(sum(text in rows for text in asked))
        new = {place: self.encode(*text) for place, text in enumerate(asked) if text not in rows}
        order = sorted(new, key=lambda place: (len(new[place][0]), place))
        while order:
            width = len(new[order[-1]][0])
            batch = [order.pop() for _ in range(min(len(order), max(1, BATCH_TOKENS // width)))]
            rows.update(zip((asked[place] for place in batch), self.read([new[p] for p in batch]), strict=True))
            progress(len(batch))
        self._last = rows
        return np.stack([rows[text] for text in asked])

    def encode(self, axis: str, prompt: str, answer: str) -> tuple[list[int], int, int]:
        """(token ids, start of the answer, end of the answer). Markup inside the texts stays text."""

        def ids(text: str, **options: Any) -> list[int]:
            found: list[int] = self.tokenizer(text, add_special_tokens=False, **options)["input_ids"]
            return found

        before = ids(BEFORE_PROMPT) + ids(prompt.strip(), split_special_tokens=True)[-PROMPT_TOKENS:]
        before += ids(BEFORE_ANSWER)
        said = ids(in_lower_case(answer.strip()), split_special_tokens=True)[:ANSWER_TOKENS]
        return before + said + ids(CLOSING.get(axis, ANY_CLOSING)), len(before), len(before) + len(said)

    @torch.inference_mode()
    def read(self, texts: Sequence[tuple[list[int], int, int]]) -> Floats:
        """Features of one batch: per layer, the mean state over the answer and the state at the last token."""
        lengths = torch.tensor([len(ids) for ids, _, _ in texts], device=self.device)
        width = int(lengths.max())
        ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _, _ in texts], device=self.device)
        place = torch.arange(width, device=self.device)[None]
        starts, ends = (torch.tensor([text[k] for text in texts], device=self.device)[:, None] for k in (1, 2))
        answer = ((place >= starts) & (place < ends)).float()[:, :, None]
        with reading_states(self.body, self.layers) as states:
            self.body(input_ids=ids, attention_mask=(place < lengths[:, None]).long(), use_cache=False)
        blocks = []
        for layer in self.layers:
            state = states[layer].float()
            blocks += [(state * answer).sum(1) / answer.sum(1), state[torch.arange(len(texts)), lengths - 1]]
        features: Floats = torch.cat(blocks, 1).cpu().numpy()
        return features


@lru_cache(maxsize=1)
def feature_reader(feature_model: str, layers: tuple[int, ...]) -> FeatureReader:
    """The reader of a feature model, one for all judges of a process that share it."""
    return FeatureReader(load(feature_model), layers)


@contextmanager
def reading_states(body: Any, layers: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Inside, a forward pass leaves the output of the `layers`-th layers (counted from 1) in the dict."""
    states: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            states[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    hooks = [body.layers[layer - 1].register_forward_hook(keep(layer)) for layer in layers]
    try:
        yield states
    finally:
        for handle in hooks:
            handle.remove()


def in_lower_case(answer: str) -> str:
    """An answer in capitals in lower case: the feature model knows little of capitals (docs/judge.md)."""
    letters = [character for character in answer if character.isalpha()]
    return answer.lower() if sum(map(str.isupper, letters)) > CAPITALS * len(letters) else answer
