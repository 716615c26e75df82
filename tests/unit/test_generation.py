"""Greedy answers: batched equals one by one, ends cut, batches are fixed, the checkpoint's sampling is ignored."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spin_llm.data import render_prompt
from spin_llm.errors import SpinError
from spin_llm.generation import batches as generation
from spin_llm.generation import decoding
from spin_llm.generation.batches import Answer, end_tokens, generate, plan_batches
from spin_llm.generation.decoding import plain_generation
from spin_llm.models import LoadedModel

PROMPTS = (
    "Why?",
    "What is the capital of France, and who decided that?",
    "Please keep the address of my neighbour private, and treat everybody with respect; explain consent.",
    "a",
    "I cannot share personal data",
    "Why?",
)


def answers(loaded: LoadedModel, prompts: tuple[str, ...] = PROMPTS, **options) -> dict[int, Answer]:
    made = generate(loaded, prompts, **{"template": "raw", "new_tokens": 12, **options})
    return {answer.index: answer for batch in made for answer in batch}


def greedy_by_hand(loaded: LoadedModel, prompt: str, new_tokens: int) -> list[int]:
    """The oracle: one prompt, one forward pass a token, no cache, no padding."""
    ids = render_prompt(loaded.tokenizer, prompt, "raw")
    start = len(ids)
    with torch.inference_mode():
        while len(ids) < start + new_tokens:
            logits = loaded.model(input_ids=torch.tensor([ids])).logits[0, -1]
            ids = [*ids, int(logits.argmax())]
            if ids[-1] in end_tokens(loaded):
                break
    return ids[start:]


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_neox", "gpt2"])
def test_batched_answers_equal_those_made_one_by_one(name: str, tiny_model):
    loaded = tiny_model(name)
    batched = answers(loaded)
    assert len(plan_batches([len(render_prompt(loaded.tokenizer, p, "raw")) for p in PROMPTS], 12)) == 1
    for index, prompt in enumerate(PROMPTS):
        row = greedy_by_hand(loaded, prompt, 12)
        ended = row[-1] in end_tokens(loaded)
        tokens = row[:-1] if ended else row
        text = loaded.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        assert batched[index] == Answer(index, text, len(tokens), ended)
    assert len({answer.answer for answer in batched.values()}) > 1
    assert batched[0].answer == batched[5].answer


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt_neox", "gpt2", "qwen3_moe", "mistral", "gemma3", "mamba"])
def test_kept_states_change_no_answer(name: str, tiny_model, monkeypatch: pytest.MonkeyPatch):
    """A shared beginning, prompts filled in twos, and who is done leaving the batch: as in one call of `generate`."""
    loaded = tiny_model(name)
    monkeypatch.setattr(decoding, "PREFILL", 2)
    monkeypatch.setattr(decoding, "STRIDE", 3)
    prompts = tuple(f"Please keep this private: {prompt}" for prompt in PROMPTS)
    row = greedy_by_hand(loaded, prompts[1], 12)
    loaded.model.generation_config.eos_token_id = row[4]  # who is done leaves
    kept = answers(loaded, prompts)
    assert decoding.keeps_states(loaded.model, 99) == (name in ("llama", "qwen2", "gpt_neox", "gpt2", "qwen3_moe"))
    assert len({answer.tokens for answer in kept.values()}) > 1
    monkeypatch.setattr(decoding, "keeps_states", lambda model, tokens: False)
    assert kept == answers(loaded, prompts)


def test_states_are_kept_within_the_window_and_not_with_reft(tiny_model):
    model = tiny_model("mistral").model  # a window of 8 tokens
    assert [decoding.keeps_states(model, tokens) for tokens in (8, 9)] == [True, False]
    model.reft = torch.nn.Identity()
    assert not decoding.keeps_states(model, 8)


def test_an_end_token_cuts_the_answer(tiny_model):
    loaded = tiny_model("llama")
    row = greedy_by_hand(loaded, PROMPTS[1], 12)
    unwritten = next(token for token in range(3, 99) if token not in row)
    loaded.model.generation_config.eos_token_id = unwritten
    endless = answers(loaded)[1]
    assert (endless.tokens, endless.finished) == (12, False)
    loaded.model.generation_config.eos_token_id = [unwritten, row[5]]  # a list, as chat models have
    cut = answers(loaded)
    assert cut[1].finished
    assert cut[1].tokens == row.index(row[5])
    assert cut[1].answer == loaded.tokenizer.decode(row[: cut[1].tokens], skip_special_tokens=True).strip()
    unfinished = [answer for answer in cut.values() if not answer.finished]
    assert all(answer.tokens == 12 for answer in unfinished)


def test_end_tokens(tiny_model):
    """The union of what generation config, config, tokenizer (1) and template name, of ids that can be written."""
    loaded = tiny_model("llama")
    rows = loaded.model.get_output_embeddings().weight.shape[0]
    loaded.model.generation_config.eos_token_id = [5, 7, rows, -1]
    loaded.model.config.eos_token_id = 6
    assert end_tokens(loaded) == [5, 7, 6, 1]
    loaded.model.generation_config.eos_token_id = None
    loaded.model.config.eos_token_id = rows + 5
    assert end_tokens(loaded) == [1]
    loaded.tokenizer.eos_token = None
    assert end_tokens(loaded) == []
    assert all(answer.tokens == 3 and not answer.finished for answer in answers(loaded, new_tokens=3).values())


@pytest.mark.parametrize(
    ("after", "end"),
    [("<|pad|>\n", [2]), ("\n<|pad|><|eos|>", [2]), (" ", []), ("plain", []), ("<|bos|>", []), ("{{ 1 // 0 }}", [])],
)
def test_what_the_template_writes_after_an_answer_ends_one(after: str, end: list[int], tiny_model):
    """A template that writes nothing of its own there, or fails, adds none."""
    loaded = tiny_model("llama")
    loaded.model.generation_config.eos_token_id = loaded.model.config.eos_token_id = loaded.tokenizer.eos_token = None
    loaded.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}" + after + "{% endfor %}"
    )
    assert end_tokens(loaded) == end


def test_templates_for_parts_and_of_several_names_end_answers_too(tiny_model):
    loaded = tiny_model("llama")
    loaded.model.generation_config.eos_token_id = loaded.model.config.eos_token_id = loaded.tokenizer.eos_token = None
    parts = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}<|pad|>{% endfor %}"
    loaded.tokenizer.chat_template = parts
    assert end_tokens(loaded) == [2]
    loaded.tokenizer.chat_template = {
        "rag": parts,
        "tool_use": "{% for m in messages %}{{ m.content }}<|eos|>{% endfor %}",
    }
    assert end_tokens(loaded) == [2, 1]


def test_the_checkpoint_s_own_sampling_is_ignored(tiny_model):
    plain, odd = tiny_model("llama"), tiny_model("llama")
    own = odd.model.generation_config
    own.update(do_sample=True, temperature=5.0, top_k=3, repetition_penalty=9.0, no_repeat_ngram_size=1)
    own.update(min_new_tokens=12, max_length=2, num_beams=3, suppress_tokens=[5])
    assert answers(odd) == answers(plain)
    assert odd.model.generation_config is own
    assert own.repetition_penalty == 9.0


def test_the_generation_config_comes_back_after_an_exception(tiny_model):
    model = tiny_model("llama").model
    own = model.generation_config
    with pytest.raises(RuntimeError), plain_generation(model):  # noqa: PT012 - it changes inside
        assert model.generation_config is not own
        raise RuntimeError
    assert model.generation_config is own


def test_a_prompt_that_does_not_fit_the_context(tiny_model):
    loaded = tiny_model("gpt2")  # 256 positions
    with pytest.raises(SpinError, match="exceed the context of 256") as caught:
        answers(loaded, ("Why?", "x " * 300))
    assert "--new-tokens" in caught.value.change
    with pytest.raises(SpinError, match="exceed the context"):
        answers(loaded, ("Why?",), new_tokens=256)


def test_no_question(tiny_model):
    with pytest.raises(SpinError, match="no question"):
        answers(tiny_model("llama"), ())


def test_batches_that_are_done_are_skipped_and_the_others_stay_the_same(tiny_model, monkeypatch: pytest.MonkeyPatch):
    loaded = tiny_model("llama")
    monkeypatch.setattr(generation, "BATCH_PROMPTS", 2)
    batches = [[a.index for a in batch] for batch in generate(loaded, PROMPTS, template="raw", new_tokens=4)]
    assert len(batches) == 3
    everything = answers(loaded, new_tokens=4)
    rest = answers(loaded, new_tokens=4, skip=frozenset(batches[1]))
    assert rest == {index: everything[index] for batch in (batches[0], batches[2]) for index in batch}
    half = answers(loaded, new_tokens=4, skip=frozenset(batches[1][:1]))
    assert half == everything, "a batch that is half done runs whole"
    assert answers(loaded, new_tokens=4, skip=frozenset(range(len(PROMPTS)))) == {}


@given(st.lists(st.integers(1, 20_000), max_size=300), st.integers(1, 512))
def test_every_prompt_is_in_one_batch(lengths: list[int], new_tokens: int):
    batches = plan_batches(lengths, new_tokens)
    assert Counter(index for batch in batches for index in batch) == Counter(range(len(lengths)))
    for batch in batches:
        width = max(lengths[index] for index in batch) + new_tokens
        assert len(batch) == 1 or len(batch) * width <= generation.BATCH_TOKENS
        assert 1 <= len(batch) <= generation.BATCH_PROMPTS
    assert batches == plan_batches(lengths, new_tokens)


def test_prompts_of_like_length_share_a_batch():
    batches = plan_batches([5000, 10, 5000, 10, 10], 64)
    assert batches == [[1, 3, 4], [0, 2]]
