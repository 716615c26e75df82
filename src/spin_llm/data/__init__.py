"""The data stage: named sources become pairs and questions (sources.py), and pairs become tokens (examples.py,
chat.py)."""

from __future__ import annotations

from spin_llm.data.chat import Rendering, rendering_of, resolve_template
from spin_llm.data.columns import Pair
from spin_llm.data.examples import Example, as_messages, as_text, encode, encode_all, render_messages, render_prompt
from spin_llm.data.sources import Question, load_pairs, load_prompts, load_questions, rows_sha256, sample, split_sample
from spin_llm.data.turns import Turn, plain

__all__ = ["Rendering", "rendering_of", "resolve_template"]
__all__ += ["Example", "as_messages", "as_text", "encode", "encode_all", "render_messages", "render_prompt"]
__all__ += ["Pair", "Question", "load_pairs", "load_prompts", "load_questions", "rows_sha256", "sample", "split_sample"]
__all__ += ["Turn", "plain"]
