"""Rows of a data file, one at a time.

In: the path of a .csv, .tsv, .jsonl, .json or .parquet file (all but the last also as .gz), UTF-8. Out: its rows in
order, each with the place to name in an error ("row 3 (line 4)": rows count from 1 after the header). Every defect is
a SpinError that names it; a row of more than LONGEST_ROW bytes is one. Left out: what the columns mean (columns.py);
other separators and encodings, which are refused with a hint.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from spin_llm.errors import SpinError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".json.gz")
LONGEST_ROW = 1 << 25  # bytes: with what Python makes of hostile JSON, more would take over 2 GiB
LONGEST_JSON = 3 << 24  # bytes of a .json file, which is read at once


class Row(NamedTuple):
    where: str
    values: dict[str, object]


ReadRows = Callable[[Path], Iterable[Row]]  # `read_rows`, or what keeps the rows of a file that is read more than once


def data_suffix(path: str | Path) -> str:
    """The suffix of SUFFIXES that the name ends with, or ""."""
    name = Path(path).name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def shown(names: Iterable[str], most: int = 20) -> str:
    """Names for a message: the first ones, each cut to 40 characters."""
    names = list(names)
    first = ", ".join(name if len(name) <= 40 else f"{name[:37]}..." for name in names[:most])
    return first if len(names) <= most else f"{first}, ... ({len(names)} in all)"


def repeated(names: Iterable[str]) -> list[str]:
    """The names that are there more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of one data file. Raises SpinError: absent, a folder, unknown suffix, not UTF-8, malformed, empty, or
    larger than memory."""
    if not os.path.exists(path):  # noqa: PTH110 - which raises nothing for a name too long, or with a zero byte
        raise SpinError(
            f"There is no data file {str(path)[:200]}.",
            cause=f"a mistyped path, or one relative to another folder than {Path.cwd()}.",
            change="check the path given as the data source.",
        )
    if path.is_dir():
        raise SpinError(
            f"{path} is a folder, not a data file.",
            cause="the folder of the data was given instead of one file in it.",
            change="give the path of one file; for a known name (beavertails, salad, alpaca-cleaned) give the folder "
            "with --data-dir.",
        )
    if not path.is_file():
        raise SpinError(f"{path} is not a regular file.", change="save the data in a file, and give its path.")
    readers = {".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _jsonl_rows, ".json": _json_rows}
    readers[".parquet"] = _parquet_rows
    reader = readers.get(data_suffix(path).removesuffix(".gz"))
    if reader is None:
        raise SpinError(
            f"{path} has a suffix that is not read: {''.join(path.suffixes) or 'none'}.",
            cause="the format of a data file is told by its suffix.",
            change=f"save the data as one of {', '.join(SUFFIXES)}.",
        )
    empty = True
    try:
        for row in reader(path):
            empty = False
            yield row
    except MemoryError:
        change = "give a part of it, or a machine with more."
        raise SpinError(f"{path} does not fit in memory.", change=change) from None
    if empty:
        raise SpinError(
            f"{path} holds no rows.",
            cause="the file is empty or has only a header.",
            change="give a file with at least one row of data.",
        )


def _text_lines(path: Path, longest: int | None = None) -> Iterator[str]:
    """Decode line by line, so that a bad byte is named by its offset and large files are not held in memory."""
    offset = number = 0
    try:
        with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb") as file:
            longest = longest or LONGEST_ROW
            while line := file.readline(longest + 1):
                number += 1
                if len(line) > longest:
                    raise _too_long(path, f"line {number}", longest, "give one row a line (.jsonl for JSON).")
                text = line.decode("utf-8")
                if "\0" in text:
                    problem = f"a zero byte at offset {offset + line.index(0)}: this is not text."
                    raise _malformed(path, f"line {number}", problem, "a damaged file, or UTF-16.")
                yield text.removeprefix("\ufeff") if offset == 0 else text
                offset += len(line)
    except UnicodeDecodeError as error:
        raise SpinError(
            f"{path}, line {number} is not UTF-8 text: byte 0x{error.object[error.start]:02x} at offset "
            f"{offset + error.start}.",
            cause="the file was saved in another encoding, such as Windows-1252, Latin-1 or UTF-16.",
            change="save it again as UTF-8 (in a spreadsheet: 'CSV UTF-8').",
        ) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SpinError(f"{path} is not a whole gzip file: {error}.", change="download or compress it again.") from None
    except PermissionError:
        raise SpinError(f"No permission to read {path}.", change="change its permissions or give a copy.") from None
    except OSError as error:
        raise SpinError(f"{path} could not be read: {error.strerror or error}.", change="give a copy.") from None


def _too_long(path: Path, where: str, most: int, change: str) -> SpinError:
    return SpinError(
        f"{path}, {where}: more than {most >> 20} MiB.",
        cause="a file without line breaks, a quote that is never closed, or another kind of file.",
        change=change,
    )


def _malformed(path: Path, where: str, problem: str, cause: str) -> SpinError:
    return SpinError(f"{path}, {where}: {problem}", cause=cause, change="mend that row, or save the file again.")


def _csv_rows(path: Path) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_ROW)  # the default of 128 KiB refuses long documents
    separator = "\t" if data_suffix(path).startswith(".tsv") else ","
    reader = csv.reader(_text_lines(path), strict=True, delimiter=separator)
    cause = "a quote that is not closed or not doubled, or text with commas or line breaks that is not quoted."
    header: list[str] | None = None
    number = 0
    try:
        for fields in reader:
            if not fields:  # a blank line is no row
                continue
            if header is None:
                header = [name.strip() for name in fields]
                if twice := repeated(filter(None, header)):
                    raise _malformed(path, "header", f"a column name is there twice: {shown(twice)}.", "a typo.")
                continue
            number += 1
            where = f"row {number} (line {reader.line_num})"
            if len(fields) > len(header):
                problem = f"{len(fields)} fields where the header has {len(header)}."
                raise _malformed(path, where, problem, cause)
            yield Row(where, dict(zip(header, fields, strict=False)))
    except csv.Error as error:
        where = f"row {number + 1} (line {reader.line_num})"
        raise _malformed(path, where, f"not valid CSV: {error}.", cause) from None


def _jsonl_rows(path: Path, lines: Iterable[str] | None = None) -> Iterator[Row]:
    number = 0
    for line_number, line in enumerate(_text_lines(path) if lines is None else lines, 1):
        if not line.strip():  # a blank line is no row
            continue
        number += 1
        where = f"row {number} (line {line_number})"
        try:
            values = json.loads(line, object_pairs_hook=_object_of)
        except (ValueError, RecursionError) as error:  # an integer of thousands of digits is a ValueError
            cause = "the file was cut short, or is not JSON lines (one object a line)."
            raise _malformed(path, where, f"not valid JSON: {error}.", cause) from None
        yield _object(path, where, values)


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, object]:
    """A JSON object; ValueError when a key is there twice, of which the last would count without a word."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"a key is there twice: {shown(repeated(name for name, _ in pairs))}")
    return values


