"""Templates filled in: HTML pages that load nothing, and Markdown.

In: a template's name and its context, of which every text is untrusted. Out: the page. Every expression is escaped:
as HTML by autoescape, data for the script as JSON without any character that ends a script, Markdown by its own rules.
The page's content security policy allows no request, and no script but ours, by hash.
Left out: what the pages say.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from spin_llm.errors import visible
from spin_llm.report.words import NOTHING, increase_text, number, share_text

HERE = Path(__file__).with_name("templates")
# What could end the script element, or a line of JavaScript, inside a string; JSON reads the escapes back.
SCRIPT_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&'\u2028\u2029"}
Context = Mapping[str, object]  # what a template says, by name


def render_page(template: str, context: Context, *, script: str = "", svg: Mapping[str, str] | None = None) -> str:
    """An HTML page with our style inside. `script`: the file of its script; `svg`: pictures of ours, as mark-up."""
    code = (HERE / script).read_text(encoding="utf-8") if script else ""
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    ours = {
        "pictures": {name: Markup(text) for name, text in (svg or {}).items()},
        "css": Markup((HERE / "style.css").read_text(encoding="utf-8")),
        "script": Markup(code),
        "script_source": Markup(f"'sha256-{digest}'" if code else "'none'"),
        "zip": zip,
    }
    return environment(markdown=False).get_template(template).render(context, **ours)


def render_markdown(template: str, context: Context) -> str:
    return re.sub(r"\n{3,}", "\n\n", environment(markdown=True).get_template(template).render(context))


@cache
def environment(*, markdown: bool) -> Environment:
    """Compiled templates, which escape every expression: HTML's rules are not Markdown's, where `finalize` does it."""
    found = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=not markdown,
        finalize=escape_markdown if markdown else None,
        undefined=StrictUndefined,
        keep_trailing_newline=markdown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(
        share=share_text,
        whole=lambda count: NOTHING if count is None else f"{count:,}",
        general=lambda value: NOTHING if value is None else f"{value:g}",
        increase=increase_text,
        perplexity=lambda value: number(value, "perplexity"),
        minus=lambda text: re.sub(r"(?<!\w)-(?=\d)", "−", str(text)),
        percent=lambda place: f"{100 * place:.2f}%",
        script_json=lambda value: Markup(script_json(value)),
    )
    return found


def script_json(value: Any) -> str:
    """Compact JSON that may stand inside a script element, whatever texts it holds."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(SCRIPT_ESCAPES)


def escape_markdown(value: Any) -> str:
    """Text that Markdown shows as it is, also inside a table cell: no mark-up, no HTML, no line ends, no characters
    that a terminal obeys or that turn the direction of writing around."""
    text = re.sub(r"\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]", "\n", str(value))
    text = html.escape(visible(text), quote=False)
    text = re.sub(r"([\\`*\[\]|~$])", r"\\\1", text)
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    return text.replace("\n", "<br>")
