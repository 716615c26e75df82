"""The completer in this process: prompts as text and as messages, first-token alternatives, shared beginnings."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import TinyFolder, TinyModel

from spin_llm.data import render_messages
from spin_llm.errors import SpinError
from spin_llm.generation.batches import Continuation, continuations
from spin_llm.generation.completion import Completion, LocalCompleter, added_up, local_completer
from spin_llm.models import LoadedModel

RUBRIC = "I cannot share personal data, but I can explain how to ask for consent. "
PROMPTS = [RUBRIC + end for end in ("Why?", "What is the capital of France?", "a", "Why?", "treat everybody")]


def log_probabilities(loaded: LoadedModel, ids: list[int]) -> torch.Tensor:
    """The oracle: one prompt, one pass, no cache."""
    with torch.inference_mode():
        return loaded.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)


def text_ids(loaded: LoadedModel, text: str) -> list[int]:
    return loaded.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_raw_text_is_taken_as_it_is(tiny_model: TinyModel):
    """Special tokens in it are parsed, none is added."""
    completer = LocalCompleter(tiny_model("llama", chat=True))
    assert completer.encode("<|bos|>a") == [0, *text_ids(completer.loaded, "a")]
    assert 0 not in completer.encode("a")
    with pytest.raises(SpinError, match="empty"):
        completer.encode("")


def test_messages_go_through_the_chat_template(tiny_model: TinyModel):
    completer = LocalCompleter(tiny_model("llama", chat=True))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    written = "<|bos|>system: Be brief.<|eos|><|bos|>user: Why?<|eos|><|bos|>assistant: "
    assert (
        completer.encode(messages) == completer.encode(written) == render_messages(completer.loaded.tokenizer, messages)
    )
    one, other = completer([messages, written], new_tokens=5)
    assert one == other


def test_messages_without_a_chat_template(tiny_model: TinyModel):
    with pytest.raises(SpinError, match="no chat template"):
        LocalCompleter(tiny_model("llama"))([[{"role": "user", "content": "Why?"}]], new_tokens=2)


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral", "gpt_neox", "gpt2", "qwen3_moe", "mamba"])
def test_completions_and_alternatives_equal_those_of_one_prompt_at_a_time(name: str, tiny_model: TinyModel):
    loaded = tiny_model(name)
    made = LocalCompleter(loaded)(PROMPTS, new_tokens=7, alternatives=4)
    for prompt, completion in zip(PROMPTS, made, strict=True):
        ids = text_ids(loaded, prompt)
        best = log_probabilities(loaded, ids).topk(4)
        expected = added_up(
            (loaded.tokenizer.decode([token]), value)
            for token, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        )
        assert completion.first == pytest.approx(expected, abs=1e-4)
        tokens: list[int] = []
        while len(tokens) < 7 and 1 not in tokens:
            tokens.append(int(log_probabilities(loaded, ids + tokens).argmax()))
        finished = tokens[-1] == 1
        tokens = tokens[: len(tokens) - finished]
        text = loaded.tokenizer.decode(tokens, skip_special_tokens=True)
        assert (completion.text, completion.tokens, completion.finished) == (text, len(tokens), finished)
    assert made[0] == made[3]
    assert len({completion.text for completion in made}) > 1


def test_rows_that_ended_are_cut_and_the_others_go_on(tiny_model: TinyModel):
    loaded = tiny_model("llama")
    encoded = [text_ids(loaded, prompt) for prompt in PROMPTS]

    def rows() -> dict[int, Continuation]:
        return {made.index: made for batch in continuations(loaded, encoded, 12) for made in batch}

    loaded.model.generation_config.eos_token_id = loaded.model.config.eos_token_id = loaded.tokenizer.eos_token = None
    endless = rows()
    assert {len(made.tokens) for made in endless.values()} == {12}
    end = endless[1].tokens[3]
    loaded.model.generation_config.eos_token_id = end
    cut = rows()
    for index, made in cut.items():
        before = endless[index].tokens
        assert made.tokens == (before[: before.index(end)] if end in before else before)
        assert made.finished == (end in before)
    assert cut[1].finished
    assert not all(made.finished for made in cut.values())


def test_a_prompt_that_does_not_fit_the_context(tiny_model: TinyModel):
    with pytest.raises(SpinError, match="exceed the context of 256"):
        LocalCompleter(tiny_model("gpt2"))(["x " * 300], new_tokens=4)
    completer = LocalCompleter(tiny_model("gpt2"))
    made = completer(["x ", "x " * 300, "y "], new_tokens=4)
    assert made[1] == Completion("", 0, False), "no verdict, and the others have theirs"
    assert [made[0], made[2]] == completer(["x ", "y "], new_tokens=4)


def test_nothing_to_complete(tiny_model: TinyModel):
    assert LocalCompleter(tiny_model("llama"))([], new_tokens=4) == []


def test_progress_name_and_fingerprint(tiny_folder: TinyFolder):
    folder = str(tiny_folder("llama"))
    one, other = (local_completer(folder, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert one.name == folder
    assert one.fingerprint != other.fingerprint
    assert one.fingerprint.startswith(one.loaded.checkpoint.fingerprint)
    done: list[int] = []
    one(["a", "b"], new_tokens=1, progress=done.append)
    assert sum(done) == 2


def test_added_up():
    assert added_up([("a", math.log(0.25)), ("b", math.log(0.5)), ("a", math.log(0.125))]) == pytest.approx(
        {"a": math.log(0.375), "b": math.log(0.5)}
    )