def _object(path: Path, where: str, values: Any) -> Row:
    if not isinstance(values, dict):
        cause = 'each row must be an object with named columns, such as {"prompt": ..., "response": ...}.'
        raise _malformed(path, where, f"not an object but {type(values).__name__}.", cause)
    return Row(where, values)


def _json_rows(path: Path) -> Iterator[Row]:
    """A list of objects, an object with that list under "data", or (as on the hub) JSON lines under a .json name."""
    parts: list[str] = []
    size = 0
    for line in _text_lines(path, LONGEST_JSON):
        parts.append(line)
        size += len(line)
        if size > LONGEST_JSON:
            raise _too_long(path, "as a whole", LONGEST_JSON, "save it as .jsonl (one object a line): jq -c '.[]'.")
    text = "".join(parts)
    if not text.strip():
        return
    try:
        value = json.loads(text, object_pairs_hook=_object_of)
    except (ValueError, RecursionError) as error:
        where = "the file"
        if isinstance(error, json.JSONDecodeError):
            where = f"line {error.lineno}"
            if error.msg == "Extra data" and not text.lstrip().startswith("["):
                yield from _jsonl_rows(path, parts)
                return
        cause = "the file was cut short or edited by hand."
        raise _malformed(path, where, f"not valid JSON: {error}.", cause) from None
    if isinstance(value, dict):
        value = value["data"] if isinstance(value.get("data"), list) else [value]
    if not isinstance(value, list):
        raise _malformed(path, "line 1", "not a list of objects.", "the file holds one bare value.")
    for number, item in enumerate(value, 1):
        yield _object(path, f"row {number}", item)


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if twice := repeated(file.schema_arrow.names):
                raise _malformed(path, "header", f"a column name is there twice: {shown(twice)}.", "a typo.")
            for batch in file.iter_batches(batch_size=256):
                if batch.get_total_buffer_size() > LONGEST_ROW << 3:
                    where = f"the 256 rows after row {number}"
                    raise _too_long(path, where, LONGEST_ROW << 3, "leave out the longest.")
                for place in range(batch.num_rows):
                    number += 1
                    yield Row(f"row {number}", batch.slice(place, 1).to_pylist()[0])
    except UnicodeDecodeError as error:
        raise _malformed(path, f"row {number}", f"a text is not UTF-8: {error}.", "text of another encoding.") from None
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise SpinError(
            f"{path} is not a readable parquet file (after row {max(number - 1, 0)}): {str(error)[:300]}",
            change="download or save it again.",
        ) from None
