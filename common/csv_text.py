"""Escape text in CSV files so that no spreadsheet runs it as a formula. Cheap to import.

Spreadsheets run a cell that starts with `=`, `+`, `-` or `@` as a formula, which may call programs or send data away
(https://owasp.org/www-community/attacks/CSV_Injection). File names and foreign tables enter our CSV files, so such text
gets a leading apostrophe. The same holds after a `;` or a tab, where many spreadsheets also split cells. Plain numbers
such as `-1.5` are not changed.
"""

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

MAX_COLUMNS = 10_000  # of a table
_MAX_HEADER = 1_000_000  # bytes read of the first line
# The start of a formula, also with full-width signs. Existing apostrophes are skipped, so `unescape` removes only
# the one that `escape` adds.
_RUN = "'* *[=+\\-@\uff1d\uff0b\uff0d\uff20]"
_BLANK = "'*[\t\r\n]"  # spreadsheets may drop these characters
_PLAIN = re.compile(rf"(^|[;\t\r\n])(?={_RUN})|^(?={_BLANK})")
_ESCAPED = re.compile(rf"(^|[;\t\r\n])'(?={_RUN})|^'(?={_BLANK})")
_NOTABLE = re.compile("^[^0-9A-Za-z]|[;\t\r\n]")  # fast path: most text has none of these
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def escape(text: str) -> str:
    """Return text that no spreadsheet runs as a formula; `unescape` reverses it."""
    return text if not _NOTABLE.search(text) or _NUMBER.fullmatch(text) else _PLAIN.sub(r"\1'", text)


def unescape(text: str) -> str:
    """Return the original of an escaped text."""
    return _ESCAPED.sub(r"\1", text) if _NOTABLE.search(text) else text


def quoting(texts: Iterable[Any]) -> Any:
    """Return the quoting for `csv` and pandas: quote all text if any of it contains a carriage return."""
    has_return = any(isinstance(text, str) and "\r" in text for text in texts)
    return csv.QUOTE_NONNUMERIC if has_return else csv.QUOTE_MINIMAL


def check_columns(file: Path) -> None:
    """Refuse a table with more than `MAX_COLUMNS` columns, which pandas would read for minutes.

    Raises:
        ValueError: It has too many columns.
    """
    with file.open("rb") as stream:
        if stream.readline(_MAX_HEADER).count(b",") >= MAX_COLUMNS:
            raise ValueError(f"it has more than {MAX_COLUMNS:,} columns")


def write_row(stream: TextIO, cells: Sequence[Any]) -> None:
    """Write one line of CSV with escaped text.

    Args:
        stream: A text file, opened with `newline=""`.
        cells: Text and numbers.
    """
    safe = [escape(cell) if isinstance(cell, str) else cell for cell in cells]
    csv.writer(stream, lineterminator="\n", quoting=quoting(safe)).writerow(safe)
