"""Chat templates as the programs that they are: what they lose, how they fail, their switches, their clock."""

from __future__ import annotations

import random

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from spin_llm.data import Pair, Rendering, encode, render_messages, render_prompt, resolve_template
from spin_llm.data.chat import chat_template
from spin_llm.data.reasoning import PAIRS, closing_of, divided
from spin_llm.errors import SpinError

ASK = "{% for m in messages %}<|bos|>{{ m.role }}: {{ m.content }}<|eos|>{% endfor %}"
START = "{% if add_generation_prompt %}<|bos|>assistant: {% endif %}"
TEXT = "Where does <b>Ann & 'Bo'</b> live?\n\n  Say it in \"one\" word."


def with_template(template):
    made = tiny.tokenizer()
    made.chat_template = template
    return made


def rendered(template, text: str = TEXT, rendering: str | Rendering = "chat") -> str:
    tokenizer = with_template(template)
    return str(tokenizer.decode(render_prompt(tokenizer, text, rendering)))


@pytest.mark.parametrize(
    "content",
    [
        "{{ m.content | lower }}",
        "{{ m.content | truncate(30) }}",
        "{{ m.content | e }}",
        "{{ m.content.split()[-3:] | join(' ') }}",
        "{{ m.content | replace('Ann', 'X') }}",
        "{{ m.content | striptags }}",
        "{{ m.content[:12] }}",
        "{{ (m.content | string)[::-1] }}",
        "{{ m.content | tojson }}",
        "user",
        "",
    ],
)
def test_a_template_that_changes_the_question_is_refused(content: str):
    with pytest.raises(SpinError, match=r"does not hold the text of the user(.|\n)*--template raw"):
        rendered(ASK.replace("{{ m.content }}", content) + START)


@pytest.mark.parametrize(
    "content", ["{{ m.content | trim }}", "{{ m.content.split() | join(' ') }}", "\n{{ m.content }} "]
)
def test_white_space_is_the_templates_own_affair(content: str):
    assert "".join(TEXT.split()) in "".join(rendered(ASK.replace("{{ m.content }}", content) + START).split())


def test_a_template_for_parts_gets_parts():
    parts = ASK.replace("{{ m.content }}", "{% for part in m.content %}{{ part.text }}{% endfor %}") + START
    assert rendered(parts) == rendered(ASK + START)


@pytest.mark.parametrize("cut", ["m.content[:3]", "m.content[::-1]", "m.content[-3:]", "m.content[:3] | tojson"])
def test_a_list_of_parts_written_down_is_not_the_text(cut: str):
    with pytest.raises(SpinError, match="does not hold the text of the user"):
        rendered(ASK.replace("m.content", cut) + START)


def test_of_two_equal_turns_both_must_be_in_the_prompt():
    turns = [{"role": r, "content": c} for r, c in (("user", "Go on."), ("assistant", "No."), ("user", "Go on."))]
    assert str(tiny.tokenizer().decode(render_messages(with_template(ASK + START), turns))).count("Go on.") == 2
    with pytest.raises(SpinError, match=r"does not hold the text of the (user|assistant)"):
        render_messages(with_template("{% set messages = messages[1:] %}" + ASK + START), turns)


def test_every_turn_must_be_in_the_prompt():
    turns = [{"role": r, "content": c} for r, c in (("system", "Be kind."), ("user", "Hi"), ("assistant", "Yes?"))]
    turns.append({"role": "user", "content": "Why?"})
    assert "Be kind." in str(tiny.tokenizer().decode(render_messages(with_template(ASK + START), turns)))
    deaf = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    with pytest.raises(SpinError, match=r"text of the system: 'Be kind.'"):
        render_messages(with_template(deaf), turns)
    thoughtless = ASK.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}") + START
    turns[2] = {"role": "assistant", "content": "<think>Hm</think>Yes?"}
    assert render_messages(with_template(thoughtless), turns)


@pytest.mark.parametrize(
    "fault",
    [
        "{{ none + 1 }}",
        "{{ 1 // 0 }}",
        "{{ messages[7].content }}",
        "{{ {}['a']['b'] }}",
        "{{ nothing.at.all }}",
        "{% if %}",
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{{ raise_exception('not so') }}",
        "{% for i in range(10**9) %}{% endfor %}",
    ],
)
def test_whatever_a_template_raises_is_one_message(fault: str):
    with pytest.raises(SpinError, match=r"chat template fails(.|\n)*--template raw"):
        rendered(ASK + fault + START)


@pytest.mark.parametrize(
    "fault",
    [
        "{{ 'a' * 10**10 }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ messages[0].content }}{% endfor %}{% endfor %}",
        "{% if messages | length > 1 %}{{ 'a' * 10**10 }}{% endif %}",
    ],
)
def test_a_template_without_end_is_stopped(fault: str):
    with pytest.raises(SpinError, match="does not end"):
        rendered(ASK + fault + START)


def test_the_clock_stands_still_and_chance_too():
    clock = ASK + "{{ strftime_now('%d %b %Y %H:%M:%S.%f') }} {{ range(999) | random }}" + START
    day = Rendering("chat", date="2024-02-29")
    state = random.getstate()
    assert "29 Feb 2024" in rendered(clock, rendering=day)
    assert rendered(clock, rendering=day) == rendered(clock, rendering=day)
    assert random.getstate() == state
    assert chat_template(with_template(clock), "chat").clock
    assert not chat_template(with_template(ASK + START), "chat").clock


