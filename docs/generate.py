"""Pages that say what the code says, made from it: `make docs`.

In: the docstrings of the package. Out: docs/map.md. A test holds the committed pages against these
(tests/unit/test_docs.py). Left out: every page that a person writes.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from pathlib import Path
from textwrap import wrap

DOCS = Path(__file__).resolve().parent
REPOSITORY = DOCS.parent
PACKAGE = REPOSITORY / "src" / "spin_llm"
COLUMNS = 100
NOTICE = "<!-- Made by docs/generate.py (`make docs`): change the code, not this page. -->"
BESIDE = {  # files that have no docstring: by folder of the package
    "data/starter/": "the starter set: pairs, questions, benign look-alikes (JSON lines)",
    "evaluate/tasks/": "lm-eval tasks of the paper that lm-eval does not have",
    "judges/shipped/": "the shipped judge, the labelled answers it was fitted and tested on, probes",
    "paper/printed.json": "the numbers that the paper prints",
    "py.typed": "says that the package has types",
    "report/templates/": "the pages' templates, style (light and dark) and script (filter, search, lazy transcripts)",
    "results.schema.json": "the JSON schema of results.json",
}
AROUND = {  # the rest of the repository
    ".ci/run": "what the checks on a fresh machine run",
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


PAGES: dict[str, Callable[[], str]] = {"map.md": map_page}


def main() -> None:
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
