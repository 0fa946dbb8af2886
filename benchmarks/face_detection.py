"""Time this project's face detection against stock mtcnn, on the same pictures in the same run.

    python -m benchmarks.face_detection --video talk_640x480.mp4 --video street_1080p.mp4 --photos pictures/

Without a video, frames are made from the sample's portrait. Each figure is the median over pairs: stock and ours on the
same frame, one after the other. Ratios decide, times inform. Prints a table; `--json FILE` keeps it. `--extras FOLDER`
keeps a picture of each face that stock does not report, to be looked at.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any
from unittest import mock

import cv2
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from common.command_line import progress_bar, run
from common.errors import InputError
from common.logging import quiet_start
from configuration import FACES, ROOT
from evaluation.report.writer import write_json
from inference.crops import read_image_rgb
from inference.face_detector import SCALE_FACTOR, FaceDetector, pyramid
from inference.faces import Face
from preprocessing.face_crops import write_face_crops
from realtime.sinks.recording import write_picture

Row = dict[str, Any]
CONFIDENT = 0.9  # stock's faces from this confidence on must be found again
SAME = 0.7  # intersection over union of a face that was found again
SEED = 7


def main(
    video: Annotated[list[Path] | None, typer.Option(help="Video; repeat for several sizes.")] = None,
    photos: Annotated[Path | None, typer.Option(help="Folder of photographs.")] = None,
    frames: Annotated[int, typer.Option(help="Frames of each video that are timed.")] = 24,
    pictures: Annotated[int, typer.Option(help="Pictures of the cropping test; 0: leave it out.")] = 500,
    output: Annotated[Path | None, typer.Option("--json", help="File that keeps the figures.")] = None,
    extras: Annotated[Path | None, typer.Option(help="Folder for pictures of the faces stock does not report.")] = None,
) -> None:
    """Compare speed and faces of our detector with stock mtcnn's."""
    # Memory first: a process's peak counts what its parent held when it was started.
    rows = [measure_memory()]
    clips = {file.name: read_frames(file, frames) for file in video or []} or {"portrait": portrait_frames(frames)}
    stills = read_photos(photos) if photos else []
    rows.append(time_first_face())
    with quiet_start():
        import mtcnn

        stock = mtcnn.MTCNN()
    for name, clip in clips.items():
        height, width = clip[0].shape[:2]
        where = f"{name} {width}x{height}"
        for smallest in (20, 40):
            row, extra_rgb = compare(f"{where}, smallest face {smallest} px", clip, smallest, stock)
            rows.append(row)
            if extras:
                write_pictures(extra_rgb, extras, f"{Path(name).stem}-{smallest}")
        with right_pyramid():
            right = {"min_face_size": 40}
            rows.append(compare(f"{where}, 40 px, stock with the right pyramid", clip, 40, stock, right)[0])
        rows.append(compare_with_limit(f"{where}, 40 px, against P-Net's bare multiply-adds", clip))
        rows.append(compare_following(f"{where}, following one face", clip, stock))
    mixed = [image for clip in clips.values() for image in clip] + stills
    if pictures:
        rows.append(compare_cropping(mixed, pictures, stock))
    print_table(rows)
    if output:
        write_json(output, rows)
        print(f"wrote {output}")


def read_frames(file: Path, count: int) -> list[np.ndarray]:
    """Return frames spread over a video, RGB.

    Raises:
        InputError: it is no video.
    """
    capture = cv2.VideoCapture(str(file))
    frames_rgb = []
    while True:
        grabbed, frame_bgr = capture.read()
        if not grabbed:
            break
        frames_rgb.append(cv2.cvtColor(frame_bgr, cv2.COLOR_BGR2RGB))
    if not frames_rgb:
        raise InputError(f"--video {file} is no video that OpenCV can read")
    return [frames_rgb[index] for index in np.linspace(0, len(frames_rgb) - 1, count).astype(int)]


def read_photos(folder: Path) -> list[np.ndarray]:
    """Return a folder's photographs, RGB."""
    return [read_image_rgb(file) for file in sorted(folder.iterdir()) if file.suffix.lower() in (".jpg", ".png")]


