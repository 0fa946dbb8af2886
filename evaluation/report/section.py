"""The sections of a report: sentences, tables, figures and warnings, independent of what they mean."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

NO_BREAK = "\u00a0"


def percent(share: float, digits: int = 1) -> str:
    """Return a share, 0-1, as text: `67.4 %`."""
    return f"{100 * share:.{digits}f}{NO_BREAK}%"


def interval_text(level: float) -> str:
    """Return the name of an interval of a level, 0-1: `90 % interval`."""
    return f"{100 * level:g}{NO_BREAK}% interval"


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        file: The PNG. Its numbers are in a CSV of the same name.
        caption: Content and data.
        description: Alternative text.
        shows_faces: Whether it shows people, which `--no-faces` leaves out.
    """

    file: Path
    caption: str
    description: str
    shows_faces: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        frame: The table; its index is the first column.
        caption: Content and data.
        percent: Columns with shares, 0-1, printed as percentages.
    """

    frame: pd.DataFrame
    caption: str
    percent: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """A section of a report.

    Attributes:
        name: Key in `metrics.json`, and anchor in the report.
        title: Heading.
        sentences: Paragraphs.
        warnings: Shown as banners.
        tables: Tables, in order.
        figures: Figures, in order.
        values: Values for `metrics.json`.
        texts: Preformatted text.
    """

    name: str
    title: str
    sentences: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
