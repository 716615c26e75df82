"""Chat templates: programs that come with a model, run within bounds, whose text must hold what was put in.

In: a tokenizer, chat messages, a `Rendering`. Out: the text of a prompt, up to where the answer starts; and what a
template does of its own: switches for reasoning, a clock, content as a list of parts. A reasoning switch is a variable
of the template named after thinking that changes what it writes; it is off unless the rendering asks for reasoning. The
clock stands still at the rendering's date. Whatever a template raises is one SpinError, and so is a prompt that does
not hold the messages' text, white space aside. Left out: tokens (examples.py); tools and documents.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from spin_llm.errors import SpinError
from spin_llm.settings import RunSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, str]
TEMPLATES = ("auto", "chat", "raw", "released")
DEFAULT = "default"  # the one of several named templates that is used when none is named
MARK = "Xq7 Zw9"  # a text that no template writes of its own
PRINTED = re.compile(rf"""text['"&\\]\S*:\s?\S*{MARK}""")  # a part of a list written down as it is
DATES = ("2001-02-03", "2012-11-10")  # a template that differs between them has a clock
NO_THINK = "/no_think"  # as a system message: what SmolLM3, Nemotron and others were trained on
OFF_WORDS = ("none", "off", "disabled", "no_think", "nothink", "non-thinking", "chat")
# What --template-option may not set: the messages, and what says how a template is run.
RESERVED: tuple[str, ...] = ("messages", "conversation", "conversations", "chat_template", "add_generation_prompt")
RESERVED += ("strftime_now", "raise_exception")
RESERVED += ("continue_final_message", "tokenize", "sanitize_control_tokens", "padding", "truncation", "max_length")
RESERVED += ("return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs")
MOST_TEXT = 1_000_000  # characters that a template may write beside the messages
TRIAL_SECONDS = 10  # of the processor
RAW = "give --template raw"


@dataclass(frozen=True)
class Rendering:
    """How a prompt becomes tokens: `name` as --template has it, `options` for the chat template (name, JSON or plain
    text), whether it is asked for reasoning (`thinking`), and the ISO `date` of its clock (None: today)."""

    name: str = "auto"
    options: tuple[tuple[str, str], ...] = ()
    thinking: bool = False
    date: str | None = None


def rendering_of(settings: RunSettings) -> Rendering:
    return Rendering(settings.template, settings.template_options, settings.thinking, settings.date)


def as_rendering(template: str | Rendering) -> Rendering:
    return Rendering(template) if isinstance(template, str) else template


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template as it is run: its `source`, the `values` that it is told, whether it takes content `as_parts`,
    its reasoning `switches` (what turns it off and on by name; as a system message where `by_system`), and whether it
    has a `clock`."""

    source: str
    values: Mapping[str, object]
    as_parts: bool = False
    switches: Mapping[str, tuple[Any, Any]] | None = None
    by_system: bool = False
    clock: bool = False


def resolve_template(tokenizer: PreTrainedTokenizerBase, template: str | Rendering) -> str:
    """ "chat", "raw", "released", or the name of one of several chat templates; "auto" is chat where the tokenizer has
    a chat template, else raw. SpinError for another name, and where none of several is the default."""
    name, named = as_rendering(template).name, named_templates(tokenizer)
    if name in ("raw", "released", *named):
        return name
    if name == "auto" and not named:
        return "raw"
    if name == "chat" and not named:
        raise SpinError(
            "--template chat was asked for, but the tokenizer has no chat template.",
            cause="a base model, or a model folder without its chat template.",
            change="give --template raw or auto.",
        )
    if name in ("auto", "chat"):
        if DEFAULT in named or len(named) == 1:
            return "chat"
        raise SpinError(
            f"The tokenizer has {len(named)} named chat templates and no default: {', '.join(named)}.",
            change=f"give --template {'|'.join(named)}; or --template raw.",
        )
    known = "|".join((*TEMPLATES, *(each for each in named if each != DEFAULT)))
    raise SpinError(f"There is no template {name!r}.", change=f"give --template {known}.")


def named_templates(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The tokenizer's chat templates by name; a single one is the default."""
    found: Any = getattr(tokenizer, "chat_template", None)
    if isinstance(found, str):
        found = {DEFAULT: found}
    found = found or {}
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise SpinError(
            f"The tokenizer's chat template is no text but {type(found).__name__}.",
            cause="a damaged tokenizer_config.json.",
            change="put its chat template right.",
        )
    return {name: text for name, text in found.items() if text}


def chat_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], template: str | Rendering) -> str:
    """The text of chat messages with the generation prompt. Raises SpinError when the tokenizer has no such template,
    it fails, or its text does not hold the messages'."""
    rendering = as_rendering(template)
    chat = chat_template(tokenizer, rendering)
    before = [{"role": "system", "content": NO_THINK}] if chat.by_system and not rendering.thinking else []
    if before and messages[0]["role"] == "system":  # a template takes one system message
        first = {**messages[0], "content": f"{NO_THINK}\n{messages[0]['content']}"}
        before, messages = [first], messages[1:]
    text = run_template(tokenizer, chat, [*before, *messages], rendering.date)
    refuse_lost(text, messages)
    return text


