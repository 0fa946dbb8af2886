"""Write a report: one self-contained HTML page, and `metrics.json`, which lists the other files."""

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from markupsafe import Markup

from common.errors import InputError
from common.files import write_file
from evaluation.report.section import Figure, Section, Table, percent

METRICS_FILE = "metrics.json"
_TEMPLATE = "template.html"


@dataclass(frozen=True)
class Tile:
    """A main score at the top of a report.

    Attributes:
        name: Name of the score.
        value: Printed value.
        interval: Printed interval.
    """

    name: str
    value: str
    interval: str


@dataclass(frozen=True)
class Page:
    """The head of a page.

    Attributes:
        title: Heading.
        subtitle: Data and number of images.
        banner: Warning for every section and printed page; may be empty.
        tiles: Main scores.
        made_by: Command, versions and hashes.
    """

    title: str
    subtitle: str
    banner: str
    tiles: list[Tile]
    made_by: dict[str, str]


def write_report(
    folder: Path, page: Page, sections: list[Section], metrics: dict[str, Any], show_faces: bool
) -> dict[str, Any]:
    """Write `report.html` and, last, `metrics.json`.

    Args:
        folder: Folder of the report, with the figures and tables of the sections.
        page: Head of the page.
        sections: Sections, in order.
        metrics: Further values of `metrics.json`, before those of the sections.
        show_faces: False: remove figures that show people.

    Returns:
        Content of `metrics.json`.
    """
    left_out = [figure for section in sections for figure in section.figures if figure.shows_faces and not show_faces]
    for figure in left_out:
        figure.file.unlink(missing_ok=True)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    environment.filters["cells"] = _cells
    environment.filters["css_string"] = _css_string
    text = environment.get_template(_TEMPLATE).render(
        page=page,
        sections=sections,
        left_out=left_out,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    write_file(folder / "report.html", text.encode())
    whole = {**metrics, **{section.name: section.values for section in sections}}
    whole["files"] = sorted(
        file.name for file in folder.iterdir() if file.name != METRICS_FILE and not file.name.startswith(".")
    )
    return write_json(folder / METRICS_FILE, whole)  # last: a report without it is incomplete


def write_json(file: Path, values: Any, digits: int | None = None) -> Any:
    """Write values as JSON, atomically, and return the written values.

    NaN and infinities become null; NumPy values become plain ones.

    Args:
        file: The file.
        values: Values.
        digits: Decimals of floats; None: all.
    """
    plain = _plain(values, digits)
    write_file(file, (json.dumps(plain, indent=2, allow_nan=False) + "\n").encode())
    return plain


def read_report(folder: Path, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """Return the metrics of a complete earlier report on the same inputs, or None."""
    try:
        metrics = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = metrics.get("inputs") == inputs and all((folder / name).is_file() for name in metrics.get("files", [""]))
    return metrics if whole else None


@contextmanager
def report_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder for a report, which replaces `folder` when the block ends without error.

    Until then an earlier report is unchanged. Files that the earlier report does not list are kept.

    Args:
        folder: Final folder of the report.

    Yields:
        A hidden folder beside it, removed if the block fails.

    Raises:
        InputError: Another process is writing this report.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    part, old = (folder.with_name(f".{folder.name}.{state}") for state in ("part", "old"))
    try:
        with FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0):
            if old.is_dir():  # an earlier run was killed during the renaming below
                _keep_unlisted(old, folder) if folder.exists() else old.rename(folder)
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            try:
                yield part
                if folder.exists():
                    folder.rename(old)
                part.rename(folder)
                if old.is_dir():
                    _keep_unlisted(old, folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except Timeout as error:
        raise InputError(
            f"another process is writing the report {folder}; wait for it, or give another folder with --reports"
        ) from error


def _keep_unlisted(old: Path, folder: Path) -> None:
    """Move files that the earlier report does not list to the new folder, and remove the old one."""
    try:
        listed = json.loads((old / METRICS_FILE).read_text(encoding="utf-8")).get("files", [])
    except (OSError, ValueError, AttributeError):
        listed = []
    for file in old.iterdir():
        own = file.name in listed or file.name == METRICS_FILE or file.name.startswith(".")
        if not own and not (folder / file.name).exists():
            file.rename(folder / file.name)
    shutil.rmtree(old)


def _data_uri(figure: Figure) -> str:
    return "data:image/png;base64," + base64.b64encode(figure.file.read_bytes()).decode()


def _css_string(text: str) -> Markup:
    """Return text as an escaped CSS string."""
    return Markup('"' + "".join(c if c.isalnum() or c in " ,.-:" else f"\\{ord(c):x} " for c in text) + '"')


def _cells(table: Table) -> list[list[str]]:
    """Return the printed cells of a table, the heading first."""
    frame = table.frame
    rows = [[str(frame.index.name or ""), *map(str, frame.columns)]]
    for key, (_, row) in zip(frame.index, frame.astype(object).iterrows(), strict=True):
        values = [_cell(value, name in table.percent) for name, value in row.items()]
        rows.append([" × ".join(map(str, key)) if isinstance(key, tuple) else str(key), *values])
    return rows


def _cell(value: Any, is_share: bool) -> str:
    if isinstance(value, str):
        return value
    if value is None or pd.isna(value):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    return percent(value) if is_share else f"{value:.3f}"


def _plain(value: Any, digits: int | None) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(inner, digits) for name, inner in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(inner, digits) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return None if not np.isfinite(value) else value if digits is None else round(value, digits)
    return value
