"""Pairs as tokens, on tokenizers built here: words with and without BOS and EOS, and byte-level BPE."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from spin_llm.data import Example, Pair, Question, Turn, encode, encode_all, render_prompt, resolve_template
from spin_llm.errors import SpinError
from spin_llm.evaluate import answers as evaluation

WORDS = ["[UNK]", "<s>", "</s>", "user", "assistant", "why", "not", "because", "it", "is", "so", "Be", "kind"]
ID = {word: number for number, word in enumerate(WORDS)}
CHAT = (
    "{{ bos_token or '' }}{% for m in messages %} {{ m['role'] }} {{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %} assistant {% endif %}"
)


def ids(text: str) -> list[int]:
    return [ID[word] for word in text.split()]


def word_tokenizer(around: str = "$A", bos: str | None = "<s>", eos: str | None = "</s>", chat: str | None = None):
    """`around` is what the tokenizer puts around a text, such as "<s> $A </s>"."""
    tokenizer = Tokenizer(models.WordLevel(ID, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [(word, ID[word]) for word in around.split() if word != "$A"]
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, unk_token="[UNK]")
    fast.chat_template = chat
    return fast


def byte_tokenizer(chat: str | None = None):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["why not because it is so, because it is", "the other why"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>")
    fast.chat_template = chat
    return fast


PAIR = Pair("why not", "because it is so")


def test_templates_are_resolved():
    plain, chat = word_tokenizer(), word_tokenizer(chat=CHAT)
    assert [resolve_template(plain, name) for name in ("auto", "raw", "released")] == ["raw", "raw", "released"]
    assert [resolve_template(chat, name) for name in ("auto", "chat", "raw")] == ["chat", "chat", "raw"]
    with pytest.raises(SpinError, match="--template raw or auto"):
        resolve_template(plain, "chat")
    with pytest.raises(SpinError, match=r"auto\|chat\|raw\|released"):
        resolve_template(plain, "alpaca")


@pytest.mark.parametrize("around", ["$A", "<s> $A", "$A </s>", "<s> $A </s>"])
def test_raw_keeps_the_tokenizers_bos_and_drops_its_eos(around):
    tokenizer = word_tokenizer(around)
    bos = [ID["<s>"]] * around.startswith("<s>")
    example = encode(tokenizer, PAIR, template="raw", max_length=50)
    assert example == Example((*bos, *ids("why not because it is so")), 4, 0, "why not")
    assert render_prompt(tokenizer, "why not", "raw") == [*bos, *ids("why not")]


def test_raw_keeps_an_eos_that_the_text_wrote():
    assert render_prompt(word_tokenizer("$A </s>"), "why </s>", "raw") == ids("why </s>")
    assert render_prompt(word_tokenizer(), "why </s>", "raw") == ids("why </s>")


def test_bos_that_is_also_eos_is_kept():
    tokenizer = word_tokenizer("<s> $A", bos="<s>", eos="<s>")
    assert render_prompt(tokenizer, "", "raw") == [ID["<s>"]]
    assert render_prompt(tokenizer, "why", "raw") == ids("<s> why")


def test_bos_is_never_doubled():
    tokenizer = word_tokenizer("<s> $A", chat=CHAT)
    assert render_prompt(tokenizer, "<s> why", "raw") == ids("<s> why")
    assert render_prompt(tokenizer, "why", "chat") == ids("<s> user why assistant")
    tokenizer.chat_template = "<s> " + CHAT
    assert render_prompt(tokenizer, "why", "chat") == ids("<s> user why assistant")


def test_chat_is_one_user_message_then_the_response():
    tokenizer = word_tokenizer("<s> $A </s>", chat=CHAT)
    example = encode(tokenizer, Pair("why", "because it"), template="auto", max_length=50)
    assert example == Example(tuple(ids("<s> user why assistant because it")), 2, 0, "why")


def test_chat_templates_with_a_default_system_message():
    tokenizer = word_tokenizer(chat="{% if messages[0]['role'] != 'system' %}Be kind {% endif %}" + CHAT)
    assert render_prompt(tokenizer, "why", "chat") == ids("Be kind <s> user why assistant")


def test_chat_templates_that_fail_say_so():
    tokenizer = word_tokenizer(chat="{{ raise_exception('a system message is needed') }}")
    with pytest.raises(SpinError, match=r"a system message is needed(.|\n)*--template raw"):
        render_prompt(tokenizer, "why", "chat")


def test_byte_level_responses_start_with_their_first_token():
    tokenizer = byte_tokenizer(CHAT)
    for template, text in (("raw", " because it is"), ("chat", "\n because it is")):
        example = encode(tokenizer, Pair("why not", "\n because it is"), template=template, max_length=99)
        assert tokenizer.decode(example.input_ids[-example.response_tokens :]) == text
        prompt = list(example.input_ids[: -example.response_tokens])
        assert prompt == render_prompt(tokenizer, "why not", template)
    raw = encode(tokenizer, Pair("why not", "because"), template="raw", max_length=99)
    assert tokenizer.decode(raw.input_ids) == "why not because"


def test_released_drops_the_first_response_token_whatever_it_is():
    with_bos = encode(word_tokenizer("<s> $A"), PAIR, template="released", max_length=50)
    assert with_bos == Example(tuple(ids("<s> why not because it is so")), 4, 0, "why not")
    without = encode(word_tokenizer(), PAIR, template="released", max_length=50)
    assert without == Example(tuple(ids("why not it is so")), 3, 0, "why not")  # "because" is lost
    eos = encode(word_tokenizer("$A </s>"), PAIR, template="released", max_length=50)
    assert eos.input_ids == tuple(ids("why not </s> it is so </s>"))


def test_the_prompt_is_cut_at_its_left_and_counted():
    tokenizer = word_tokenizer("<s> $A")
    whole = encode(tokenizer, PAIR, template="raw", max_length=7)
    assert (len(whole.input_ids), whole.truncated) == (7, 0)
    cut = encode(tokenizer, PAIR, template="raw", max_length=5)
    assert cut == Example(tuple(ids("not because it is so")), 4, 2, "why not")


@pytest.mark.parametrize("max_length", [4, 1, 0])
def test_a_response_that_does_not_fit_is_refused(max_length):
    with pytest.raises(SpinError, match=rf"'why not' has 4 tokens; with --max-length {max_length} ") as caught:
        encode(word_tokenizer(), PAIR, template="raw", max_length=max_length)
    assert "--max-length 5 or more" in str(caught.value)


def test_prompts_and_responses_without_tokens_are_refused():
    with pytest.raises(SpinError, match="gives no tokens"):
        encode(word_tokenizer(), Pair("", "because"), template="raw", max_length=9)
    assert encode(word_tokenizer("<s> $A"), Pair("", "because"), template="raw", max_length=9).input_ids == tuple(
        ids("<s> because")
    )
    for template in ("raw", "chat", "released"):
        with pytest.raises(SpinError, match="response of the example with the prompt 'why' gives no tokens"):
            encode(word_tokenizer(chat=CHAT), Pair("why", " \n"), template=template, max_length=9)
    with pytest.raises(SpinError, match="`released` drops"):
        encode(word_tokenizer(), Pair("why", "because"), template="released", max_length=9)


def test_long_prompts_are_shortened_in_messages():
    with pytest.raises(SpinError) as caught:
        encode(word_tokenizer(), Pair("why " * 1000, "because it"), template="raw", max_length=2)
    assert len(str(caught.value)) < 500


def test_encode_all_is_encode_for_each():
    tokenizer = byte_tokenizer(CHAT)
    pairs = [PAIR, Pair("is it", "so")]
    expected = [encode(tokenizer, pair, template="chat", max_length=99) for pair in pairs]
    assert encode_all(tokenizer, iter(pairs), template="auto", max_length=99) == expected


BYTES = byte_tokenizer(CHAT)
texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30).filter(str.strip)


@given(texts, texts, st.sampled_from(["raw", "chat"]), st.integers(2, 200))
def test_laws_of_examples(prompt, response, template, max_length):
    whole = encode(BYTES, Pair(prompt, response), template=template, max_length=10_000)
    text = response if template == "chat" else " " + response.lstrip()
    assert list(whole.input_ids[-whole.response_tokens :]) == BYTES(text, add_special_tokens=False)["input_ids"]
    if whole.response_tokens > max_length - 1:
        with pytest.raises(SpinError, match="--max-length"):
            encode(BYTES, Pair(prompt, response), template=template, max_length=max_length)
        return
    cut = encode(BYTES, Pair(prompt, response), template=template, max_length=max_length)
    assert len(cut.input_ids) == min(max_length, len(whole.input_ids))
    assert cut.input_ids == whole.input_ids[cut.truncated :]
    assert cut.response_tokens == whole.response_tokens < len(cut.input_ids)


TALK = (Turn("system", "Be kind"), Turn("user", "why"), Turn("assistant", "because"), Turn("user", "why not"))


def test_every_turn_goes_through_the_chat_template_in_order():
    pair = Pair("its plain text", "it is so", turns=TALK)
    example = encode(word_tokenizer(chat=CHAT), pair, template="chat", max_length=99)
    words = "<s> [UNK] Be kind user why assistant because user why not assistant it is so"  # no token for "system"
    assert [WORDS[token] for token in example.input_ids] == words.split()
    assert example.response_tokens == 3


@pytest.mark.parametrize("template", ["raw", "released"])
def test_without_a_chat_template_turns_are_their_plain_text(template):
    ids = render_prompt(BYTES, TALK, template)
    assert BYTES.decode(ids) == "System: Be kind\n\nUser: why\n\nAssistant: because\n\nUser: why not\n\nAssistant:"


def test_questions_are_put_with_all_their_turns(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(evaluation, "generate", lambda loaded, prompts, **_: seen.extend(prompts) or [])
    asked = {"privacy": [Question("plain", turns=TALK), Question("why")]}
    with pytest.raises(KeyError):  # no answers came
        evaluation.answers("base", nullcontext, evaluation.Evaluation(asked, (), "raw"), tmp_path)
    assert seen == [TALK, "why"]
