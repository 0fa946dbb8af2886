"""Time the realtime program against stock mtcnn and `model.predict` on every frame; measure its tracking and labels.

    python -m benchmarks.realtime --video talk_640x480.mkv --video street_1080p.mp4 --data data --dataset fer2013

Without a video one is made from the sample's portrait; `--only latency` measures just that part. Everything runs in
this one process, without a window, on the same frames, in turns; ratios decide, times inform. The rows on labels need a
prepared data set, whose dev faces are shown as still faces. Prints a table; `--json FILE` keeps it.
"""

import csv
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from enum import StrEnum, auto
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from common.command_line import DataRoot, dataset_folder, run
from common.errors import InputError
from common.logging import quiet_start
from configuration import FACES, PATHS, ROOT
from evaluation.report.writer import write_json
from inference.emotion_classifier import EmotionClassifier
from inference.face_detector import FaceDetector
from realtime.recognition import SEARCH_THREADS, recognize, watch
from realtime.sinks.drawing import Drawer
from realtime.smoothing import TemporalSmoother
from realtime.sources import Frame, open_source
from realtime.tracking import Tracker, overlap

Row = dict[str, Any]
SEED = 7
SUPPORTED = 0.5  # intersection over union from which on two boxes are one face
RATE = 30.0  # frames per second of the paced source and of the still faces
STILL_SECONDS = 4.0  # seconds for which each still face is shown
SENSOR = 4.0  # gray levels of 255: standard deviation of the noise on still faces
SWAY = 0.25  # pixels and tenths of a degree per frame: how far a still head wanders

# Run by the interpreter of --with-fer, whose environment has neither this project nor its requirements.
FER = """
import sys, time, cv2
from fer.fer import FER
detector = FER(mtcnn=True)
capture, times = cv2.VideoCapture(sys.argv[1]), []
for _ in range(int(sys.argv[2]) + 1):
    grabbed, image_bgr = capture.read()
    if not grabbed:
        break
    start, used = time.perf_counter(), time.process_time()
    detector.detect_emotions(image_bgr)
    times.append((time.perf_counter() - start, time.process_time() - used))
times = times[1:]  # the first one warms up
print(*(sum(part) / len(times) for part in zip(*times)))
"""
FIRST_FRAME = """
import sys
import realtime.webcam  # what the program imports
from realtime.sinks.drawing import Drawer
from realtime.recognition import watch
Drawer().draw(next(watch(sys.argv[1])))
"""


class Part(StrEnum):
    """What the benchmark consists of."""

    START = auto()
    PROGRAM = auto()
    LATENCY = auto()
    TRACKING = auto()
    LABELS = auto()


def main(
    video: Annotated[list[Path] | None, typer.Option(help="Video; repeat for several.")] = None,
    frames: Annotated[int, typer.Option(min=10, help="Frames of each video that ours recognizes per round.")] = 75,
    stock_frames: Annotated[int, typer.Option(min=1, help="Frames of each video that stock gets per round.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each comparison; medians over them are told.")] = 3,
    faces: Annotated[int, typer.Option(min=2, help="Still faces of the data set.")] = 30,
    data: DataRoot = PATHS.data,
    dataset: Annotated[str, typer.Option(help="Data set whose dev faces are shown as still faces.")] = "fer2013",
    with_fer: Annotated[Path | None, typer.Option(help="Python of an environment that has fer 25.10.")] = None,
    only: Annotated[
        list[Part] | None, typer.Option(help="Part to measure; repeat for several. Left out: all of them.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--json", help="File that keeps the figures.")] = None,
) -> None:
    """Compare the realtime program with what one would write otherwise, and measure its tracking and its labels."""
    parts = set(only or Part)
    classifier = EmotionClassifier.load_litert(PATHS.pretrained)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        videos = video or [write_portrait_video(Path(temporary) / "portrait.avi", frames)]
        for file in videos:
            open_source(str(file)).close()  # a mistake is told before minutes of measuring
        if Part.START in parts:
            rows.append(compare_start(videos[0], rounds))
        stock = Stock() if Part.PROGRAM in parts else None
        for file in videos:
            if stock:
                rows.append(compare_program(file, frames, stock_frames, rounds, classifier, stock))
                if with_fer:
                    rows.append(compare_fer(file, frames, stock_frames, rounds, classifier, with_fer))
            if Part.LATENCY in parts:
                rows.append(measure_latency(file, frames, rounds, classifier))
        if Part.TRACKING in parts:
            rows += measure_tracking(videos)
    folder = dataset_folder(data, dataset)
    if Part.LABELS in parts and (folder / "split.csv").is_file():
        rows += measure_labels(read_faces(folder, faces), classifier)
    elif Part.LABELS in parts:
        print(f"no {folder / 'split.csv'}: the rows on labels are left out (--data, --dataset)", file=sys.stderr)
    print_table(rows)
    if output:
        write_json(output, rows)
        print(f"wrote {output}")


