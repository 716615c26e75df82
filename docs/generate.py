"""Pages that say what the code says, made from it: `make docs`.

In: the docstrings of the package, the commands with their options, the types of results.json. Out: docs/map.md,
options.md and results.md. A test holds the committed pages against these (tests/unit/test_docs.py). Left out: every
page that a person writes.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from textwrap import wrap
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
from cyclopts import App
from cyclopts.argument import Argument

from spin_llm.cli.main import app
from spin_llm.results.file import Results
from spin_llm.settings import GROUPS

DOCS = Path(__file__).resolve().parent
REPOSITORY = DOCS.parent
PACKAGE = REPOSITORY / "src" / "spin_llm"
COLUMNS = 100
NOTICE = "<!-- Made by docs/generate.py (`make docs`): change the code, not this page. -->"
BESIDE = {  # files that have no docstring: by folder of the package
    "data/starter/": "the starter set: pairs, questions, benign look-alikes (JSON lines)",
    "evaluate/cautionary.json": "the paper's cautionary phrases",
    "evaluate/tasks/": "lm-eval tasks of the paper that lm-eval does not have",
    "judges/shipped/": "the shipped judge, the labelled answers it was fitted and tested on, probes",
    "paper/printed.json": "the numbers that the paper prints",
    "py.typed": "says that the package has types",
    "scores/accumulate.c": "the compiled sums: blocks of each example's gradient, added while they are in the cache",
    "report/templates/": "the pages' templates, style (light and dark) and script (filter, search, lazy transcripts)",
}
AROUND = {  # the rest of the repository
    ".ci/": "what continuous integration runs; a wheel, built and used",
    "benchmarks/": "performance and quality claims, each a script with its committed results",
    "docs/": "the pages; generate.py makes three of them, picture.py the README's picture",
    "tests/data/": "a run folder that version 0.1.0 wrote",
    "tests/e2e/": "the command, as a user runs it",
    "tests/fuzz/": "damaged files against every reader, in a process with limits",
    "tests/parity/": "the fast path against slow, obvious oracles",
    "tests/property/": "laws, drawn by hypothesis",
    "tests/unit/": "one stage at a time",
}


def summary(path: Path) -> str:
    """The first paragraph of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split())


def prose(text: str) -> list[str]:
    return wrap(text, COLUMNS, break_long_words=False, break_on_hyphens=False)


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(columns)
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines]


def map_page() -> str:
    """Every file of the package by room, with what its docstring says; then what is around it."""
    lines = ["# Where everything is", "", NOTICE, "", "One line a file, from the first line of its docstring."]
    lines += ["The rooms and what may import what: [CONTRIBUTING.md](../CONTRIBUTING.md).", ""]
    folders = sorted({path.parent for path in PACKAGE.rglob("*.py")})
    for folder in folders:
        room = folder.relative_to(PACKAGE).as_posix()
        modules = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
        others = [name for name in BESIDE if str(Path(name).parent) == room]
        lines += [
            f"## {'src/spin_llm' if folder == PACKAGE else room}/",
            "",
            *prose(summary(folder / "__init__.py")),
            "",
        ]
        rows = [(f"`{path.name}`", summary(path)) for path in modules]
        rows += [(f"`{name.removeprefix(room + '/')}`", BESIDE[name]) for name in others]
        lines += [*table(("file", "what"), rows), ""]
    helpers = {f"tests/{path.name}": summary(path) for path in sorted((REPOSITORY / "tests").glob("*.py"))}
    lines += ["## Around the package", ""]
    lines += table(("file", "what"), [(f"`{name}`", what) for name, what in sorted({**AROUND, **helpers}.items())])
    return "\n".join(lines) + "\n"


SCOPES = {  # what a change of a group's options does to a run that is taken up again
    "all": "Another value is another run: scores depend on it.",
    "edit": "With another value the scores stay; the edit and all after it are made again.",
    "answers": "With another value scores and edit stay; the answers and all after them are made again.",
    "verdicts": "With another value the answers stay; they are judged again.",
    "extras": "With another value answers and verdicts stay; what is measured beside them is made again.",
    "volatile": "May change at any time: it decides how, not what, is computed.",
}
OUTPUT = "Output"  # the group that every command has some of
OPTIONS = [
    "Every option of every command. What `--help` says is the same text.",
    "A value that is not typed is taken from the environment (`SPIN_LLM_RATIO` for `--ratio`),",
    "then from the file of `--config`, then the default.",
]


def takes(hint: Any, metavar: str | None = None) -> str:
    """What an option takes, from its type."""
    if get_origin(hint) in (Union, UnionType):
        return takes(next(part for part in get_args(hint) if part is not NoneType), metavar)
    if get_origin(hint) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(hint))
    if get_origin(hint) in (list, tuple):
        return f"{takes(get_args(hint)[0], metavar)}; repeat it"
    return metavar or {str: "text", int: "integer", float: "number", bool: "", Path: "path"}[hint]


