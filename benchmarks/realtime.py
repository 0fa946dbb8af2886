"""Compare the realtime program with mtcnn and `model.predict` on every frame; measure its tracking and labels.

    python -m benchmarks.realtime --video talk_640x480.mkv --video street_1080p.mp4

Without a video, one is made from the sample's portrait. Reference and program take turns in one process, without a
window, on the same frames. Ratios are comparable between machines; times are not. The rows on labels show the dev faces
of FER2013 (`--data`) as still faces.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from enum import StrEnum, auto
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import cv2
import numpy as np
import typer

from benchmarks.common import SEED, JsonFile, Row, Videos, finish, ratio_row, read_frames, spread, write_portrait_video
from common.command_line import DataRoot, run
from common.errors import InputError
from common.logging import quiet_start
from configuration import FACES, PATHS, ROOT
from inference.emotion_classifier import EmotionClassifier
from inference.face_detector import FaceDetector
from preprocessing.tables import read_table, usable
from realtime.recognition import BACKGROUND_THREADS, recognize, watch
from realtime.sinks.drawing import Drawer
from realtime.smoothing import TemporalSmoother
from realtime.sources import Frame, open_source
from realtime.tracking import Tracker, overlap

ROUNDS = 3  # of each comparison; the rows are medians over them
FRAMES, REFERENCE_FRAMES = 75, 8  # of each video and round
FACES_SHOWN = 30  # still faces
MIN_OVERLAP = 0.5  # intersection over union of two boxes of one face
RATE = 30.0  # frames per second of the paced source and of the still faces
STILL_SECONDS = 4.0  # for which each still face is shown
NOISE = 4.0  # gray levels of 255: standard deviation of the noise on still faces
SWAY = 0.25  # pixels, and tenths of a degree, per frame: random movement of a still head

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
import realtime.webcam  # imports the whole program
from realtime.sinks.drawing import Drawer
from realtime.recognition import watch
Drawer().draw(next(watch(sys.argv[1])))
"""
Seconds = tuple[float, float]  # wall and processor seconds per frame


class Part(StrEnum):
    """Part of the benchmark."""

    START = auto()
    PROGRAM = auto()
    LATENCY = auto()
    TRACKING = auto()
    LABELS = auto()


def main(
    video: Videos = None,
    data: DataRoot = PATHS.data,
    with_fer: Annotated[Path | None, typer.Option(help="Python interpreter of an environment with fer 25.10.")] = None,
    only: Annotated[list[Part] | None, typer.Option(help="Part to measure; repeat for several. [default: all]")] = None,
    output: JsonFile = None,
) -> None:
    """Compare the realtime program with common alternatives; measure tracking and labels."""
    classifier = EmotionClassifier.load_litert(PATHS.pretrained)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        videos = video or [write_portrait_video(Path(temporary) / "portrait.avi", FRAMES)]
        for file in videos:
            open_source(str(file)).close()  # reports an error before minutes of measuring
        for part in only or Part:
            rows += measure(part, videos, classifier, with_fer, data / "fer2013")
    finish(rows, output)


def measure(part: Part, videos: list[Path], classifier: EmotionClassifier, fer: Path | None, faces: Path) -> list[Row]:
    """Return the rows of one part of the benchmark."""
    if part == Part.START:
        return [compare_start(videos[0])]
    if part == Part.PROGRAM:
        reference = Reference()
        rows = [compare_program(file, classifier, reference) for file in videos]
        return rows + [compare_fer(file, classifier, fer) for file in videos if fer]
    if part == Part.LATENCY:
        return [measure_latency(file, classifier) for file in videos]
    if part == Part.TRACKING:
        return measure_tracking(videos)
    if not (faces / "split.csv").is_file():
        print(f"no {faces / 'split.csv'}: the rows on labels are left out (--data)", file=sys.stderr)
        return []
    return measure_labels(read_faces(faces, FACES_SHOWN), classifier)


class Reference:
    """The obvious program: faces of mtcnn, cropped, and classified by `model.predict`."""

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


def time_ours(file: Path, classifier: EmotionClassifier) -> Seconds:
    """Time the whole program without drawing, decoding included."""
    with closing(open_source(str(file))) as source:
        results = watch(source, classifier, FaceDetector(FACES))
        next(results)  # the first frame warms up the detector
        start, used, count = time.perf_counter(), time.process_time(), 0
        for count, _ in enumerate(results, 1):
            if count == FRAMES - 1:
                break
        return (time.perf_counter() - start) / count, (time.process_time() - used) / count


