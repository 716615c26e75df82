"""Prompts against transformers' own: where nothing is switched, the same tokens as `apply_chat_template`."""

from __future__ import annotations

import random
from typing import Any

import pytest
import tiny

from spin_llm.data import Rendering, render_messages, render_prompt

# The chat templates of SmolLM2-Instruct and of Qwen2.5-Instruct (less its tools), word for word.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou "
    "are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|im_start|>assistant\n' }}{% endif %}"
)
QWEN2_5 = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant") %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
PIECES = (
    "Where",
    " is ",
    "Ann's",
    "\n\n",
    "\t",
    "<b>",
    "&amp;",
    '"two"',
    "{{ it }}",
    "{% if %}",
    "\u4e2d\u6587",
    "\U0001f642",
    "#1",
    "  ",
)


@pytest.mark.parametrize("template", [SMOLLM2, QWEN2_5], ids=["smollm2", "qwen2.5"])
@pytest.mark.parametrize("rendering", ["chat", Rendering("auto", date="2026-01-31"), Rendering("chat", thinking=True)])
def test_prompts_have_the_tokens_that_transformers_gives_them(template: str, rendering: Any):
    tokenizer, draw = tiny.tokenizer(), random.Random(0)
    tokenizer.chat_template = template
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    for number in range(50):
        text = f"Question {number}: " + "".join(draw.choice(PIECES) for _ in range(draw.randrange(12)))
        asked = [{"role": "user", "content": text}]
        turns = [{"role": "system", "content": "Be brief."}, *asked, {"role": "assistant", "content": "So."}, *asked]
        assert render_prompt(tokenizer, text, rendering) == theirs(tokenizer, asked)
        assert render_messages(tokenizer, turns, rendering) == theirs(tokenizer, turns)


def theirs(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False))
