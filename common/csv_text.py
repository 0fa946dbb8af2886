"""Text in CSV files that a spreadsheet does not run as a formula, and that comes back exactly; cheap to import.

A spreadsheet runs a cell that starts with `=`, `+`, `-` or `@` as a formula, which may call programs or send data away.
File names, folder names and columns of other people's tables enter our CSV files, so such text gets an apostrophe in
front (https://owasp.org/www-community/attacks/CSV_Injection). The same holds after a `;` or a tab within a cell, since
many spreadsheets split there too. A plain number such as `-1.5` stays as it is.
"""

import csv
import re
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

# Where a spreadsheet may begin a cell and what follows would be run; the last two also in full width. Apostrophes that
# are there already are skipped, so that the reader takes away exactly the one that the writer adds.
_RUN = "'* *[=+\\-@\uff1d\uff0b\uff0d\uff20]"
_BLANK = "'*[\t\r\n]"  # a spreadsheet may drop these, and then begin with what follows
_PLAIN = re.compile(rf"(^|[;\t\r\n])(?={_RUN})|^(?={_BLANK})")
_ESCAPED = re.compile(rf"(^|[;\t\r\n])'(?={_RUN})|^'(?={_BLANK})")
_NOTABLE = re.compile("^[^0-9A-Za-z]|[;\t\r\n]")  # most text has none of these, and is done with quickly
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def escape(text: str) -> str:
    """Return text that no spreadsheet runs as a formula; `unescape` gives the original back."""
    return text if not _NOTABLE.search(text) or _NUMBER.fullmatch(text) else _PLAIN.sub(r"\1'", text)


def unescape(text: str) -> str:
    """Return the text that `escape` was given."""
    return _ESCAPED.sub(r"\1", text) if _NOTABLE.search(text) else text


def quoting(texts: Iterable[Any]) -> Any:
    """Return how `csv` and pandas must quote cells: all text where a carriage return would else end the line."""
    has_return = any(isinstance(text, str) and "\r" in text for text in texts)
    return csv.QUOTE_NONNUMERIC if has_return else csv.QUOTE_MINIMAL


def write_row(stream: TextIO, cells: Sequence[Any]) -> None:
    """Write one line of CSV, its text escaped.

    Args:
        stream: A text file, opened with `newline=""`.
        cells: Text and numbers.
    """
    safe = [escape(cell) if isinstance(cell, str) else cell for cell in cells]
    csv.writer(stream, lineterminator="\n", quoting=quoting(safe)).writerow(safe)