class Stock:
    """What one writes after reading the two packages' front pages: mtcnn's faces, cut out, through `model.predict`."""

    def __init__(self):
        with quiet_start():
            import keras
            import mtcnn

            self._detector = mtcnn.MTCNN()
            self._model: Any = keras.models.load_model(PATHS.pretrained, compile=False)

    def __call__(self, image_bgr: np.ndarray) -> None:
        """Recognize one frame."""
        image_rgb = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2RGB)
        gray = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY)
        found: Any = self._detector.detect_faces(image_rgb)
        for face in found:
            left, top, width, height = (max(0, int(value)) for value in face["box"])
            crop = gray[top : top + height, left : left + width]
            if crop.size:
                self._model.predict(cv2.resize(crop, (48, 48))[None, :, :, None], verbose=0)


def write_portrait_video(file: Path, count: int) -> Path:
    """Write a video in which the sample's portrait wanders slowly over a gray ground."""
    import matplotlib

    portrait_bgr = cv2.imread(str(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"))
    assert portrait_bgr is not None
    small_bgr = cv2.resize(portrait_bgr, (256, 300), interpolation=cv2.INTER_AREA)
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), RATE, (640, 480))
    for index in range(count):
        frame_bgr = np.full((480, 640, 3), 110, np.uint8)
        left, top = round(190 + 120 * np.sin(index / 25)), round(90 + 50 * np.cos(index / 40))
        frame_bgr[top : top + 300, left : left + 256] = small_bgr
        writer.write(frame_bgr)
    writer.release()
    return file


def read_frames(file: Path, count: int | None = None) -> tuple[list[np.ndarray], float]:
    """Return a video's first frames, BGR, and its frames per second."""
    source = open_source(str(file))
    images_bgr = []
    for frame in source:
        images_bgr.append(frame.image_bgr)
        if len(images_bgr) == count:
            break
    source.close()
    return images_bgr, source.fps


def ours(file: Path, frames: int, classifier: EmotionClassifier) -> tuple[float, float]:
    """Return the seconds and the processor's seconds, per frame, of the whole program without drawing."""
    detector = FaceDetector(FACES)
    source = open_source(str(file))
    results = watch(source, classifier, detector)
    next(results)  # the first frame warms up the detector
    start, used, count = time.perf_counter(), time.process_time(), 0
    for _ in results:
        count += 1
        if count == frames - 1:
            break
    seconds = (time.perf_counter() - start) / count, (time.process_time() - used) / count
    source.close()
    return seconds


def compare_program(
    file: Path, frames: int, stock_frames: int, rounds: int, classifier: EmotionClassifier, stock: Stock
) -> Row:
    """Compare the whole program without drawing, decoding included, with stock on every frame of the same video."""
    images_bgr, _ = read_frames(file, frames)
    chosen = [images_bgr[index] for index in np.linspace(0, len(images_bgr) - 1, stock_frames).astype(int)]
    stock(chosen[0])
    slow, fast = [], []
    for _ in range(rounds):
        start, used = time.perf_counter(), time.process_time()
        for image_bgr in chosen:
            stock(image_bgr)
        slow.append(((time.perf_counter() - start) / stock_frames, (time.process_time() - used) / stock_frames))
        fast.append(ours(file, frames, classifier))
    height, width = images_bgr[0].shape[:2]
    return _compared(f"{file.name} {width}x{height}, whole program, against stock mtcnn + model.predict", slow, fast)


