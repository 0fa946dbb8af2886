"""Compare this project's face detector with mtcnn 1.0, on the same images in one run.

    python -m benchmarks.face_detection --video talk_640x480.mp4 --video street_1080p.mp4

Without a video, one is made from the sample's portrait. Each figure is the median over pairs: mtcnn and this detector
on the same frame, one after the other. Ratios are comparable between machines; times are not.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import pandas as pd

from benchmarks.common import (
    SEED,
    JsonFile,
    Row,
    Videos,
    compare,
    finish,
    ratio_row,
    read_frames,
    spread,
    write_portrait_video,
)
from common.command_line import progress_bar, run
from common.logging import quiet_start
from configuration import FACES, ROOT
from inference.crops import read_image_rgb
from inference.face_detector import FaceDetector
from inference.faces import Face
from preprocessing.datasets.sample import PORTRAIT
from preprocessing.face_crops import write_face_crops
from preprocessing.tables import INVENTORY_COLUMNS, write_table
from realtime.sinks.files import write_picture
from realtime.tracking import overlap

FRAMES = 24  # of each video
PICTURES, REFERENCE_PICTURES = 200, 20  # that step 2 and mtcnn crop
MIN_CONFIDENCE = 0.9  # of mtcnn's faces that are to be recovered
MIN_OVERLAP = 0.7  # intersection over union of a recovered face

START = """
from inference.crops import read_image_rgb
from inference.face_detector import FaceDetector
assert FaceDetector().detect(read_image_rgb(PORTRAIT))
"""
REFERENCE_START = """
import cv2, mtcnn
assert mtcnn.MTCNN().detect_faces(cv2.cvtColor(cv2.imread(str(PORTRAIT)), cv2.COLOR_BGR2RGB))
"""
LARGE_PHOTO = """
from resource import RUSAGE_SELF, getrusage
from inference.crops import read_image_rgb
from inference.face_detector import FaceDetector
import cv2
image_rgb = cv2.resize(read_image_rgb(PORTRAIT), (3000, 4000), interpolation=cv2.INTER_CUBIC)
assert FaceDetector(threads=1).detect(image_rgb)
print(getrusage(RUSAGE_SELF).ru_maxrss)
"""


def main(video: Videos = None, output: JsonFile = None) -> None:
    """Compare speed and faces of this project's detector with mtcnn's."""
    rows = [measure_memory()]  # first: the peak of a process includes what its parent held at its start
    with tempfile.TemporaryDirectory() as temporary:
        videos = video or [write_portrait_video(Path(temporary) / "portrait.avi", FRAMES)]
        clips = {
            file.name: [cv2.cvtColor(each, cv2.COLOR_BGR2RGB) for each in spread(read_frames(file)[0], FRAMES)]
            for file in videos
        }
    FaceDetector()  # converts the networks where that has not been done
    codes = (lambda _: run_python(REFERENCE_START)), (lambda _: run_python(START))
    rows.append(compare("import to first face", *codes, range(3)))
    with quiet_start():
        import mtcnn

        reference = mtcnn.MTCNN()
    for name, clip in clips.items():
        height, width = clip[0].shape[:2]
        place = f"{name} {width}x{height}"
        rows += [compare_detection(f"{place}, faces from {size} px", clip, size, reference) for size in (20, 40)]
        with correct_pyramid():
            work = f"{place}, faces from 40 px, mtcnn with a correct pyramid"
            rows.append(compare_detection(work, clip, 40, reference, {"min_face_size": 40}))
        rows += compare_propagation(f"{place}, one known face in the next frame", clip, reference)
    rows.append(compare_cropping([image for clip in clips.values() for image in clip], reference))
    finish(rows, output)


def compare_detection(
    work: str, clip: list[np.ndarray], min_face_size: int, reference: Any, reference_options: Row | None = None
) -> Row:
    """Compare whole detections: time, mtcnn's faces that are recovered, and faces that mtcnn does not report."""
    detector = FaceDetector(replace(FACES, min_face_size=min_face_size, largest_side=max(clip[0].shape)))

    def detect_reference(image_rgb: np.ndarray) -> list[Face]:
        found = reference.detect_faces(image_rgb, **(reference_options or {}))
        faces = []
        for face in found:
            left, top, width, height = map(float, face["box"])
            faces.append(Face(left, top, width, height, face["confidence"]))
        return [face for face in faces if face.confidence >= MIN_CONFIDENCE]

    faces = recovered = extra = 0
    for image_rgb in clip:
        theirs, ours = detect_reference(image_rgb), detector.detect(image_rgb)
        large = [face for face in theirs if max(face.width, face.height) >= min_face_size]
        faces += len(large)
        recovered += sum(any(overlap(face, other) >= MIN_OVERLAP for other in ours) for face in large)
        extra += sum(all(overlap(face, other) < MIN_OVERLAP for other in theirs) for face in ours)
    more = {"recovered": f"{recovered} of {faces}", "extra_per_100_frames": 100 * extra / len(clip)}
    return compare(work, detect_reference, detector.detect, clip, **more)


