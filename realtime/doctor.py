"""Check camera, display, network and speed: `python -m realtime.webcam --doctor`."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import cv2
import numpy as np

from common.errors import InputError
from common.logging import silence_opencv
from common.processes import available_cores
from configuration import PATHS
from inference.crops import network_input, read_image_rgb
from inference.face_detector import FaceDetector, build_detector
from inference.faces import Detector
from preprocessing.datasets.sample import PORTRAIT
from realtime.recognition import Classifier, Recognition, Result
from realtime.sinks.drawing import Drawer
from realtime.sinks.recording import VideoRecording, letterbox
from realtime.sinks.window import has_display, has_windows
from realtime.sources.cameras import camera_numbers, camera_remedy
from realtime.sources.frames import FALLBACK_FPS, Frame

PROBE_SECONDS = 10.0  # at most, for a camera to respond
_RESOLUTIONS = ((1920, 1080), (1280, 720), (640, 480))  # pixels: requested from each camera
_OPENCV = ("opencv-python", "opencv-python-headless")  # they share files: reinstalling needs both removed
_ROUNDS = 15  # timed runs of each stage
# A process of its own, as a driver may hang or crash. It prints each resolution that a camera gives a frame in.
_PROBE = """
import json, os, sys
os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "-8"
import cv2
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
capture, sizes = cv2.VideoCapture(int(sys.argv[1])), []
if capture.isOpened():
    for width, height in json.loads(sys.argv[2]):
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, width)
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, height)
        grabbed, image = capture.read()
        if grabbed and [image.shape[1], image.shape[0]] not in sizes:
            sizes.append([image.shape[1], image.shape[0]])
print(json.dumps([capture.isOpened(), sizes]))
"""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        subject: What was checked.
        text: Its state.
        remedy: What to do; empty where all is well.
        is_fault: The program cannot work like this. Else a remedy only names something missing, such as a camera.
    """

    subject: str
    text: str
    remedy: str = ""
    is_fault: bool = False

    def __str__(self) -> str:
        mark = "FAULT" if self.is_fault else "miss " if self.remedy else "ok   "
        line = f"{mark}  {self.subject:<10}  {self.text}"
        return f"{line}\n{'':>19}-> {self.remedy}" if self.remedy else line


def examine(model: Path, load: Callable[[Path], Any], say: Callable[[object], None] = print) -> bool:
    """Check everything that the program needs, and report each finding at once.

    Args:
        model: The network to check.
        load: Returns its classifier.
        say: Takes each finding.

    Returns:
        Whether there is no fault. A missing camera or display is none.
    """
    silence_opencv()
    is_well = True
    for finding in _findings(model, load):
        is_well &= not finding.is_fault
        say(finding)
    say("everything needed works" if is_well else "there is a fault: see above")
    return is_well


def _findings(model: Path, load: Callable[[Path], Any]) -> Iterator[Finding]:
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {available_cores()} cores"
    yield Finding("machine", system)
    yield check_opencv()
    yield check_display()
    yield check_recording()
    yield from check_cameras()
    finding, classifier = check_model(model, load)
    yield finding
    finding, detector = check_detector()
    yield finding
    if classifier and detector:
        yield measure(portrait_frame(), detector, classifier)


def check_opencv() -> Finding:
    """Check that OpenCV has windows and FFmpeg."""
    has_ffmpeg = bool(re.search(r"FFMPEG:\s+YES", cv2.getBuildInformation()))
    windows = f"windows by {cv2.currentUIFramework()}" if has_windows() else "no windows"
    text = f"{cv2.__version__}, {windows}, {'videos by FFmpeg' if has_ffmpeg else 'without FFmpeg'}"
    return Finding("OpenCV", text, "" if has_ffmpeg and has_windows() else reinstall(*_OPENCV), not has_ffmpeg)


def check_display() -> Finding:
    """Check that a window can be shown."""
    name = os.environ.get("DISPLAY", "")
    if has_display():
        return Finding("display", name or "there is one")
    text = f"DISPLAY={name} does not respond" if name and has_windows() else "none"
    return Finding("display", text, "log in at a desktop or by ssh -X, or write files: --record, --log, --summary")


def check_recording() -> Finding:
    """Check that a video can be written."""
    with TemporaryDirectory() as folder:
        try:
            recording = VideoRecording(Path(folder) / "trial.mp4", (160, 120), 25.0)
            recording.write(0.0, np.zeros((120, 160, 3), np.uint8))
            recording.close()
        except (InputError, OSError) as error:
            remedy = f"make room in {gettempdir()}, or {reinstall('av')}"
            return Finding("recording", f"a trial video could not be written: {error}", remedy, True)
    return Finding("recording", "a trial .mp4 was written")


def check_cameras() -> Iterator[Finding]:
    """Check each camera, and that one of them works."""
    numbers, works = camera_numbers(), False
    for number in numbers:
        sizes, reason = probe(number)
        works |= bool(sizes)
        text = ", ".join(f"{width}x{height}" for width, height in sizes)
        command = f"{text}: python -m realtime.webcam --source {number}"
        yield Finding(f"camera {number}", command if sizes else reason, "" if sizes else camera_remedy(number))
    if not works:
        remedy = "plug one in and allow its use; a video, an image or a stream is also a --source"
        yield Finding("cameras", "none gives a picture" if numbers else "none", remedy)