def compare_fer(
    file: Path, frames: int, stock_frames: int, rounds: int, classifier: EmotionClassifier, python: Path
) -> Row:
    """Compare with the package `fer`, run by another interpreter.

    Raises:
        InputError: that interpreter does not run it.
    """
    slow, fast = [], []
    for _ in range(rounds):
        try:
            command = [str(python), "-c", FER, str(file.resolve()), str(stock_frames)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            told = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
            raise InputError(f"--with-fer {python} does not run fer ({told}); give a Python that has it") from error
        wall, used = map(float, done.stdout.split()[-2:])
        slow.append((wall, used))
        fast.append(ours(file, frames, classifier))
    return _compared(f"{file.name}, whole program, against fer with mtcnn", slow, fast)


def _compared(work: str, slow: list[tuple[float, float]], fast: list[tuple[float, float]]) -> Row:
    walls, used = ([1000 * median(pair[i] for pair in pairs) for pairs in (slow, fast)] for i in (0, 1))
    return {
        "work": work,
        "other_ms": walls[0],
        "ours_ms": walls[1],
        "ratio": median(a[0] / b[0] for a, b in zip(slow, fast, strict=True)),
        "other_cpu_ms": used[0],
        "ours_cpu_ms": used[1],
    }


def paced(images_bgr: list[np.ndarray]) -> Iterator[Frame]:
    """Yield frames as a camera does, 30 a second: the newest one there is, and its time of capture."""
    start, index = time.monotonic(), 0
    while index < len(images_bgr):
        due = start + index / RATE
        time.sleep(max(0.0, due - time.monotonic()))
        yield Frame(images_bgr[index], index, index / RATE, "paced", due)
        index = max(index + 1, int((time.monotonic() - start) * RATE))


def measure_latency(file: Path, frames: int, rounds: int, classifier: EmotionClassifier) -> Row:
    """Measure the time from a frame's capture to its drawn result, where frames come 30 a second.

    A search beside the following, as live sources have it, is compared with one that is waited for, in turns.
    """
    images_bgr, _ = read_frames(file, frames)
    detector, beside = FaceDetector(FACES), FaceDetector(FACES, SEARCH_THREADS)
    waited, live = [], []
    for _ in range(rounds + 1):
        waited.append(_delays(images_bgr, detector, None, classifier))
        live.append(_delays(images_bgr, detector, beside, classifier))
    p95, middle, missed, seen = (median(delays[i] for delays in live[1:]) for i in range(4))  # the first ones warm up
    return {
        "work": f"{file.name}, capture to drawn result at 30 frames/s, search beside against waited for",
        "other_p95_ms": median(delays[0] for delays in waited[1:]),
        "p95_ms": p95,
        "ratio": median(before[0] / after[0] for before, after in zip(waited[1:], live[1:], strict=True)),
        "median_ms": middle,
        "frames_missed": missed,
        "faces_per_frame": round(seen, 2),
        "faces_per_frame_waited": round(median(delays[3] for delays in waited[1:]), 2),
    }


def _delays(
    images_bgr: list[np.ndarray], detector: FaceDetector, beside: FaceDetector | None, classifier: EmotionClassifier
) -> tuple[float, float, int, float]:
    """Return the delay's 95th percentile and median in milliseconds, the frames missed, and the faces per frame."""
    late, faces, drawer = [], 0, Drawer()
    for result in recognize(paced(images_bgr), detector, classifier, beside=beside):
        drawer.draw(result)
        late.append(1000 * (time.monotonic() - result.frame.captured))
        faces += len(result.recognitions)
    missed, late = len(images_bgr) - len(late), late[1:]
    return float(np.percentile(late, 95)), median(late), missed, faces / len(late)


def measure_tracking(videos: list[Path]) -> list[Row]:
    """Compare tracking with full detection on every frame of every video; the last row is all of them together."""
    rows = []
    for file in videos:
        images_bgr, fps = read_frames(file)
        detector = FaceDetector(FACES)
        tracker = Tracker(FaceDetector(FACES))
        row: Row = {"work": f"{file.name}, tracking against full detection", "faces": 0, "kept": 0, "boxes": 0}
        row["unsupported"] = 0
        for index, image_bgr in enumerate(images_bgr):
            image_rgb = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2RGB)
            full = detector.detect(image_rgb)
            tracked = [each.face for each in tracker.update(image_rgb, index / fps)]
            row["faces"] += len(full)
            row["boxes"] += len(tracked)
            row["kept"] += sum(any(overlap(face, other) >= SUPPORTED for other in tracked) for face in full)
            row["unsupported"] += sum(all(overlap(face, other) < SUPPORTED for other in full) for face in tracked)
        rows.append(row)
    counts = ("faces", "kept", "boxes", "unsupported")
    rows.append({"work": "all videos, tracking", **{key: sum(row[key] for row in rows) for key in counts}})
    return rows


