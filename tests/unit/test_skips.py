"""Skips are counted by reason; with CI_NO_SKIPS only an absent GPU or ../shared is let pass."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
GPU, SHARED, BROWSER = "no GPU", "../shared is not beside this checkout", "no browser on the path"


def closing_lines(folder: Path, reasons: list[str], workers: list[str], **more: str) -> tuple[int, list[str]]:
    """Exit status and output of pytest on one test that passes and a skipped one for each reason."""
    skips = [f"@pytest.mark.skip(reason={why!r})\ndef test_{n}(): pass\n" for n, why in enumerate(reasons)]
    (folder / "test_it.py").write_text("import pytest\n\ndef test_passes(): pass\n" + "".join(skips))
    command = [sys.executable, "-m", "pytest", "-p", "skips", *workers, str(folder)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("CI_", "PYTEST_"))}
    environment |= {"PYTHONPATH": str(TESTS), **more}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize(
    ("reasons", "strict", "workers", "code"),
    [
        ([GPU, SHARED, SHARED], True, [], 0),
        ([GPU, BROWSER], True, [], 1),
        ([GPU, BROWSER], True, ["-n", "2"], 1),
        ([GPU, BROWSER], False, [], 0),
        ([], True, [], 0),
    ],
)
def test_skips_are_counted_and_only_two_reasons_are_lawful(
    reasons: list[str], strict: bool, workers: list[str], code: int, tmp_path: Path
):
    status, lines = closing_lines(tmp_path, reasons, workers, **({"CI_NO_SKIPS": "1"} if strict else {}))
    assert status == code, lines
    assert any(f" {len(reasons)} skipped, by reason " in line for line in lines)
    for reason in set(reasons):
        (line,) = [line for line in lines if line.lstrip().startswith(f"{reasons.count(reason)}  {reason}")]
        assert ("FAULT" in line) == (code == 1 and reason == BROWSER)
    assert "1 passed" in lines[-1]


def test_a_module_that_is_skipped_whole_counts_too(tmp_path: Path):
    (tmp_path / "test_none.py").write_text(
        "import pytest\n\npytest.importorskip('no_such_module', reason='no module')\n"
    )
    status, lines = closing_lines(tmp_path, [], [], CI_NO_SKIPS="1")
    assert status == 1
    assert any("no module" in line and "FAULT" in line for line in lines)


def test_a_test_that_hangs_ends_and_the_others_go_on(tmp_path: Path):
    """As pyproject.toml sets it: a worker that hangs is ended and named, and another one does the rest."""
    (tmp_path / "test_hang.py").write_text(
        "import time\n\ndef test_hangs(): time.sleep(60)\n\ndef test_after(): pass\n"
    )
    hang = ["-n", "1", "-o", "faulthandler_timeout=2", "-o", "faulthandler_exit_on_timeout=true"]
    status, lines = closing_lines(tmp_path, [], hang)
    assert status == 1
    assert any("crashed while running" in line and "test_hangs" in line for line in lines)
    assert "1 failed, 2 passed" in lines[-1]