def chat_template(tokenizer: PreTrainedTokenizerBase, template: str | Rendering) -> ChatTemplate:
    """The chat template of a rendering, looked at once; SpinError when it fails or loses a short text."""
    rendering = as_rendering(template)
    asked = replace(rendering, name="chat") if rendering.name in ("auto", "raw", "released") else rendering
    name, named = resolve_template(tokenizer, asked), named_templates(tokenizer)
    source = named.get(name) or named.get(DEFAULT) or next(iter(named.values()))
    return _looked_at(tokenizer, source, replace(rendering, date=None))


@lru_cache(maxsize=32)
def _looked_at(tokenizer: PreTrainedTokenizerBase, source: str, rendering: Rendering) -> ChatTemplate:
    options = {name: option_value(text) for name, text in rendering.options}
    names = set(re.findall(r"\b[A-Za-z_]\w*", source))
    if unread := [name for name in options if name not in names or name in RESERVED]:
        raise SpinError(
            f"The chat template reads no option {', '.join(unread)}.",
            cause="a misspelt --template-option, or an option of another model.",
            change="leave it out; `spin-llm doctor` says which switch for reasoning the template knows.",
        )
    refuse_runaway(source, json.dumps({**tokenizer.special_tokens_map, **options}, default=str))
    ask = [{"role": "user", "content": MARK}]

    def attempt(values: Mapping[str, object], *, as_parts: bool, date: str = DATES[0], system: str = "") -> str | None:
        before = [{"role": "system", "content": system}] if system else []
        try:
            return run_template(tokenizer, ChatTemplate(source, values, as_parts), [*before, *ask], date)
        except SpinError:
            return None

    texts = [attempt(options, as_parts=parts) for parts in (False, True)]
    as_parts = not holds(texts[0], MARK) and holds(texts[1], MARK) and not PRINTED.search(texts[1] or "")
    plain = texts[as_parts]
    if plain is None:  # messages that it takes may come: those that it does not are errors of their own
        return ChatTemplate(source, options)
    if not holds(plain, MARK):
        refuse_lost(plain, ask)
    switches = {
        name: pair
        for name in sorted(names)
        if name not in options and (pair := reasoning_values(name, source))
        if changes(plain, *(attempt({**options, name: value}, as_parts=as_parts) for value in pair))
    }
    system = attempt(options, as_parts=as_parts, system=NO_THINK) if NO_THINK in source and not switches else plain
    by_system = system not in (None, plain)
    told = {name: value for name, pair in switches.items() if (value := pair[rendering.thinking]) is not None}
    if attempt({**options, **told}, as_parts=as_parts) is None:  # several that do not go together
        told = dict([*told.items()][:1])
    clock = attempt(options, as_parts=as_parts, date=DATES[1]) != plain
    return ChatTemplate(source, {**options, **told}, as_parts, switches, by_system, clock)


def reasoning_values(name: str, source: str) -> tuple[Any, Any] | None:
    """(what turns reasoning off, what turns it on or None for the template's default) of a variable that may be a
    switch; None for one that is none by its name."""
    words = name.lower()
    if not re.search("think|reason", words) or re.search("content|token_id|_start|_end", words):
        return None
    if re.search("budget|tokens|length", words):
        return (0, None)
    if re.search("effort|mode|level", words):
        off = next((word for word in OFF_WORDS if re.search(rf"""["']{word}["']""", source)), None)
        return (off, None) if off else None
    return (True, False) if re.match("no_?think|disable|skip|without|hide", words) else (False, True)


def changes(plain: str, off: str | None, on: str | None) -> bool:
    """Whether a variable switches: off and on give other texts, neither of which spells a truth value out."""
    if off is None or on is None or off == on:
        return False
    return all(text.count(word) <= plain.count(word) for text in (off, on) for word in ("True", "False", "None"))


