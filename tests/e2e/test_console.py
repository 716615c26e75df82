"""Where the command's output goes: consoles that cannot print everything, readers that leave, -q."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from harness import Command, environment, finished, process

from spin_llm.errors import visible

pytest_plugins = ["harness"]
PRINTED = "\u2013 \u4e2d\u6587 \U0001f642 \u00e9 \udcc3\udca9 end"
CALL = (
    "import sys; from spin_llm.cli import main, terminal; "
    "main.app = lambda _: {call}; sys.argv = ['spin-llm', 'run']; main.main()"
)


def called(call: str, *, shell: str = "", **more: str) -> subprocess.CompletedProcess[bytes]:
    """The entry point around one call in the place of a command."""
    return subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {shell}', sys.executable, CALL.format(call=call)],
        env=environment(**more),
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8", "latin-1", "cp437"])
def test_what_a_console_cannot_print_is_spelt(encoding: str):
    """Lines, JSON and tables, whatever their characters; JSON stays JSON with the same value."""
    table = f"terminal.draw([({PRINTED!a}, ['a'], [[{PRINTED!a}]])], [{PRINTED!a}])"
    lines = called(f"(terminal.show(0, [{PRINTED!a}], as_json=False), {table})", PYTHONIOENCODING=encoding)
    assert (lines.returncode, lines.stderr) == (0, b"")
    assert b" end" in lines.stdout
    assert b"\xc3\xa9 end" in lines.stdout, "the bytes of a path, as they came in"
    value = PRINTED.replace("\udcc3\udca9 ", "")
    found = called(f"terminal.show([{value!a}], [], as_json=True)", PYTHONIOENCODING=encoding)
    assert (found.returncode, json.loads(found.stdout.decode(encoding))) == (0, [value])


@pytest.mark.parametrize(
    "call",
    [
        "terminal.show(0, ['x' * 99] * 9999, as_json=False)",
        "terminal.show(['x' * 99] * 9999, [], as_json=True)",
        "terminal.draw([('t', ['a'], [['x' * 99]] * 999)], [])",
        "terminal.show(0, ['short'], as_json=False)",
    ],
)
def test_a_reader_that_leaves_is_no_mistake(call: str):
    left = called(call, shell="| true; exit ${PIPESTATUS[0]}")
    assert left.returncode in (0, 141)
    assert left.stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full, a device without space, is Linux's")
def test_a_result_that_cannot_be_printed_is_said():
    full = called("terminal.show(0, ['short'], as_json=False)", shell="> /dev/full")
    assert full.returncode == 2
    assert full.stderr.startswith(b"spin-llm: The result could not be printed")
    closed = called("terminal.show(0, ['short'], as_json=False)", shell=">&-")
    assert (closed.returncode, closed.stderr) == (0, b"")


def test_a_message_shows_what_a_terminal_would_obey():
    assert visible("a\x1b[31m\u202eb\n\tc\u05d0") == "a<U+001B>[31m<U+202E>b\n\tc\u05d0"
    outcome = finished(process("report", "no\x1b[2Jsuch", interpreter=("-m", "spin_llm.cli")))
    assert outcome.code == 2
    assert "\x1b" not in outcome.err


@pytest.mark.parametrize("verb", ["run", "sweep", "score", "select", "apply", "eval", "baseline", "paper", "judge fit"])
def test_the_help_says_where_the_result_is_written(verb: str, command: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = command(*verb.split(), "--help").out
    line = next(line for line in shown.splitlines() if "--output" in line)
    assert "default" in line


def test_quiet_leaves_the_paths_and_a_table_that_is_all_there_is(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("spin_llm.pipeline.sweep", lambda *_, **__: {})
    outcome = command("sweep", "m", "-q", "-o", tmp_path)
    assert (outcome.code, outcome.out.split()) == (0, [f"{tmp_path}/search.json", f"{tmp_path}/patch.safetensors"])
    rows = [{"concept": "fairness", "prompt": "p", "answer": f"a {i}", "aware": i % 2} for i in range(8)]
    (tmp_path / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = command("judge", "check", tmp_path / "labelled.jsonl", "-q")
    written = command("judge", "check", tmp_path / "labelled.jsonl", "-q", "-o", tmp_path / "quality.json")
    assert (table.code, "fairness" in table.out) == (0, True), table.err
    assert (written.code, written.out.strip()) == (0, str(tmp_path / "quality.json"))
