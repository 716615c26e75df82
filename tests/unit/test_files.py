"""Files are complete or absent; a full disk is one clear error."""

from __future__ import annotations

import errno
import hashlib
import os
from functools import partial
from pathlib import Path

import pytest

from spin_llm import outputs
from spin_llm.errors import SpinError
from spin_llm.files import (
    read_json,
    read_typed_lines,
    sha256_file,
    sha256_json,
    sync_append,
    write_json,
    write_jsonl,
    write_text,
    writing,
)

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="/dev/full, a device without space, is Linux's")


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_file_appears_when_it_is_complete(tmp_path: Path):
    target = tmp_path / "new" / "file.txt"
    with writing(target) as part:
        part.write_text("half")
        assert part.parent == target.parent
        assert not target.exists()
    assert target.read_text() == "half"
    assert names(target.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
def test_a_failed_write_leaves_the_former_file(tmp_path: Path, error: BaseException):
    target = tmp_path / "file.txt"
    target.write_text("former")
    with pytest.raises(type(error)), writing(target) as part:  # noqa: PT012 - the failure is in the middle of it
        part.write_text("half")
        raise error
    assert target.read_text() == "former"
    assert names(tmp_path) == ["file.txt"]


@needs_full
@pytest.mark.parametrize("write", [lambda p: write_text(p, "text"), lambda p: write_json(p, {"a": 1})])
def test_a_full_disk_is_one_clear_error(tmp_path: Path, write, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "file.json"
    target.write_text("former")
    temporary = tmp_path / "unfinished.part"
    temporary.symlink_to(FULL)
    monkeypatch.setattr(outputs, "temporary", lambda path: temporary)
    with pytest.raises(SpinError, match="The disk is full") as caught:
        write(target)
    assert str(target) in caught.value.what
    assert "--output" in caught.value.change
    assert target.read_text() == "former"
    assert names(tmp_path) == ["file.json"]


@needs_full
def test_appending_on_a_full_disk(tmp_path: Path):
    (tmp_path / "progress.jsonl").symlink_to(FULL)
    with pytest.raises(SpinError, match="The disk is full"):
        sync_append(tmp_path / "progress.jsonl", [{"a": 1}])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_quota_and_size_limits_count_as_a_full_disk(tmp_path: Path, number: int):
    with pytest.raises(SpinError, match="The disk is full"), writing(tmp_path / "file"):
        raise OSError(number, os.strerror(number))


def test_a_folder_that_cannot_be_written_to(tmp_path: Path):
    with pytest.raises(SpinError, match="No permission to write"), writing(tmp_path / "file"):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_other_errors_stay_what_they_are(tmp_path: Path):
    with pytest.raises(OSError, match="odd") as caught, writing(tmp_path / "file"):
        raise OSError(errno.EIO, "odd")
    assert not isinstance(caught.value, SpinError)


def test_nan_is_not_json(tmp_path: Path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file.json", {"a": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        write_jsonl(tmp_path / "file.jsonl", [{"a": float("inf")}])
    assert not names(tmp_path)


def test_json_and_lines_round_trip(tmp_path: Path):
    rows = [{"text": "Où\u2028là\nici", "n": 1}, {"text": "", "n": None}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    write_json(tmp_path / "value.json", rows)
    assert read_typed_lines(tmp_path / "rows.jsonl", dict) == rows == read_json(tmp_path / "value.json")
    sync_append(tmp_path / "rows.jsonl", rows[:1])
    assert read_typed_lines(tmp_path / "rows.jsonl", dict) == [*rows, rows[0]]


@pytest.mark.parametrize(
    ("read", "words"),
    [(read_json, "is not valid JSON"), (partial(read_typed_lines, kind=dict), "line 1 cannot be read")],
)
def test_reading_what_is_absent_or_broken(tmp_path: Path, read, words: str):
    with pytest.raises(SpinError, match="There is no file"):
        read(tmp_path / "absent")
    for content in (b'{"a": ', b"\xff\xfe"):
        (tmp_path / "broken").write_bytes(content)
        with pytest.raises(SpinError, match=words):
            read(tmp_path / "broken")


def test_digests(tmp_path: Path):
    content = b"abc" * (1 << 20)  # more than one block
    (tmp_path / "file").write_bytes(content)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    assert (
        sha256_json({"b": 1, "a": [1, 2]}) == sha256_json({"a": [1, 2], "b": 1}) != sha256_json({"a": [2, 1], "b": 1})
    )


def test_the_message_of_an_error_says_what_why_and_how():
    error = SpinError("It broke.", cause="rust.", change="oil it.")
    assert str(error).splitlines() == ["It broke.", "Likely cause: rust.", "To change it: oil it."]
    assert str(SpinError("It broke.")) == "It broke."
