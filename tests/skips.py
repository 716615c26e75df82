"""Skips are told, and where CI_NO_SKIPS is set only those of a machine that lacks a GPU or ../shared are let pass.

In: pytest's reports, by the hooks that conftest.py takes from here. Out: closing lines that count skipped tests by
reason; exit status 1 for a reason that is not among the two. Left out: deselected tests, which were asked for.
"""

from __future__ import annotations

import os
import re
from collections import Counter

import pytest

MAY_LACK = re.compile(r"\bGPU\b|\.\./shared\b")  # a reason names what the machine lacks


def skipped(reporter: pytest.TerminalReporter) -> Counter[str]:
    """How many tests, or modules of tests, were skipped, by reason."""
    return Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reporter.stats.get("skipped", []))


def unlawful(reporter: pytest.TerminalReporter) -> list[str]:
    """The reasons that CI_NO_SKIPS does not let pass."""
    return [reason for reason in skipped(reporter) if os.environ.get("CI_NO_SKIPS") and not MAY_LACK.search(reason)]


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")  # absent in the workers of pytest-xdist
    if reporter and session.exitstatus == pytest.ExitCode.OK and unlawful(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found, faults = skipped(terminalreporter), unlawful(terminalreporter)
    terminalreporter.section(f"{found.total()} skipped, by reason")
    for reason, count in found.most_common():
        mark = "  <- FAULT: CI_NO_SKIPS lets only a GPU or ../shared be absent" if reason in faults else ""
        terminalreporter.line(f"{count:5}  {reason}{mark}")