def run_template(
    tokenizer: PreTrainedTokenizerBase, chat: ChatTemplate, messages: Sequence[Message], date: str | None
) -> str:
    """What the template writes for these messages, at noon of `date` (None: now), with chance standing still too."""
    from transformers.utils import chat_template_utils

    content: list[dict[str, object]] = [
        {**message, "content": [{"type": "text", "text": message["content"]}]} if chat.as_parts else {**message}
        for message in messages
    ]
    render: Any = tokenizer.apply_chat_template
    now = datetime.fromisoformat(date).replace(hour=12) if date else datetime.now()
    roles, chance = ", ".join(message["role"] for message in messages), random.getstate()
    random.seed(0)
    try:
        program: Any = chat_template_utils._compile_jinja_template(chat.source)  # cached: the one that is run below
        program.globals["strftime_now"] = now.strftime
        options: dict[str, object] = {"chat_template": chat.source, "add_generation_prompt": True, "tokenize": False}
        text = str(render(content, **options, **chat.values))
    except Exception as error:  # noqa: BLE001 - a program of the model's makers: whatever it raises, it fails
        words, kind = " ".join(str(error).split())[:300], type(error).__name__
        said = words if kind == "TemplateError" else f"{kind}: {words}".rstrip(": ")
        raise SpinError(
            f"The model's chat template fails on messages of these roles: {roles}: {said}",
            cause="a template that asks for other roles or extra values, or one with a fault.",
            change=f"{RAW}, or --template-option NAME=VALUE for a value that it asks for.",
        ) from None
    finally:
        random.setstate(chance)
    if len(text) > MOST_TEXT + 2 * sum(len(message["content"]) for message in messages):
        raise runaway()
    return text


def holds(text: str | None, part: str) -> bool:
    """Whether `part` stands in `text`, white space aside."""
    return text is not None and squeezed(part) in squeezed(text)


def squeezed(text: str) -> str:
    return "".join(text.split())


def refuse_lost(text: str, messages: Sequence[Message]) -> None:
    """SpinError when a message is not in the prompt; of an earlier answer the reasoning may be left out."""
    thoughts = re.compile(r".*(</think(ing)?>|\[/THINK\])", re.DOTALL)
    spoken = [thoughts.sub("", m["content"]) if m["role"] == "assistant" else m["content"] for m in messages]
    whole, pieces = squeezed(text), [squeezed(said) for said in spoken]
    for message, said, piece in zip(messages, spoken, pieces, strict=True):
        if piece and whole.count(piece) < sum(other.count(piece) for other in pieces):  # also one of two equal ones
            shown = said if len(said) <= 60 else f"{said[:57]}..."
            raise SpinError(
                f"The chat template's prompt does not hold the text of the {message['role']}: {shown!r}.",
                cause="a template that cuts, changes or leaves out what it is given (one for images or tools, or one "
                "with a fault): the model would be asked something else.",
                change=f"{RAW}, or --template NAME where the model has several; `spin-llm doctor` looks at it.",
            )


def option_value(text: str) -> Any:
    """The value of a --template-option: JSON (true, 3, "x", a list), else the text itself."""
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    return text


def runaway() -> SpinError:
    return SpinError(
        "The model's chat template does not end, or writes without end.",
        cause="a template with a fault, or a malicious one: it was stopped on a short message.",
        change=f"{RAW}, or use another copy of the model.",
    )


@lru_cache(maxsize=64)
def refuse_runaway(source: str, values: str) -> None:
    """SpinError when the template does not end within bounds on a short message: tried in a process of its own, since
    nothing stops a program in this one."""
    if not sys.executable:
        return
    asked = json.dumps({"source": source, "values": json.loads(values), "text": MARK * 40, "most": MOST_TEXT})
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", TRIAL, str(TRIAL_SECONDS)], input=asked, capture_output=True, text=True,
            timeout=12 * TRIAL_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise runaway() from None
    if done.returncode < 0 or done.returncode == 3:
        raise runaway()


# What failed in another way fails again where it is rendered, with its words. Platforms without `resource` have the
# time limit alone. The surroundings are those that transformers gives a template.
TRIAL = """
import json, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[1]),) * 2)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30,) * 2)
except ImportError:
    pass
import jinja2.ext, jinja2.sandbox
class Generation(jinja2.ext.Extension):
    tags = {"generation"}
    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)
def fail(message):
    raise jinja2.TemplateError(message)
asked = json.load(sys.stdin)
jinja = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
jinja.globals.update(raise_exception=fail, strftime_now=lambda form: "2001-02-03")
jinja.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False)
alone, parts = asked["text"], [{"type": "text", "text": asked["text"]}]
talks = [["user"], ["system", "user"], ["user", "assistant", "user"], ["system", "user", "assistant", "user"]]
for content, roles in [(alone, roles) for roles in talks] + [(parts, talks[0]), (parts, talks[-1]), ("", talks[0])]:
    messages = [{"role": role, "content": content} for role in roles]
    size = 0
    try:
        program = jinja.from_string(asked["source"])
        for piece in program.generate(messages=messages, add_generation_prompt=True, **asked["values"]):
            size += len(piece)
            if size > asked["most"]:
                sys.exit(3)
    except MemoryError:
        sys.exit(3)
    except Exception:
        pass
"""