def commands(app: App, words: str = "") -> Iterator[tuple[str, App]]:
    """Every command of the command line by its words, in the order of the help."""
    for name in app:
        if not name.startswith("-"):
            within = app[name]
            inner = [*commands(within, f"{words}{name} ")]
            yield from inner or [(f"{words}{name}", within)]


def by_group(command: App) -> dict[str, list[Argument]]:
    """A command's options by the title of their group, and under "" those that it alone has."""
    titles = (*(str(group.__doc__) for group in GROUPS), OUTPUT)
    found: dict[str, list[Argument]] = {}
    for one in command.assemble_argument_collection():
        title = next((group.name for group in one.parameter.group or ()), "")
        if one.name.startswith("-"):
            found.setdefault(title if title in titles else "", []).append(one)
    return found


def option_table(options: Iterable[Argument]) -> list[str]:
    rows = []
    for one in options:
        default = one.field_info.default if one.parameter.show_default is not False else None
        shown = f"`{default}`" if default not in (None, one.field_info.empty) and default is not False else ""
        names = ", ".join(f"`{name}`" for name in one.names if not name.startswith(("--no-", "--empty-")))
        text = re.sub(r"docs/(\w+\.md)", r"[\1](\1)", one.parameter.help or "")
        rows.append((names, takes(one.hint, one.parameter.metavar), shown, text))
    return [*table(("option", "takes", "default", "what"), rows), ""]


def options_page() -> str:
    """Every option of every command: groups once, in the order in which a run needs them, then what only one takes."""
    every = {words: (command, by_group(command)) for words, command in commands(app)}
    groups: dict[str, dict[str, Argument]] = {}
    for _, taken in every.values():
        for title, options in taken.items():
            groups.setdefault(title, {}).update({one.name: one for one in options if one.name not in groups[title]})
    rows = []
    for words, (command, taken) in every.items():
        parts = []
        for title, options in taken.items():
            link = f"[{title}](#{re.sub(r'[^a-z ]', '', title.lower()).replace(' ', '-')})"
            whole = title == OUTPUT or len(options) == len(groups[title])
            parts += [link if whole else f"{link}: {', '.join(f'`{one.name}`' for one in options)}"] if title else []
        rows.append((f"`{words}`", str(command.help).partition("\n")[0], "; ".join(parts)))
    lines = ["# Options", "", NOTICE, "", *OPTIONS, "", *table(("command", "what", "options"), rows), ""]
    for group, scope in GROUPS.items():
        title = str(group.__doc__)
        lines += [f"## {title}", "", SCOPES[scope], "", *option_table(groups[title].values())]
    lines += [f"## {OUTPUT}", "", *option_table(groups[OUTPUT].values())]
    for words, (_, taken) in every.items():
        lines += [f"## Only `{words}`", "", *option_table(taken[""])] if "" in taken else []
    return "\n".join(lines)


def told(schema: Mapping[str, Any]) -> str:
    """A JSON Schema in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(told(part) for part in schema["anyOf"])
    if "enum" in schema:
        return " or ".join("null" if word is None else f'`"{word}"`' for word in schema["enum"])
    if schema.get("type") == "array":
        parts = schema.get("prefixItems")
        return f"[{', '.join(map(told, parts))}]" if parts else f"list of {told(schema['items'])}"
    if schema.get("type") == "object":
        inner = schema.get("additionalProperties")
        return f"by name: {told(inner)}" if isinstance(inner, dict) and inner else "object"
    return str(schema.get("type", "any"))


def results_page() -> str:
    """Every field of results.json, type by type, `Results` first."""
    _, types = msgspec.json.schema_components([Results], ref_template="#/$defs/{name}")
    lines = ["# results.json, field by field", "", NOTICE, ""]
    lines += ["Fields with a mark (x) are always there, the others where there is something to say."]
    lines += ["What the numbers mean: [axes](axes.md), [statistics](statistics.md), [judge](judge.md).", ""]
    for name, kind in sorted(types.items(), key=lambda item: (item[0] != Results.__name__, item[0])):
        about = " ".join(kind.get("description", "").split())
        lines += [f"## {name}", "", *([*prose(about), ""] if about else [])]
        rows = []
        for key, schema in kind["properties"].items():
            mark = "x" if key in kind.get("required", ()) else ""
            rows.append((f"`{key}`", mark, told(schema), schema.get("description", "")))
        lines += [*table(("field", "", "type", "what"), rows), ""]
    return "\n".join(lines)


PAGES: dict[str, Callable[[], str]] = {"map.md": map_page, "options.md": options_page, "results.md": results_page}


def main() -> None:
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