@pytest.mark.parametrize(
    ("switch", "off", "on"),
    [
        ("{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
         "{% if enable_thinking %}T{% else %}N{% endif %}", "N", "T"),
        ("{% if thinking %}T{% else %}N{% endif %}", "N", "T"),
        ("{% if no_think %}N{% else %}T{% endif %}", "N", "T"),
        ("{% if thinking_budget is defined and thinking_budget == 0 %}N{% else %}T{% endif %}", "N", "T"),
        ("{% if reasoning_effort == 'none' %}N{% else %}T{% endif %}", "N", "T"),
        ("{% if '/no_think' in messages[0].content %}N{% else %}T{% endif %}", "N", "T"),
        ("{{ thinking_style }}{{ reasoning_effort | default('medium') }}", "medium", "medium"),
    ],
)  # fmt: skip
def test_reasoning_is_off_unless_asked_for(switch: str, off: str, on: str):
    template = ASK + "{% if add_generation_prompt %}" + switch + "{% endif %}"
    for thinking, letter in ((False, off), (True, on)):
        assert rendered(template, "Why?", Rendering("chat", thinking=thinking)).endswith(letter)


def test_options_reach_the_template_by_their_type():
    template = ASK + "{% if flag is sameas true %}{{ size + 1 }}{{ word }}{% endif %}" + START
    options = (("flag", "true"), ("size", "2"), ("word", "low"))
    assert "3low<|bos|>assistant" in rendered(template, rendering=Rendering("chat", options))
    asked = Rendering("chat", (("enable_thinking", "true"),))
    assert rendered(ASK + "{{ 'T' if enable_thinking else 'N' }}", "Why?", asked).endswith("T"), "the user's word"
    for name in ("flagg", "messages", "tokenize"):
        with pytest.raises(SpinError, match=f"reads no option {name}"):
            rendered(template, rendering=Rendering("chat", ((name, "1"),)))
    with pytest.raises(SpinError, match="--template-option is for chat templates"):
        rendered(template, rendering=Rendering("raw", options))


def test_several_named_templates():
    named = {"tool_use": "T " + ASK + START, "rag": "R " + ASK + START}
    for name in ("auto", "chat"):
        with pytest.raises(SpinError, match=r"tool_use, rag(.|\n)*--template tool_use\|rag; or --template raw"):
            rendered(named, rendering=name)
    assert rendered(named, rendering="rag").startswith("R ")
    assert rendered(named, "Why?", "raw") == "Why?"
    assert rendered({**named, "default": ASK + START}).startswith("<|bos|>user")
    with pytest.raises(SpinError, match=r"no template 'nag'(.|\n)*tool_use\|rag"):
        resolve_template(with_template(named), "nag")
    with pytest.raises(SpinError, match="no text but int"):
        resolve_template(with_template(5), "auto")


def test_a_response_is_scored_outside_of_the_reasoning_that_the_prompt_opens():
    for end, closed in (("<think>\n", "</think>"), ("[THINK]", "[/THINK]"), ("<|start|>assistant", "final<|message|>")):
        tokenizer = with_template(ASK + "{% if add_generation_prompt %}" + end + "{% endif %}")
        example = encode(tokenizer, Pair("Why?", "No."), template="chat", max_length=200)
        assert str(tokenizer.decode(example.input_ids)).rstrip("No. \n").endswith(closed)
        assert str(tokenizer.decode(render_prompt(tokenizer, "Why?", "chat"))).endswith(end)


@pytest.mark.parametrize(("opening", "closing"), PAIRS.items())
def test_markers_divide_reasoning_from_the_answer(opening: str, closing: str):
    both = divided(f"\n{opening}\nHm\n{closing}\n\nNo.")
    late = divided(f"Hm{closing}No.", opened=True)
    for made in (both, late, divided(f"Hm{closing}No.")):
        assert made is not None
        assert (made.reasoning, made.answer, made.closed) == ("Hm", "No.", True)
    for made in (divided(f"{opening}Hm"), divided("Hm", opened=True)):
        assert made is not None
        assert (made.reasoning, made.answer, made.closed) == ("Hm", "", False)
    assert closing_of(f"assistant\n{opening}\n").strip() == closing
    assert divided("A plain answer.") is None


@pytest.mark.parametrize("text", ["Sure! Here is my response: no.", "As he says, here is my thought process: none."])
def test_words_that_any_answer_may_hold_mark_no_reasoning(text: str):
    assert divided(text) is None


def test_reasoning_that_begins_with_words():
    made = divided("\nHere is my thought process: Hm.\n\nHere is my response: No.")
    cut = divided("Here is my thought process: Hm")
    assert made is not None
    assert cut is not None
    assert (made.reasoning, made.answer, made.closed) == ("Hm.", "No.", True)
    assert (cut.reasoning, cut.answer, cut.closed) == ("Hm", "", False)


def test_channels():
    thought = "<|channel|>analysis<|message|>Hm"
    whole = divided(f"{thought}<|end|><|start|>assistant<|channel|>final<|message|>No.<|return|>")
    cut = divided(thought)
    assert whole is not None
    assert cut is not None
    assert (whole.reasoning, whole.answer, whole.closed) == ("Hm", "No.", True)
    assert (cut.reasoning, cut.answer, cut.closed) == ("Hm", "", False)


@given(st.text(st.sampled_from("ab \n<>/"), max_size=40), st.booleans())
def test_nothing_of_a_text_is_lost_between_reasoning_and_answer(text: str, opened: bool):
    made = divided(f"<think>{text}</think>{text}", opened)
    assert made is not None
    assert (made.reasoning, made.answer, made.closed) == (text.strip(), text.strip(), True)