def compare_program(file: Path, classifier: EmotionClassifier, reference: Reference) -> Row:
    """Compare the whole program with the reference on the same video."""
    images_bgr, _ = read_frames(file, FRAMES)
    chosen = spread(images_bgr, REFERENCE_FRAMES)

    def time_reference() -> Seconds:
        start, used = time.perf_counter(), time.process_time()
        for image_bgr in chosen:
            reference(image_bgr)
        return (time.perf_counter() - start) / len(chosen), (time.process_time() - used) / len(chosen)

    reference(chosen[0])  # warms up
    height, width = images_bgr[0].shape[:2]
    work = f"{file.name} {width}x{height}, program against mtcnn + model.predict, per frame"
    return _compare_programs(work, time_reference, file, classifier)


def compare_fer(file: Path, classifier: EmotionClassifier, python: Path) -> Row:
    """Compare the whole program with the package `fer`, run by another interpreter.

    Raises:
        InputError: that interpreter does not run it.
    """

    def time_fer() -> Seconds:
        try:
            command = [str(python), "-c", FER, str(file.resolve()), str(REFERENCE_FRAMES)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
            raise InputError(f"--with-fer {python} does not run fer ({reason}); give a Python that has it") from error
        wall, used = map(float, done.stdout.split()[-2:])
        return wall, used

    return _compare_programs(f"{file.name}, program against fer with mtcnn, per frame", time_fer, file, classifier)


def _compare_programs(
    work: str, time_reference: Callable[[], Seconds], file: Path, classifier: EmotionClassifier
) -> Row:
    rounds = [(time_reference(), time_ours(file, classifier)) for _ in range(ROUNDS)]
    walls = [(reference[0], ours[0]) for reference, ours in rounds]
    processor = [1000 * median(seconds[side][1] for seconds in rounds) for side in (0, 1)]
    return ratio_row(work, walls, reference_processor_ms=processor[0], processor_ms=processor[1])


def paced(images_bgr: list[np.ndarray]) -> Iterator[Frame]:
    """Yield frames as a camera does: the newest one, `RATE` per second, with its time of capture."""
    start, index = time.monotonic(), 0
    while index < len(images_bgr):
        due = start + index / RATE
        time.sleep(max(0.0, due - time.monotonic()))
        yield Frame(images_bgr[index], index, index / RATE, "paced", due)
        index = max(index + 1, int((time.monotonic() - start) * RATE))


def measure_latency(file: Path, classifier: EmotionClassifier) -> Row:
    """Measure the time from a frame's capture to its drawn result, at `RATE` frames per second.

    The reference waits for each full detection. The program runs slow ones on a thread, as it does for live sources.
    """
    images_bgr, _ = read_frames(file, FRAMES)
    detector, background = FaceDetector(FACES), FaceDetector(FACES, BACKGROUND_THREADS)
    rounds = [
        (_delays(images_bgr, detector, None, classifier), _delays(images_bgr, detector, background, classifier))
        for _ in range(ROUNDS + 1)
    ][1:]  # the first round warms up
    pairs = [(float(np.percentile(waiting, 95)), float(np.percentile(threaded, 95))) for waiting, threaded in rounds]
    missed = median(len(images_bgr) - len(threaded) for _, threaded in rounds)
    work = f"{file.name}, capture to drawn result, 95th percentile, against waiting for each detection"
    return ratio_row(work, pairs, frames_missed=missed)


def _delays(
    images_bgr: list[np.ndarray], detector: FaceDetector, background: FaceDetector | None, classifier: EmotionClassifier
) -> list[float]:
    """Return the seconds from capture to drawn result of each frame that was not missed."""
    delays, drawer = [], Drawer()
    for result in recognize(paced(images_bgr), detector, classifier, background=background):
        drawer.draw(result)
        delays.append(time.monotonic() - result.frame.captured)
    return delays


def measure_tracking(videos: list[Path]) -> list[Row]:
    """Compare tracking with full detection on every frame of every video; the last row is all of them together."""
    rows = []
    for file in videos:
        images_bgr, fps = read_frames(file)
        detector, tracker = FaceDetector(FACES), Tracker(FaceDetector(FACES))
        counts = np.zeros(4, int)
        for index, image_bgr in enumerate(images_bgr):
            image_rgb = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2RGB)
            full = detector.detect(image_rgb)
            tracked = [each.face for each in tracker.update(image_rgb, index / fps)]
            found = sum(any(overlap(face, other) >= MIN_OVERLAP for other in tracked) for face in full)
            supported = sum(any(overlap(face, other) >= MIN_OVERLAP for other in full) for face in tracked)
            counts += (len(full), found, len(tracked), len(tracked) - supported)
        rows.append((f"{file.name}, tracking against full detection", counts))
    rows.append(("all videos, tracking against full detection", sum(counts for _, counts in rows)))
    return [
        {"work": work, **dict(zip(("faces", "found", "boxes", "unsupported"), map(int, counts), strict=True))}
        for work, counts in rows
    ]