def compare_propagation(work: str, clip: list[np.ndarray], reference: Any) -> list[Row]:
    """Compare the propagation of one face with a whole detection of mtcnn; nothing where the video has no face."""
    detector = FaceDetector(replace(FACES, largest_side=max(clip[0].shape)))
    known = [(image_rgb, detector.detect(image_rgb)[:1]) for image_rgb in clip]
    known = [(image_rgb, faces) for image_rgb, faces in known if faces]
    if not known:
        return []
    return [compare(work, lambda item: reference.detect_faces(item[0]), lambda item: detector.propagate(*item), known)]


@contextmanager
def correct_pyramid() -> Iterator[None]:
    """Give mtcnn a pyramid that respects its smallest face; its own finds nothing from about 30 px on."""

    def scales(width: int, height: int, min_face_size: int, scale_factor: float, min_size: int = 12) -> np.ndarray:
        count = int(np.log(min_face_size / min(width, height)) / np.log(scale_factor)) + 1
        return min_size / min_face_size * scale_factor ** np.arange(count)

    with mock.patch("mtcnn.stages.stage_pnet.build_scale_pyramid", scales):
        yield


def run_python(code: str) -> str:
    """Run code in a new process, with the path of the portrait in PORTRAIT, and return its output."""
    code = f"from pathlib import Path\nPORTRAIT = Path({str(PORTRAIT)!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def measure_memory() -> Row:
    """Measure the peak memory of one detection in a 12-megapixel photo."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes in a unit of ru_maxrss
    return {"work": "peak memory, 12-megapixel photo", "megabytes": int(run_python(LARGE_PHOTO)) * unit / 2**20}


def compare_cropping(images_rgb: list[np.ndarray], reference: Any) -> Row:
    """Compare step 2 with a loop over mtcnn, on images of mixed size."""
    random = np.random.default_rng(SEED)
    with tempfile.TemporaryDirectory() as temporary, progress_bar():
        folder = Path(temporary) / "data"
        (folder / "images").mkdir(parents=True)
        table = pd.DataFrame("", index=range(PICTURES), columns=INVENTORY_COLUMNS).assign(status="ok")
        table["path"] = [f"images/{number:04d}.jpg" for number in range(PICTURES)]
        for number, path in enumerate(table["path"]):
            scale = random.uniform(0.4, 1.2)
            image_rgb = images_rgb[number % len(images_rgb)]
            image_rgb = cv2.resize(image_rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            write_picture(folder / path, cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR))
        write_table(table, folder / "inventory.csv")
        start = time.perf_counter()
        faces = write_face_crops(folder)
        middle = time.perf_counter()
        for path in spread(list(table["path"]), REFERENCE_PICTURES):
            reference.detect_faces(read_image_rgb(folder / path))
        pair = ((time.perf_counter() - middle) / REFERENCE_PICTURES, (middle - start) / PICTURES)
    found = int((faces["face_status"] == "found").sum())
    return ratio_row(f"crop {PICTURES} images of mixed size, each", [pair], images_with_a_face=found)


if __name__ == "__main__":
    run(main)
