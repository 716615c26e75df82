"""The docs: pages made from the code are those that are committed, links lead somewhere, lines are short."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

from spin_llm.settings import RunSettings, flag_of

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
PACKAGE = REPOSITORY / "src" / "spin_llm"
PAGES = sorted((*DOCS.glob("*.md"), *REPOSITORY.glob("*.md")))

spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
assert spec
assert spec.loader
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


def prose(path: Path) -> list[tuple[int, str]]:
    """(number, line) of a page's lines outside code and tables."""
    found, fenced = [], False
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        fence = line.lstrip().startswith("```")
        fenced ^= fence
        if not (fenced or fence or line.startswith("    ") or line.lstrip().startswith("|")):
            found.append((number, line))
    return found


def code(path: Path) -> str:
    """A page's blocks and spans of code, each on a line."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```|((?:^    .*\n)+)", text, re.MULTILINE | re.DOTALL)
    spans = [
        " ".join(span.split()) for span in re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    ]
    return "\n".join(["".join(block) for block in blocks] + spans)


def anchors(path: Path) -> set[str]:
    """What may stand behind the # of a link to a page, as GitHub makes it of the headings."""
    titles = [line.lstrip("# ") for _, line in prose(path) if line.startswith("#")]
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", generate.PAGES)
def test_pages_made_from_the_code_are_those_that_are_committed(name: str):
    assert (DOCS / name).read_text(encoding="utf-8") == generate.PAGES[name](), "run `make docs`"


def test_the_map_has_every_file():
    """Modules are found by themselves; other files are in two hand-written lists."""
    files = [path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*") if path.is_file()]
    others = [name for name in files if not name.endswith((".py", ".pyc"))]
    assert not [name for name in others if not name.startswith(tuple(generate.BESIDE))]
    assert not [name for name in generate.BESIDE if not (PACKAGE / name).exists()]
    assert not [name for name in generate.AROUND if not (REPOSITORY / name).exists()]
    folders = {f"tests/{path.name}/" for path in (REPOSITORY / "tests").iterdir() if path.name[0] not in "._"}
    assert {name for name in folders if (REPOSITORY / name).is_dir()} <= set(generate.AROUND)


def test_modules_named_in_docstrings_exist():
    """`name.py` is beside the module or one folder up, or is named with its room; `benchmarks/name.py` too."""
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        for name in re.findall(r"(?<![\w/.-])[\w/]+\.py\b", docstring):
            places = [place / name for place in (path.parent, path.parent.parent, PACKAGE, REPOSITORY)]
            others = "/" in name and not any(place.parent.exists() for place in places)  # a file of another project
            if not others and not any(place.exists() for place in places):
                wrong.append(f"{path.relative_to(PACKAGE)}: {name}")
    assert not wrong


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_lines_are_at_most_100_columns(path: Path):
    """Outside tables and code; a line that is one link may be longer."""
    long = [number for number, line in prose(path) if len(line) > generate.COLUMNS and " " in line.strip()]
    assert not long


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path):
    text = "\n".join(line for _, line in prose(path)) + "".join(re.findall(r"^\|.*$", path.read_text(), re.MULTILINE))
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"", text):
        link = "".join(target)
        if link.startswith(("http:", "https:")):
            continue
        name, _, anchor = link.partition("#")
        page = path.parent / name if name else path
        if not page.exists() or (anchor and anchor not in anchors(page)):
            wrong.append(link)
    assert not wrong


@pytest.mark.parametrize("path", [p for p in PAGES if p.name != "LOG.md"], ids=lambda path: path.name)
def test_modules_that_pages_name_exist(path: Path):
    """`room/name.py` in backquotes, and files of tests/ and benchmarks/. LOG.md tells of what was, and is left out."""
    named = re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.py)`", path.read_text(encoding="utf-8"))
    assert not [name for name in named if not ((PACKAGE / name).exists() or (REPOSITORY / name).exists())]


def test_the_readme_is_short_and_begins_with_two_commands():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(text.split("\n")) <= 131
    commands = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)[0].split("\n")
    assert [line.partition("#")[0].strip() for line in commands] == ["make demo", "make test", ""]


def test_the_pictures_are_small():
    pictures = sorted((DOCS / "example").glob("*.png"))
    assert len(pictures) == 2
    assert not [picture.name for picture in pictures if picture.stat().st_size > 250_000]


@pytest.mark.parametrize("path", [p for p in PAGES if p.name != "LOG.md"], ids=lambda path: path.name)
def test_options_in_commands_exist(path: Path):
    """Of every `spin-llm COMMAND ...` in code; LOG.md tells of what was."""
    known = dict(generate.commands(generate.app))
    wrong = []
    for line in re.findall(r"(?:^| )spin-llm (?!-)([^`\n]*)", code(path), re.MULTILINE):
        typed = line.partition(" #")[0].split()
        words = " ".join(typed[:2]) if typed[0] == "judge" else typed[0]
        arguments = known[words].assemble_argument_collection() if words in known else []
        names = {name for argument in arguments for name in argument.names}
        wrong += [line for word in typed if word.startswith("-") and word.partition("=")[0] not in names]
        wrong += [] if words in known else [line]
    assert not wrong


def test_the_options_page_has_every_setting():
    page = (DOCS / "options.md").read_text(encoding="utf-8")
    flags = {flag_of(name) for name in RunSettings.__dataclass_fields__} - {"--model"}
    assert not [flag for flag in sorted(flags) if f"| `{flag}` |" not in page]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_names_that_pages_import_exist(path: Path):
    for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]
