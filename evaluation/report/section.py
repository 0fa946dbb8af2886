"""What a part of the evaluation found, in the form that the report prints: sentences, tables, figures, warnings.

Each part of the evaluation is a function that takes labels and probabilities (and what else it needs) and returns a
`Section`; the report shows sections one below the other and knows nothing of what they mean.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

NO_BREAK = "\u00a0"  # a space that no line ends at


def percent(share: float, digits: int = 1) -> str:
    """Return a share, 0-1, as one reads it: `67.4 %`."""
    return f"{100 * share:.{digits}f}{NO_BREAK}%"


def interval_text(level: float) -> str:
    """Return what an interval of a level, 0-1, is called, such as `90 % interval`."""
    return f"{100 * level:g}{NO_BREAK}% interval"


@dataclass(frozen=True)
class Figure:
    """A picture that a section has drawn.

    Attributes:
        file: The PNG; the numbers behind it lie beside it as a CSV of the same name, where it shows numbers.
        caption: What it shows, and on what data.
        description: What one would say to somebody who cannot see it.
        shows_faces: It shows pictures of people, which `--no-faces` leaves out.
    """

    file: Path
    caption: str
    description: str
    shows_faces: bool = False


@dataclass(frozen=True)
class Table:
    """Numbers to be printed as a table.

    Attributes:
        frame: The table; its index is the first column.
        caption: What it shows, and on what data.
        percent: Columns that hold shares, 0-1, to be printed as percentages.
    """

    frame: pd.DataFrame
    caption: str
    percent: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """One part of a report.

    Attributes:
        name: Key of its numbers in `metrics.json`, and the anchor in the report.
        title: Its heading.
        sentences: What was found, in words; one paragraph each.
        warnings: What makes a number of it less than clean; shown as banners.
        tables: In the order of the report.
        figures: In the order of the report.
        values: Its numbers, for `metrics.json`.
        texts: Text to be shown as it is, in a typewriter face, such as scikit-learn's report.
    """

    name: str
    title: str
    sentences: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
