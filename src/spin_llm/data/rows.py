"""Rows of a data file, one at a time.

In: the path of a .csv, .jsonl, .json or .parquet file (the first three also as .gz), UTF-8. Out: its rows in order,
each with the place to name in an error ("row 3 (line 4)": rows count from 1 after the header). Every defect is a
SpinError that names it. Left out: what the columns mean (columns.py); other separators and encodings, which are
refused with a hint.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from spin_llm.errors import SpinError

SUFFIXES = (".csv", ".jsonl", ".json", ".parquet", ".csv.gz", ".jsonl.gz", ".json.gz")


class Row(NamedTuple):
    where: str
    values: dict[str, Any]


def data_suffix(path: str | Path) -> str:
    """The suffix of SUFFIXES that the name ends with, or ""."""
    name = Path(path).name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of one data file. Raises SpinError: absent, a folder, unknown suffix, not UTF-8, malformed, empty."""
    if path.is_dir():
        raise SpinError(
            f"{path} is a folder, not a data file.",
            cause="the folder of the data was given instead of one file in it.",
            change="give the path of one file; for a known name (beavertails, salad, alpaca-cleaned) give the folder "
            "with --data-dir.",
        )
    if not path.exists():
        raise SpinError(
            f"There is no data file {path}.",
            cause=f"a mistyped path, or one relative to another folder than {Path.cwd()}.",
            change="check the path given as the data source.",
        )
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".json": _json_rows, ".parquet": _parquet_rows}
    reader = readers.get(data_suffix(path).removesuffix(".gz"))
    if reader is None:
        raise SpinError(
            f"{path} has a suffix that is not read: {''.join(path.suffixes) or 'none'}.",
            cause="the format of a data file is told by its suffix.",
            change=f"save the data as one of {', '.join(SUFFIXES)}.",
        )
    empty = True
    for row in reader(path):
        empty = False
        yield row
    if empty:
        raise SpinError(
            f"{path} holds no rows.",
            cause="the file is empty or has only a header.",
            change="give a file with at least one row of data.",
        )


def _text_lines(path: Path) -> Iterator[str]:
    """Decode line by line, so that a bad byte is named by its offset and large files are not held in memory."""
    offset = 0
    try:
        with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb") as file:
            for line in file:
                text = line.decode("utf-8")
                yield text.removeprefix("\ufeff") if offset == 0 else text
                offset += len(line)
    except UnicodeDecodeError as error:
        raise SpinError(
            f"{path} is not UTF-8 text: byte 0x{error.object[error.start]:02x} at offset {offset + error.start}.",
            cause="the file was saved in another encoding, such as Windows-1252, Latin-1 or UTF-16.",
            change="save it again as UTF-8 (in a spreadsheet: 'CSV UTF-8').",
        ) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SpinError(f"{path} is not a whole gzip file: {error}.", change="download or compress it again.") from None
    except PermissionError:
        raise SpinError(f"No permission to read {path}.", change="change its permissions or give a copy.") from None


def _malformed(path: Path, where: str, problem: str, cause: str) -> SpinError:
    return SpinError(f"{path}, {where}: {problem}", cause=cause, change="mend that row, or save the file again.")


def _csv_rows(path: Path) -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), 1 << 30))  # the default of 128 KiB refuses long documents
    reader = csv.reader(_text_lines(path), strict=True)
    cause = "a quote that is not closed or not doubled, or text with commas or line breaks that is not quoted."
    header: list[str] | None = None
    number = 0
    try:
        for fields in reader:
            if not fields:  # a blank line is no row
                continue
            if header is None:
                header = [name.strip() for name in fields]
                if len(set(header)) < len(header):
                    raise _malformed(path, "header", f"a column name is there twice: {', '.join(header)}.", "a typo.")
                continue
            number += 1
            where = f"row {number} (line {reader.line_num})"
            if len(fields) > len(header):
                problem = f"{len(fields)} fields where the header has {len(header)}."
                raise _malformed(path, where, problem, cause)
            yield Row(where, dict(zip(header, fields, strict=False)))
    except csv.Error as error:
        raise _malformed(
            path, f"row {number + 1} (line {reader.line_num})", f"not valid CSV: {error}.", cause
        ) from None


def _jsonl_rows(path: Path) -> Iterator[Row]:
    return _parse_lines(path, _text_lines(path))


def _parse_lines(path: Path, lines: Iterator[str]) -> Iterator[Row]:
    number = 0
    for line_number, line in enumerate(lines, 1):
        if not line.strip():  # a blank line is no row
            continue
        number += 1
        where = f"row {number} (line {line_number})"
        try:
            values = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            cause = "the file was cut short, or is not JSON lines (one object a line)."
            raise _malformed(path, where, f"not valid JSON: {error}.", cause) from None
        yield _object(path, where, values)


def _object(path: Path, where: str, values: Any) -> Row:
    if not isinstance(values, dict):
        cause = 'each row must be an object with named columns, such as {"prompt": ..., "response": ...}.'
        raise _malformed(path, where, f"not an object but {type(values).__name__}.", cause)
    return Row(where, values)


def _json_rows(path: Path) -> Iterator[Row]:
    """A list of objects, an object with that list under "data", or (as on the hub) JSON lines under a .json name."""
    text = "".join(_text_lines(path))
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and not text.lstrip().startswith("["):
            yield from _parse_lines(path, iter(text.split("\n")))
            return
        cause = "the file was cut short or edited by hand."
        raise _malformed(path, f"line {error.lineno}", f"not valid JSON: {error}.", cause) from None
    if isinstance(value, dict):
        value = value["data"] if isinstance(value.get("data"), list) else [value]
    if not isinstance(value, list):
        raise _malformed(path, "line 1", "not a list of objects.", "the file holds one bare value.")
    for number, item in enumerate(value, 1):
        yield _object(path, f"row {number}", item)


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"row {number}", values)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, OSError) as error:
        raise SpinError(
            f"{path} is not a readable parquet file: {error}", change="download or save it again."
        ) from None
