"""A bounded run of the fuzz test: every reader on the same few mutants, always; `make fuzz` runs on thousands."""

from __future__ import annotations

from pathlib import Path

import pytest
from limits import fuzz, summary
from readers import Reader, readers

MUTANTS = 60


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    return readers(tmp_path_factory.mktemp("fuzz"))


NAMES = ("patch", "scores", "search.json", "journal", "results.json", "generations", "verdicts")
NAMES += ("generations, hashed", "verdicts, alone", "scores, alone", "csv", "tsv", "jsonl", "json", "parquet", "index")
NAMES += ("conversations", "checkpoint", "adapter_config", "judge", "judge quality", "own answers", "sheet")
NAMES += ("labelled answers", "baseline.json", "gguf", "run.json", "run.json, report")


def test_every_reader_is_named(known: dict[str, Reader]) -> None:
    assert set(NAMES) == known.keys()


@pytest.mark.parametrize("name", NAMES)
def test_damage_is_read_or_refused_in_words(known: dict[str, Reader], name: str) -> None:
    known[name].use()  # what is not damaged is read
    tally = fuzz(known[name], range(MUTANTS))
    assert not tally.faults, summary(tally.faults)
    assert tally.mutants == MUTANTS
    assert tally.refused > MUTANTS // 10


def test_a_reader_that_fails_hangs_eats_memory_or_dies_is_found(tmp_path: Path) -> None:
    import os

    (tmp_path / "file").write_bytes(b"text")
    uses = {
        "KeyError": lambda: {}["key"],
        "more than": lambda: [() for _ in iter(int, 1) if _],
        "MemoryError": lambda: bytearray(3 * 2**30),
        "the process died": lambda: os.kill(os.getpid(), 9),
    }
    for words, use in uses.items():
        tally = fuzz(Reader("none", tmp_path / "file", lambda data, draw: data, use), range(2), seconds=0.5)
        assert tally.mutants == len(tally.faults) == 2
        assert words in tally.faults[0][1]
