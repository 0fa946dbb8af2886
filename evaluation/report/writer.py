"""Sections to files: one self-contained HTML page, and `metrics.json`, which vouches for the rest."""

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
from common.files import atomic_file
from evaluation.report.section import Figure, Section, Table, percent

METRICS_FILE = "metrics.json"
_TEMPLATE = "template.html"


@dataclass(frozen=True)
class Tile:
    """One of the figures at the top of a report.

    Attributes:
        name: What it is.
        value: As printed.
        interval: Its interval, as printed.
    """

    name: str
    value: str
    interval: str


@dataclass(frozen=True)
class Page:
    """What stands above the sections.

    Attributes:
        title: The page's heading.
        subtitle: What was measured on what.
        banner: One line for every section and every printed page; empty where the figures are clean.
        tiles: The main figures.
        made_by: How this report can be made again: command, versions, hashes.
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
        folder: The report's folder, in which the sections have put their figures and tables already.
        page: What stands above the sections.
        sections: In the order of the report.
        metrics: What else `metrics.json` is to hold; each section's values follow under its name.
        show_faces: False leaves figures out that show people; their files are removed.

    Returns:
        What `metrics.json` holds.
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
    with atomic_file(folder / "report.html") as temporary:
        temporary.write_text(text, encoding="utf-8")
    whole = {**metrics, **{section.name: section.values for section in sections}}
    whole["files"] = sorted(
        file.name for file in folder.iterdir() if file.name != METRICS_FILE and not file.name.startswith(".")
    )
    return write_json(folder / METRICS_FILE, whole)  # last: it vouches for the other files


def write_json(file: Path, values: Any, digits: int | None = None) -> Any:
    """Write values so that a reader sees all of them or none, and return them as JSON knows them.

    NaN and infinities become null, numpy's numbers and arrays plain ones.

    Args:
        file: The file.
        values: What it is to hold.
        digits: Decimals that numbers keep; None: all.
    """
    plain = _plain(values, digits)
    with atomic_file(file) as temporary:
        temporary.write_text(json.dumps(plain, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return plain


def read_report(folder: Path, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """Return the metrics of an earlier report on the same inputs, if it is whole."""
    try:
        metrics = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = metrics.get("inputs") == inputs and all((folder / name).is_file() for name in metrics.get("files", [""]))
    return metrics if whole else None


@contextmanager
def report_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write a report to. It replaces `folder` as a whole when the block ends without error.

    Until then an earlier report stays as it is. Files in `folder` that the earlier report does not list are kept.

    Args:
        folder: Where the report belongs.

    Yields:
        A hidden folder beside it, which is removed if the block fails.

    Raises:
        InputError: another process is writing this report.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    part, old = (folder.with_name(f".{folder.name}.{state}") for state in ("part", "old"))
    try:
        with FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0):
            if old.is_dir():  # an earlier run was killed between the two renamings below, or after them
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
    """Move what is not an earlier report's own from its folder to the new one, and remove the folder."""
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
    """Return text as a CSS string that ends neither itself nor the style element; others than letters are escaped."""
    return Markup('"' + "".join(c if c.isalnum() or c in " ,.-:" else f"\\{ord(c):x} " for c in text) + '"')


def _cells(table: Table) -> list[list[str]]:
    """Return a table's rows as one reads them, the heading first."""
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