def portrait_frames(count: int) -> list[np.ndarray]:
    """Return 640x480 frames in which the sample's portrait wanders over noise, RGB."""
    import matplotlib

    portrait_rgb = read_image_rgb(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    random = np.random.default_rng(SEED)
    frames_rgb = []
    for _ in range(count):
        frame_rgb = cv2.resize(random.integers(0, 256, (30, 40, 3)).astype(np.uint8), (640, 480))
        height = int(random.integers(200, 440))
        small_rgb = cv2.resize(portrait_rgb, (height * 512 // 600, height), interpolation=cv2.INTER_AREA)
        top, left = int(random.integers(0, 480 - height)), int(random.integers(0, 640 - small_rgb.shape[1]))
        frame_rgb[top : top + height, left : left + small_rgb.shape[1]] = small_rgb
        frames_rgb.append(frame_rgb)
    return frames_rgb


def pairs(first: Callable[[Any], Any], second: Callable[[Any], Any], items: list[Any]) -> tuple[float, float, float]:
    """Time two functions on each item in turn; return their median seconds and the median ratio first / second."""
    times = []
    for item in [items[0], *items]:  # the first round warms up
        start = time.perf_counter()
        first(item)
        middle = time.perf_counter()
        second(item)
        times.append((middle - start, time.perf_counter() - middle))
    times = times[1:]
    return median(a for a, _ in times), median(b for _, b in times), median(a / b for a, b in times)


def compare(
    work: str, clip: list[np.ndarray], smallest: int, stock: Any, stock_options: Row | None = None
) -> tuple[Row, list[np.ndarray]]:
    """Compare whole detections: time, and stock's faces found again; give pictures of what is ours alone."""
    detector = FaceDetector(replace(FACES, min_face_size=smallest, largest_side=max(clip[0].shape)))
    detect_stock = lambda image_rgb: stock.detect_faces(image_rgb, **(stock_options or {}))  # noqa: E731
    slow, fast, ratio = pairs(detect_stock, detector.detect, clip)
    found = wanted = 0
    extra_rgb = []
    for image_rgb in clip:
        theirs = [np.array(face["box"]) for face in detect_stock(image_rgb) if face["confidence"] >= CONFIDENT]
        large = [box for box in theirs if max(box[2:]) >= smallest]
        ours = [box_of(face) for face in detector.detect(image_rgb)]
        wanted += len(large)
        found += sum(any(overlap(box, other) >= SAME for other in ours) for box in large)
        alone = [box for box in ours if all(overlap(box, other) < SAME for other in theirs)]
        extra_rgb += [surroundings(image_rgb, box) for box in alone]
    row = {"work": work, "stock_ms": 1000 * slow, "ours_ms": 1000 * fast, "ratio": ratio}
    return row | {"found_again": f"{found}/{wanted}", "extra_per_100": 100 * len(extra_rgb) / len(clip)}, extra_rgb


def surroundings(image_rgb: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return a face with as much of the picture around it as half of its size, at 160x160 pixels."""
    center, side = box[:2] + box[2:] / 2, float(2 * max(box[2:]))
    matrix = np.array([[1, 0, side / 2 - center[0]], [0, 1, side / 2 - center[1]]]) * (160 / side)
    return cv2.warpAffine(image_rgb, matrix, (160, 160), flags=cv2.INTER_AREA)


def write_pictures(images_rgb: list[np.ndarray], folder: Path, name: str) -> None:
    """Write pictures as numbered PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image_rgb in enumerate(images_rgb):
        write_picture(folder / f"{name}-{number:03d}.png", cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR))


def compare_with_limit(work: str, clip: list[np.ndarray]) -> Row:
    """Compare a detection with the time that P-Net's multiply-adds alone would take at the speed of a matrix product.

    The product is numpy's, float32, on all cores: what this machine can do at best. The ratio is the share of a
    detection's time that no other program around the same network could save.
    """
    height, width = clip[0].shape[:2]
    work_left = sum(map(pnet_multiply_adds, pyramid(width, height, FACES.min_face_size, SCALE_FACTOR)))
    matrix = np.random.default_rng(SEED).random((1024, 1024), np.float32)
    detector = FaceDetector(replace(FACES, largest_side=max(width, height)))
    product, ours, _ = pairs(lambda _: matrix @ matrix, detector.detect, clip)
    limit = product * work_left / 1024**3
    return {"work": work, "stock_ms": 1000 * limit, "ours_ms": 1000 * ours, "ratio": limit / ours}


def pnet_multiply_adds(size: tuple[int, int]) -> int:
    """Return how often P-Net multiplies and adds on a picture of (width, height)."""
    total = 0
    width, height = size
    for kernel, inputs, outputs, pool in ((3, 3, 10, 2), (3, 10, 16, 1), (3, 16, 32, 1), (1, 32, 6, 1)):
        width, height = width - kernel + 1, height - kernel + 1
        total += width * height * kernel**2 * inputs * outputs
        width, height = -(-width // pool), -(-height // pool)
    return total


def compare_following(work: str, clip: list[np.ndarray], stock: Any) -> Row:
    """Compare following one face with a whole stock detection."""
    detector = FaceDetector(replace(FACES, largest_side=max(clip[0].shape)))
    known = {id(image_rgb): detector.detect(image_rgb)[:1] for image_rgb in clip}
    clip = [image_rgb for image_rgb in clip if known[id(image_rgb)]]
    if not clip:
        raise InputError(f"{work}: no face is in the video")
    follow = lambda image_rgb: detector.propagate(image_rgb, known[id(image_rgb)])  # noqa: E731
    slow, fast, ratio = pairs(stock.detect_faces, follow, clip)
    return {"work": work, "stock_ms": 1000 * slow, "ours_ms": 1000 * fast, "ratio": ratio}


def box_of(face: Face) -> np.ndarray:
    """Return left, top, width, height."""
    return np.array([face.left, face.top, face.width, face.height])


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return the intersection over union of two boxes (left, top, width, height)."""
    sides = np.minimum(a[:2] + a[2:], b[:2] + b[2:]) - np.maximum(a[:2], b[:2])
    shared = np.prod(sides.clip(0))
    return float(shared / (np.prod(a[2:]) + np.prod(b[2:]) - shared))


@contextmanager
def right_pyramid() -> Iterator[None]:
    """Give stock mtcnn a pyramid that counts its smallest face in, without which 30 px and more find nothing."""

    def scales(width: int, height: int, min_face_size: int, scale_factor: float, min_size: int = 12) -> np.ndarray:
        count = int(np.log(min_face_size / min(width, height)) / np.log(scale_factor)) + 1
        return min_size / min_face_size * scale_factor ** np.arange(count)

    with mock.patch("mtcnn.stages.stage_pnet.build_scale_pyramid", scales):
        yield


OURS = """
from inference.crops import read_image_rgb
from inference.face_detector import FaceDetector
print(len(FaceDetector().detect(read_image_rgb(PORTRAIT))))
"""
STOCK = """
import cv2, mtcnn
print(len(mtcnn.MTCNN().detect_faces(cv2.cvtColor(cv2.imread(str(PORTRAIT)), cv2.COLOR_BGR2RGB))))
"""
LARGE = """
from resource import RUSAGE_SELF, getrusage
from inference.crops import read_image_rgb
from inference.face_detector import FaceDetector
import cv2
image_rgb = cv2.resize(read_image_rgb(PORTRAIT), (3000, 4000), interpolation=cv2.INTER_CUBIC)
assert FaceDetector(threads=1).detect(image_rgb)
print(getrusage(RUSAGE_SELF).ru_maxrss)
"""


def run_python(code: str) -> str:
    """Run Python code in a new process, with the path of the portrait in PORTRAIT, and return what it prints."""
    import matplotlib

    portrait = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    code = f"from pathlib import Path\nPORTRAIT = Path({str(portrait)!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def time_first_face(rounds: int = 3) -> Row:
    """Compare the time from the start of Python to the first face of a picture."""
    FaceDetector()  # converts the networks where they are not converted yet
    slow, fast, ratio = pairs(lambda _: run_python(STOCK), lambda _: run_python(OURS), list(range(rounds)))
    return {"work": "from import to the first face", "stock_ms": 1000 * slow, "ours_ms": 1000 * fast, "ratio": ratio}


def measure_memory() -> Row:
    """Measure the peak memory of one detection in a 12-megapixel picture."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes that ru_maxrss counts in
    return {"work": "peak memory, 12-megapixel photo", "megabytes": int(run_python(LARGE)) * unit / 2**20}


def compare_cropping(images: list[np.ndarray], count: int, stock: Any, stock_share: int = 10) -> Row:
    """Compare step 2 with a plain loop over stock mtcnn, on pictures of mixed size; stock does every tenth of them."""
    random = np.random.default_rng(SEED)
    with tempfile.TemporaryDirectory() as temporary, progress_bar():
        folder = Path(temporary) / "data"
        files = []
        for number in range(count):
            image_rgb = images[number % len(images)]
            scale = random.uniform(0.4, 1.2)
            image_rgb = cv2.resize(image_rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            files.append(folder / "images" / f"{number:04d}.jpg")
            files[-1].parent.mkdir(parents=True, exist_ok=True)
            write_picture(files[-1], cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR))
        write_inventory(folder, files)
        start = time.perf_counter()
        table = write_face_crops(folder)
        ours = (time.perf_counter() - start) / count
        start = time.perf_counter()
        for file in files[::stock_share]:
            stock.detect_faces(read_image_rgb(file))
        theirs = (time.perf_counter() - start) / len(files[::stock_share])
    found = int((table["face_status"] == "found").sum())
    work = f"cropping {count} pictures of mixed size, per picture"
    row = {"work": work, "stock_ms": 1000 * theirs, "ours_ms": 1000 * ours, "ratio": theirs / ours}
    return row | {"found_again": f"{found} pictures with a face"}


def write_inventory(folder: Path, files: list[Path]) -> None:
    """Write the table that step 2 starts from."""
    import pandas as pd

    from preprocessing.tables import INVENTORY_COLUMNS, write_table

    table = pd.DataFrame("", index=range(len(files)), columns=INVENTORY_COLUMNS)
    table["path"] = [file.relative_to(folder).as_posix() for file in files]
    table["status"] = "ok"
    write_table(table, folder / "inventory.csv")


def print_table(rows: list[Row]) -> None:
    """Print the figures as a table."""
    table = Table("work", "stock ms", "ours ms", "ratio", "stock's faces found again", "extra per 100 frames", "MB")
    for row in rows:
        cells = [f"{row[key]:.{digits}f}" if key in row else "" for key, digits in (
            ("stock_ms", 1), ("ours_ms", 2), ("ratio", 1))]  # fmt: skip
        extra = f"{row['extra_per_100']:.0f}" if "extra_per_100" in row else ""
        megabytes = f"{row['megabytes']:.0f}" if "megabytes" in row else ""
        table.add_row(row["work"], *cells, row.get("found_again", ""), extra, megabytes)
    Console(width=150).print(table)


if __name__ == "__main__":
    run(main)
