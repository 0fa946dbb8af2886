"""Measure how the cost per picture grows with the number of pictures: steps 1 to 3, and realtime.batch.

    python -m benchmarks.scaling --pictures 1000 --pictures 10000

The pictures are generated: the sample's portrait at another place, size and brightness in each, on noise. The reference
of a row is the same step with fewer pictures. Memory is that of the largest process. Times are those of the wall clock;
processor times are comparable on a machine that does other work, too.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import cv2
import numpy as np
import typer

from benchmarks.common import SEED, JsonFile, Row, finish
from common.command_line import progress_bar, run
from common.emotions import EMOTIONS
from common.errors import InputError
from configuration import ROOT
from preprocessing.datasets.sample import PORTRAIT

CELL = 160  # pixels: side of the square around each face


@dataclass(frozen=True)
class Cost:
    """What a command took: seconds of the wall clock and of all cores, and megabytes of its largest process."""

    wall: float
    processor: float
    memory: float


def main(
    pictures: Annotated[
        list[int] | None, typer.Option(min=1, help="Pictures, fewest first; repeatable. [default: 1000, 10000]")
    ] = None,
    faces: Annotated[int, typer.Option(min=1, help="Faces in each picture.")] = 1,
    output: JsonFile = None,
) -> None:
    """Measure time, memory and disk of steps 1 to 3 and realtime.batch on generated pictures."""
    rows: list[Row] = []
    before: dict[str, Row] = {}
    for count in pictures or (1000, 10000):
        with TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_pictures(folder / "raw", count, faces)
            for work, row in measure_steps(folder, count).items():
                reference = before.get(work, row)
                row["reference_ms"], row["ratio"] = reference["ours_ms"], reference["ours_ms"] / row["ours_ms"]
                row["growth_of_processor_time"] = row["processor_ms"] / reference["processor_ms"]
                before[work] = row
                rows.append(row)
    finish(rows, output, f"per picture, {faces} face(s) in each")


def write_pictures(folder: Path, count: int, faces: int = 1) -> None:
    """Write JPEG pictures into folders named by emotion, no two of them equal."""
    random = np.random.default_rng(SEED)
    portrait_bgr = cv2.imread(str(PORTRAIT))
    assert portrait_bgr is not None
    for emotion in EMOTIONS[:7]:
        (folder / emotion).mkdir(parents=True)
    with progress_bar() as bar:
        for number in bar.track(range(count), description="generating pictures"):
            picture_bgr = np.hstack([_face_cell(portrait_bgr, random) for _ in range(faces)])
            cv2.imwrite(str(folder / EMOTIONS[number % 7] / f"{number}.jpg"), picture_bgr)


def _face_cell(portrait_bgr: np.ndarray, random: np.random.Generator) -> np.ndarray:
    cell_bgr = random.integers(60, 120, (CELL, CELL, 3), np.uint8)
    height = int(random.integers(110, 150))
    width = height * portrait_bgr.shape[1] // portrait_bgr.shape[0]
    small_bgr = cv2.resize(portrait_bgr, (width, height), interpolation=cv2.INTER_AREA)
    top, left = random.integers(0, CELL - height), random.integers(0, CELL - width)
    cell_bgr[top : top + height, left : left + width] = cv2.convertScaleAbs(small_bgr, alpha=random.uniform(0.7, 1.1))
    return cell_bgr


def measure_steps(folder: Path, count: int) -> dict[str, Row]:
    """Run all steps on `folder/raw`, and return a row for each."""
    data = ("--dataset", "generated", "--data", str(folder / "data"))
    made = folder / "data" / "generated"
    steps = [  # module, options, and what it writes
        ("preprocessing.step1_inventory", (*data, "--source", str(folder / "raw")), folder / "data"),
        ("preprocessing.step2_face_crops", data, made / "faces"),
        ("preprocessing.step3_split", data, made / "split.csv"),
        ("realtime.batch", (str(folder / "raw"), "--output", str(folder / "batch")), folder / "batch"),
    ]
    rows = {}
    for module, arguments, written in steps:
        cost = cost_of("-m", module, *arguments)
        rows[module] = {
            "work": f"{module}, {count:,} pictures",
            "ours_ms": 1000 * cost.wall / count,
            "processor_ms": 1000 * cost.processor / count,
            "memory_mb": cost.memory,
            "disk_mb": _megabytes(written),
        }
    return rows


def cost_of(*arguments: str) -> Cost:
    """Run Python with some arguments, and return what it took.

    Raises:
        InputError: The command failed; its own message was printed.
    """
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise InputError(f"{' '.join(arguments)} ended with status {process.returncode}")
    return Cost(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def _megabytes(place: Path) -> float:
    """Return the space that a file or the files below a folder take on the disk."""
    files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
    return sum(file.stat().st_blocks for file in files) * 512 / 1e6


if __name__ == "__main__":
    run(main)
