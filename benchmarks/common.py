"""Code that the benchmarks share: options, videos to read, timing in pairs, and the table of results."""

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from common.files import write_file
from preprocessing.datasets.sample import PORTRAIT
from realtime.sources import open_source

Row = dict[str, Any]
JsonFile = Annotated[Path | None, typer.Option("--json", help="File to write the figures to.")]
Videos = Annotated[list[Path] | None, typer.Option("--video", help="Video; repeat for several.")]
SEED = 7


def resident_bytes(process: int | str = "self") -> int:
    """Return the memory that a process holds, by its number. Linux only."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def read_frames(file: Path, count: int | None = None) -> tuple[list[np.ndarray], float]:
    """Return the first frames of a video, uint8 BGR, and its frames per second."""
    with closing(open_source(str(file))) as source:
        images_bgr = []
        for frame in source:
            images_bgr.append(frame.image_bgr)
            if len(images_bgr) == count:
                break
        return images_bgr, source.fps


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """Return `count` items at equal distances."""
    return [items[index] for index in np.linspace(0, len(items) - 1, count).astype(int)]


def write_portrait_video(file: Path, count: int, fps: float = 30.0) -> Path:
    """Write a 640x480 video in which the portrait moves slowly over a gray background."""
    portrait_bgr = cv2.imread(str(PORTRAIT))
    assert portrait_bgr is not None
    small_bgr = cv2.resize(portrait_bgr, (256, 300), interpolation=cv2.INTER_AREA)
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), fps, (640, 480))
    for index in range(count):
        frame_bgr = np.full((480, 640, 3), 110, np.uint8)
        left, top = round(190 + 120 * np.sin(index / 25)), round(90 + 50 * np.cos(index / 40))
        frame_bgr[top : top + 300, left : left + 256] = small_bgr
        writer.write(frame_bgr)
    writer.release()
    return file


def compare(
    work: str, reference: Callable[[Any], Any], ours: Callable[[Any], Any], items: Sequence[Any], **more: Any
) -> Row:
    """Time two functions on each item in turn.

    Returns:
        A row with the median times in milliseconds and the median ratio reference / ours.
    """
    times = []
    for item in [items[0], *items]:  # the first pair warms up
        start = time.perf_counter()
        reference(item)
        middle = time.perf_counter()
        ours(item)
        times.append((middle - start, time.perf_counter() - middle))
    return ratio_row(work, times[1:], **more)


def ratio_row(work: str, pairs: Sequence[tuple[float, float]], **more: Any) -> Row:
    """Return a row of a comparison.

    Args:
        work: What was timed.
        pairs: Seconds of the reference and of this project, measured in turn.
        more: Further figures.
    """
    reference, ours = (1000 * median(pair[side] for pair in pairs) for side in (0, 1))
    ratio = median(a / b for a, b in pairs)
    return {"work": work, "reference_ms": reference, "ours_ms": ours, "ratio": ratio, **more}


def finish(rows: Sequence[Row], output: Path | None, title: str | None = None) -> None:
    """Print the rows as a table, and write them to a JSON file if one is given."""
    columns = ("work", "reference_ms", "ours_ms", "ratio")
    table = Table("work", "reference, ms", "this project, ms", "ratio", "more", title=title)
    for row in rows:
        more = (f"{key.replace('_', ' ')} {_text(value)}" for key, value in row.items() if key not in columns)
        table.add_row(*(_text(row.get(column, "")) for column in columns), ", ".join(more))
    Console(width=160).print(table)
    if output:
        write_file(output, (json.dumps(rows, indent=2, default=float) + "\n").encode())
        print(f"wrote {output}")


def _text(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