def read_faces(folder: Path, count: int) -> list[tuple[np.ndarray, str]]:
    """Return some dev faces of a prepared data set: gray pictures and their labels."""
    with (folder / "split.csv").open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] == "dev" and row["face_path"] and row["emotion"]]
    chosen = np.random.default_rng(SEED).permutation(len(rows))[:count]
    read = [(cv2.imread(str(folder / rows[i]["face_path"]), cv2.IMREAD_GRAYSCALE), rows[i]["emotion"]) for i in chosen]
    return [(gray, emotion) for gray, emotion in read if gray is not None]


def still_frames(faces_gray: list[np.ndarray], seconds: float, seed: int) -> Iterator[Frame]:
    """Yield frames of faces that hold still, one after another in one place, as a noisy camera sees them."""
    random, sway, index = np.random.default_rng(seed), np.zeros(3), 0
    for face_gray in faces_gray:
        ground = np.full((320, 320), 110, np.uint8)
        ground[80:240, 80:240] = cv2.resize(face_gray, (160, 160), interpolation=cv2.INTER_CUBIC)
        for _ in range(round(seconds * RATE)):
            sway = 0.97 * sway + SWAY * random.normal(size=3)
            matrix = cv2.getRotationMatrix2D((160, 160), float(sway[2]) / 10, 1.0)
            matrix[:, 2] += sway[:2]
            moved = cv2.warpAffine(ground, matrix, (320, 320), borderMode=cv2.BORDER_REPLICATE)
            noisy = (moved + random.normal(0, SENSOR, (320, 320))).clip(0, 255).astype(np.uint8)
            yield Frame(cv2.cvtColor(noisy, cv2.COLOR_GRAY2BGR), index, index / RATE, "still faces")
            index += 1


def labels_over_time(frames: Iterator[Frame], classifier: EmotionClassifier) -> dict[int, list[tuple[float, str, str]]]:
    """Return, for each tracked face, its times and its raw and calm label, both of the same probabilities."""
    smoother = TemporalSmoother(classifier.abstention_threshold)
    told: dict[int, list[tuple[float, str, str]]] = {}
    for result in recognize(frames, FaceDetector(FACES), classifier, raw=True):
        confirmed = [each for each in result.recognitions if not each.tentative]
        rows = np.array([list(each.probabilities.values()) for each in confirmed])
        numbers = [each.track_id for each in confirmed]
        verdicts = smoother.update(numbers, rows, result.frame.time) if confirmed else []
        for each, verdict in zip(confirmed, verdicts, strict=True):
            calm = "unsure" if verdict.unsure else classifier.labels[verdict.index]
            told.setdefault(each.track_id, []).append((result.frame.time, each.label, calm))
    return told