def read_faces(folder: Path, count: int) -> list[np.ndarray]:
    """Return some dev faces of a prepared data set, uint8 gray."""
    rows = usable(read_table(folder, "split.csv"))
    files = [str(folder / path) for path in rows.loc[rows["split"] == "dev", "face_path"]]
    chosen = np.random.default_rng(SEED).permutation(len(files))[:count]
    images = (cv2.imread(files[index], cv2.IMREAD_GRAYSCALE) for index in chosen)
    return [image for image in images if image is not None]


def still_frames(faces_gray: list[np.ndarray], seconds: float, seed: int) -> Iterator[Frame]:
    """Yield frames of still faces, one after another in one place, with camera noise."""
    random, sway, index = np.random.default_rng(seed), np.zeros(3), 0
    for face_gray in faces_gray:
        background = np.full((320, 320), 110, np.uint8)
        background[80:240, 80:240] = cv2.resize(face_gray, (160, 160), interpolation=cv2.INTER_CUBIC)
        for _ in range(round(seconds * RATE)):
            sway = 0.97 * sway + SWAY * random.normal(size=3)
            matrix = cv2.getRotationMatrix2D((160, 160), float(sway[2]) / 10, 1.0)
            matrix[:, 2] += sway[:2]
            moved = cv2.warpAffine(background, matrix, (320, 320), borderMode=cv2.BORDER_REPLICATE)
            noisy = (moved + random.normal(0, NOISE, (320, 320))).clip(0, 255).astype(np.uint8)
            yield Frame(cv2.cvtColor(noisy, cv2.COLOR_GRAY2BGR), index, index / RATE, "still faces")
            index += 1


def labels_over_time(frames: Iterator[Frame], classifier: EmotionClassifier) -> list[list[tuple[float, str, str]]]:
    """Return, for each track, its times and its raw and smoothed labels, both of the same probabilities."""
    smoother = TemporalSmoother(classifier.abstention_threshold)
    tracks: dict[int, list[tuple[float, str, str]]] = {}
    for result in recognize(frames, FaceDetector(FACES), classifier, raw=True):
        confirmed = [each for each in result.recognitions if not each.tentative]
        if not confirmed:
            continue
        rows = np.array([list(each.probabilities.values()) for each in confirmed])
        smoothed = smoother.update([each.track_id for each in confirmed], rows, result.frame.time)
        for each, prediction in zip(confirmed, smoothed, strict=True):
            label = "unsure" if prediction.unsure else classifier.labels[prediction.index]
            tracks.setdefault(each.track_id, []).append((result.frame.time, each.label, label))
    return list(tracks.values())


def measure_labels(faces: list[np.ndarray], classifier: EmotionClassifier) -> list[Row]:
    """Measure how often labels change on still faces, and the delay after a cut from one expression to another.

    Only faces whose raw label never changes are used for the cuts, because their expected label is known.
    """
    minutes, raw, smoothed, changing = 0.0, 0, 0, 0
    stable: list[tuple[np.ndarray, str]] = []
    for seed, face_gray in enumerate(faces):
        for track in labels_over_time(still_frames([face_gray], STILL_SECONDS, seed), classifier):
            minutes += len(track) / RATE / 60
            changes = [sum(a[place] != b[place] for a, b in pairwise(track)) for place in (1, 2)]
            raw, smoothed, changing = raw + changes[0], smoothed + changes[1], changing + bool(changes[0])
            if not changes[0] and len(track) > 0.9 * STILL_SECONDS * RATE:
                stable.append((face_gray, track[0][1]))
    delays: list[float | None] = []
    for seed, ((before_gray, before), (after_gray, after)) in enumerate(pairwise(stable)):
        if before != after:
            tracks = labels_over_time(still_frames([before_gray, after_gray], 2.0, seed), classifier)
            delays.append(
                min((now - 2 for each in tracks for now, _, label in each if now >= 2 and label == after), default=None)
            )
    seen = [delay for delay in delays if delay is not None]
    still = {"work": "label changes per face and minute, raw against smoothed, still faces"}
    still |= {"raw": raw / minutes, "smoothed": smoothed / minutes, "ratio": raw / max(smoothed, 1)}
    still |= {"faces": len(faces), "faces_with_changes": changing}
    cut: Row = {
        "work": "delay after a cut to another expression",
        "cuts": len(delays),
        "not_shown": len(delays) - len(seen),
    }
    if seen:
        cut |= {"median_s": median(seen), "95th_percentile_s": float(np.percentile(seen, 95))}
    return [still, cut]


def compare_start(file: Path) -> Row:
    """Compare the time from the command to the first drawn frame with importing TensorFlow."""

    def seconds(*command: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", *command], cwd=ROOT, capture_output=True, check=True)
        return time.perf_counter() - start

    first_frame = (FIRST_FRAME, str(file.resolve()))
    seconds(*first_frame)  # converts the networks where that has not been done
    pairs = [(seconds("import tensorflow"), seconds(*first_frame)) for _ in range(ROUNDS)]
    return ratio_row("command to first drawn frame, against import tensorflow", pairs)


if __name__ == "__main__":
    run(main)
