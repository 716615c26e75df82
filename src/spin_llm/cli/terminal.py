"""What the command prints: bars and lines while it works, tables and sentences at its end.

In: a terminal, a pipe or a file; results. Out: text that the stream can show. Left out: what is said (report/).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spin_llm.errors import SpinError, visible

if TYPE_CHECKING:
    from spin_llm.progress import Advance, Console
    from spin_llm.results.file import Results


@contextmanager
def console_of(quiet: bool) -> Iterator[Console]:
    """A Console that draws progress bars on stderr, or, without a terminal, a line every minute and one at the end of
    each piece of work."""
    from spin_llm.progress import SILENT, Pulse, told
    from spin_llm.progress import Console as LibraryConsole

    if quiet:
        yield SILENT
        return
    from rich.console import Console as Terminal
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    terminal = Terminal(stderr=True, highlight=False, soft_wrap=True)
    columns = ("{task.description:<26}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal, disable=not terminal.is_terminal) as progress:

        def say(line: str) -> None:
            terminal.print(visible(line), markup=False)

        @contextmanager
        def bar(title: str, total: int) -> Iterator[Advance]:
            if not terminal.is_terminal:
                pulse = Pulse(title, total)
                with told(pulse, say) as advance:
                    yield advance
                say(f"{title}: {total} in {pulse.clock() - pulse.start:.0f} s")
                return
            task = progress.add_task(title, total=total)
            try:
                yield lambda done: progress.advance(task, done)
            finally:
                progress.stop_task(task)

        yield LibraryConsole(say, bar)


def show(value: Any, lines: list[Any], *, as_json: bool) -> None:
    """The result on stdout: as JSON (only ASCII where stdout is not UTF-8, since JSON has its own escapes), or one line
    each."""
    import json

    from spin_llm.results.file import written

    plain = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") != "utf8"
    try:
        text = json.dumps(written(value), indent=2, ensure_ascii=plain) if as_json else "\n".join(map(str, lines))
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise SpinError(f"The result could not be printed: {error.strerror}; what was written is there.") from None


def draw(tables: list[Any], remarks: list[str], *, otherwise: int = 190, title_style: str | None = None) -> None:
    """Tables (title, columns, rows) and the remarks under them, on stdout, as wide as the terminal, or
    `otherwise` in a file or pipe."""
    from rich.console import Console as Terminal
    from rich.markup import escape
    from rich.table import Table

    at_terminal = sys.stdout is not None and sys.stdout.isatty()
    terminal = Terminal(highlight=False, width=None if at_terminal else otherwise)
    for title, columns, rows in tables:
        table = Table(*columns, title=title, title_justify="left", title_style=title_style)
        for row in rows:
            table.add_row(*map(escape, row))
        terminal.print(table)
    for line in remarks:
        terminal.print(line, markup=False)


def show_results(results: Results, folder: Path, *, as_json: bool, quiet: bool) -> None:
    """Headline, table and the paths of report and patch; as JSON what results.json holds."""
    from rich.table import Column

    from spin_llm.report.sections.table import COLUMNS, missing_lines, table_rows
    from spin_llm.report.summary import headline, judge_lines

    missing = [] if as_json else missing_lines(results)
    if not (as_json or quiet):
        columns = [Column(name, justify="left" if name in ("axis", "reading") else "right") for name in COLUMNS]
        table = (headline(results), columns, [(*row.cells[:-1], row.short) for row in table_rows(results)])
        draw([table], [*missing, *judge_lines(results)], otherwise=140, title_style="bold")
    elif missing:  # what no result says must be seen all the same
        print(*missing, sep="\n", file=sys.stderr)
    names = ("patch.safetensors", "report.html", "report.md", "results.json")
    show(results, [folder / name for name in names if (folder / name).is_file()], as_json=as_json)


def slug(model: str) -> str:
    """A folder name for a model."""
    name = Path(model.partition("@http")[0]).name.removesuffix(".gguf") or "model"
    return "".join(character if character.isalnum() or character in "-_." else "-" for character in name)