def probe(number: int) -> tuple[list[tuple[int, int]], str]:
    """Return the resolutions that a camera gives, width and height in pixels, and why there are none."""
    command = [sys.executable, "-c", _PROBE, str(number), json.dumps(_RESOLUTIONS)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return [], f"does not respond within {PROBE_SECONDS:.0f} seconds"
    if ended.returncode:
        return [], "its driver crashes OpenCV"
    opens, sizes = json.loads(ended.stdout.splitlines()[-1])
    return [(width, height) for width, height in sizes], "gives no picture" if opens else "cannot be opened"


def check_model(model: Path, load: Callable[[Path], Any]) -> tuple[Finding, Any]:
    """Check that a network loads, and that its card has a temperature and scores; return its classifier or None."""
    start = time.perf_counter()
    try:
        classifier = load(model)
    except InputError as error:
        files = shlex.join(map(str, (model, model.with_suffix(".json"), PATHS.shipped)))
        remedy = f"git checkout -- {files}" if model == PATHS.pretrained else "give --model a trained network"
        return Finding("model", str(error), remedy, True), None
    seconds = time.perf_counter() - start
    card = classifier.card
    scores = [
        f"{score['accuracy']:.1%} on {score['dataset']} {score['split']}"
        + (f" ({score['banner']})" if score.get("banner") else "")
        for score in card.scores
        if "tta" not in score  # the camera does without test-time augmentation
    ]
    is_calibrated = bool(card.calibration) or card.temperature != 1.0
    text = "; ".join(
        [
            f"{model.name}, loaded in {seconds:.1f} s",
            f"{len(classifier.labels)} expressions ({', '.join(classifier.labels)})",
            "accuracy " + ", ".join(scores) if scores else "its card has no score",
            f"calibrated (temperature {card.temperature:.2f})" if is_calibrated else "not calibrated",
            f"unsure below a smoothed probability of {card.abstention_threshold:.2%}",
        ]
    )
    missing = ["--calibrate"] * (not is_calibrated) + ["--update-card"] * (not scores)
    words = ["--dataset", card.dataset or "NAME", "--model", str(model), *missing]
    remedy = f"python -m evaluation.model_evaluation {shlex.join(words)}" if missing else ""
    return Finding("model", text, remedy), classifier


def check_detector() -> tuple[Finding, Detector | None]:
    """Check that mtcnn detects the face of the sample portrait; return the detector or None."""
    start = time.perf_counter()
    try:
        detector = build_detector("mtcnn")
        faces = detector.detect(cv2.cvtColor(portrait_frame(), cv2.COLOR_BGR2RGB))
    except (InputError, OSError) as error:
        return Finding("detector", f"mtcnn cannot be used: {error}", reinstall("mtcnn"), True), None
    text = f"mtcnn, ready after {time.perf_counter() - start:.1f} s"
    if not faces:
        remedy = f"git checkout -- {PATHS.shipped}; {reinstall('mtcnn')}"
        return Finding("detector", f"{text}, finds no face in a portrait", remedy, True), None
    return Finding("detector", f"{text}, finds the face of a portrait"), detector


def reinstall(*packages: str) -> str:
    """Return the commands that reinstall packages in the versions of the project."""
    return f"python -m pip uninstall -y {' '.join(packages)}; python -m pip install -r requirements-realtime.txt"


def portrait_frame() -> np.ndarray:
    """Return the sample portrait as a frame of a camera, uint8 BGR, 640x480."""
    return letterbox(cv2.cvtColor(read_image_rgb(PORTRAIT), cv2.COLOR_RGB2BGR), (640, 480))


def measure(frame_bgr: np.ndarray, detector: Detector, classifier: Classifier) -> Finding:
    """Measure each stage for a frame with one face, and the frame rate that follows."""
    image_rgb = cv2.cvtColor(frame_bgr, cv2.COLOR_BGR2RGB)
    face = detector.detect(image_rgb)[0]
    crops = network_input(image_rgb, face, classifier.faces)[None]
    probabilities = dict(zip(classifier.labels, map(float, classifier.predict(crops)[0]), strict=True))
    result = Result(Frame(frame_bgr, 0, 0.0, "portrait"), [Recognition(face, probabilities, 1)])
    drawer = Drawer()
    stages: dict[str, Callable[[], object]] = {
        "detection": lambda: detector.detect(image_rgb),
        "crop": lambda: network_input(image_rgb, face, classifier.faces),
        "network": lambda: classifier.predict(crops),
        "drawing": lambda: drawer.draw(result),
    }
    if isinstance(detector, FaceDetector):
        stages["propagation"] = lambda: detector.propagate(image_rgb, [face])
    spent = {name: milliseconds(run) for name, run in stages.items()}
    per_frame = sum(spent.values()) - (spent["detection"] if "propagation" in spent else 0.0)
    text = ", ".join(f"{name} {value:.1f} ms" for name, value in spent.items())
    text += f": about {1000 / per_frame:.0f} frames/s while a face is tracked (640x480)"
    is_slow = 1000 / per_frame < FALLBACK_FPS
    remedy = "close other programs; a larger --min-face-size makes detection faster"
    return Finding("speed", text, remedy if is_slow else "")


def milliseconds(run: Callable[[], object]) -> float:
    """Return the median time of several runs after one warm-up run."""
    times = []
    for _ in range(1 + _ROUNDS):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return median(times[1:])