def measure_labels(faces: list[tuple[np.ndarray, str]], classifier: EmotionClassifier) -> list[Row]:
    """Measure how often labels change on still faces, and how soon a cut from one expression to another shows.

    Cuts are made between faces whose raw label never changed, since only there it is known what has to show: ambiguous
    faces count among the changes alone.
    """
    minutes, changes, flickering = 0.0, np.zeros(2, int), 0
    raw_label = []
    for seed, (face_gray, _) in enumerate(faces):
        raw_label.append("")
        for told in labels_over_time(still_frames([face_gray], STILL_SECONDS, seed), classifier).values():
            minutes += len(told) / RATE / 60
            here = np.array([sum(a[i] != b[i] for a, b in pairwise(told)) for i in (1, 2)])
            changes, flickering = changes + here, flickering + int(here[0] > 0)
            if here[0] == 0 and len(told) > 0.9 * STILL_SECONDS * RATE:
                raw_label[-1] = told[0][1]
    still: Row = {"work": "label changes per face and minute, still faces", "faces": len(faces)}
    still |= {"other_per_minute": changes[0] / minutes, "ours_per_minute": changes[1] / minutes}
    still |= {"ratio": changes[0] / max(changes[1], 1), "raw_changes": int(changes[0]), "calm_changes": int(changes[1])}
    still["faces_with_raw_changes"] = flickering
    steady = [(gray, label) for (gray, _), label in zip(faces, raw_label, strict=True) if label]
    waits, unseen = [], 0
    for seed, ((before_gray, before), (after_gray, after)) in enumerate(pairwise(steady)):
        if before == after:
            continue
        told = labels_over_time(still_frames([before_gray, after_gray], 2.0, seed), classifier)
        shown = [moment - 2.0 for each in told.values() for moment, _, calm in each if moment >= 2 and calm == after]
        waits += [min(shown)] if shown else []
        unseen += not shown
    cut: Row = {"work": "a cut from one expression to another shows after", "cuts": len(waits) + unseen}
    if waits:
        cut |= {"median_ms": 1000 * median(waits), "p95_ms": 1000 * float(np.percentile(waits, 95)), "unseen": unseen}
    return [still, cut]


def compare_start(file: Path, rounds: int) -> Row:
    """Compare the time from the command to the first drawn frame with that of importing TensorFlow."""

    def seconds(*command: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", *command], cwd=ROOT, capture_output=True, check=True)
        return time.perf_counter() - start

    first_frame = (FIRST_FRAME, str(file.resolve()))
    seconds(*first_frame)  # converts the networks where they are not converted yet
    pairs = [(seconds("import tensorflow"), seconds(*first_frame)) for _ in range(rounds)]
    slow, fast = (1000 * median(pair[i] for pair in pairs) for i in (0, 1))
    ratio = median(a / b for a, b in pairs)
    work = "from command to first drawn frame, against import tensorflow"
    return {"work": work, "other_ms": slow, "ours_ms": fast, "ratio": ratio}


def print_table(rows: list[Row]) -> None:
    """Print the figures as a table."""
    table = Table("work", "other", "ours", "ratio", "CPU ms, other", "CPU ms, ours", "more")
    for row in rows:
        cells = dict.fromkeys(("other", "ours", "more"), "")
        if "ours_ms" in row:
            cells |= {"other": f"{row['other_ms']:.1f} ms", "ours": f"{row['ours_ms']:.2f} ms"}
        elif "ours_per_minute" in row:
            cells |= {"other": f"{row['other_per_minute']:.1f}", "ours": f"{row['ours_per_minute']:.2f}"}
            cells["more"] = f"{row['faces_with_raw_changes']} of {row['faces']} faces change at all"
        elif "kept" in row:
            kept, extra = row["kept"] / max(row["faces"], 1), row["unsupported"] / max(row["boxes"], 1)
            cells |= {"ours": f"{kept:.1%}", "more": f"{row['faces']} faces; {extra:.1%} of boxes unsupported"}
        elif "p95_ms" in row:
            cells |= {"ours": f"{row['p95_ms']:.0f} ms", "more": f"95th percentile; median {row['median_ms']:.0f} ms"}
            told = ("frames_missed", "faces_per_frame", "faces_per_frame_waited", "cuts", "unseen")
            cells["more"] += "".join(f", {key} {row[key]}" for key in told if key in row)
            if "other_p95_ms" in row:
                cells["other"] = f"{row['other_p95_ms']:.0f} ms"
        numbers = [f"{row[key]:.1f}" if key in row else "" for key in ("ratio", "other_cpu_ms", "ours_cpu_ms")]
        table.add_row(row["work"], cells["other"], cells["ours"], *numbers, cells["more"])
    Console(width=170).print(table)


if __name__ == "__main__":
    run(main)
