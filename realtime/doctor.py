"""What works on this machine, how fast, and what to do about the rest: `python -m realtime.webcam --doctor`."""

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
from configuration import PATHS, WEBCAM
from inference.crops import network_input, read_image_rgb
from inference.face_detector import FaceDetector, build_detector
from inference.faces import Detector, Face
from realtime.recognition import Classifier, Recognition, Result
from realtime.sinks.drawing import Drawer
from realtime.sinks.recording import VideoRecording, letterbox
from realtime.sinks.window import has_display, has_windows
from realtime.sources import Frame, camera_node, camera_numbers

_RESOLUTIONS = ((1920, 1080), (1280, 720), (640, 480))  # pixels: what a camera is asked for
_OPENCV = ("opencv-python", "opencv-python-headless")  # they share their files: both go before one comes
_ROUNDS = 15  # times that a stage runs to be measured; the median counts
# A program of its own, as a driver may hang or crash: prints each resolution that a camera gives a frame in.
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
    """One thing that was looked at.

    Attributes:
        subject: What it is.
        text: How it is.
        remedy: What to do about it; empty where all is well.
        is_fault: The program cannot do its work like this; else it only misses something, as a server does a camera.
    """

    subject: str
    text: str
    remedy: str = ""
    is_fault: bool = False

    def __str__(self) -> str:
        mark = "FAULT" if self.is_fault else "miss " if self.remedy else "ok   "
        line = f"{mark}  {self.subject:<10}  {self.text}"
        return f"{line}\n{'':>19}-> {self.remedy}" if self.remedy else line


@dataclass(frozen=True)
class Camera:
    """What a camera answered.

    Attributes:
        number: What `--source` calls it.
        opens: The system gives it to us.
        sizes: Width and height of the pictures it gives, pixels.
        warning: Why nothing came of it; else empty.
    """

    number: int
    opens: bool
    sizes: list[tuple[int, int]]
    warning: str = ""


def examine(model: Path, load: Callable[[Path], Any], say: Callable[[object], None] = print) -> bool:
    """Look at everything that the program needs, and tell each finding as it is made.

    Args:
        model: The network to look at.
        load: Returns its classifier.
        say: Takes what a person is to read.

    Returns:
        Nothing is at fault. A missing camera or display is none: videos can be read, and files written.
    """
    silence_opencv()
    is_well = True

    def tell(finding: Finding) -> None:
        nonlocal is_well
        is_well &= not finding.is_fault
        say(finding)

    for finding in (look_at_machine(), look_at_opencv(), look_at_display(), look_at_recording()):
        tell(finding)
    for finding in look_at_cameras():
        tell(finding)
    finding, classifier = look_at_model(model, load)
    tell(finding)
    finding, detector = look_at_detector()
    tell(finding)
    tell(look_at_conversions())
    if classifier and detector:
        for finding in measure(portrait_frame(), detector, classifier):
            tell(finding)
    say("all that is needed works" if is_well else "something is at fault: see above")
    return is_well


def look_at_machine() -> Finding:
    """Tell what this machine is."""
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {available_cores()} cores"
    return Finding("machine", system)


def look_at_opencv() -> Finding:
    """Tell how OpenCV was built."""
    build = cv2.getBuildInformation()
    has_ffmpeg = bool(re.search(r"FFMPEG:\s+YES", build))
    windows = f"windows by {cv2.currentUIFramework()}" if has_windows() else "no windows"
    text = f"{cv2.__version__}, {windows}, {'videos by FFmpeg' if has_ffmpeg else 'without FFmpeg'}"
    if not has_ffmpeg:
        return Finding("OpenCV", text, f"videos and streams need FFmpeg: {reinstall(*_OPENCV)}", True)
    if not has_windows():
        return Finding("OpenCV", text, reinstall(*_OPENCV))
    return Finding("OpenCV", text)


def look_at_display() -> Finding:
    """Tell whether a window can be shown."""
    named = os.environ.get("DISPLAY", "")
    if has_display():
        return Finding("display", named or "there is one")
    if named and has_windows():
        return Finding("display", f"DISPLAY={named} does not answer", "start that X server, or unset DISPLAY")
    remedy = "log in at a desktop or by ssh -X; without one, keep files: --record, --log, --summary"
    return Finding("display", "none here", remedy)


def look_at_recording() -> Finding:
    """Write a video and read it again."""
    noise_bgr = np.random.default_rng(1).integers(0, 255, (120, 160, 3), np.uint8)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "trial.mp4"
        try:
            recording = VideoRecording(file, (160, 120), 25.0)
            for index in range(5):
                recording.write(index / 25, noise_bgr)
            recording.close()
        except (InputError, OSError) as error:
            remedy = f"make room in {gettempdir()}, or {reinstall('av')}"
            return Finding("recording", f"a trial video could not be written: {error}", remedy, True)
        capture, count = cv2.VideoCapture(str(file)), 0
        while capture.read()[0]:
            count += 1
        capture.release()
    if count != 5:
        remedy = reinstall("av", *_OPENCV)
        return Finding("recording", f"a trial video of 5 frames gave {count} back", remedy, True)
    return Finding("recording", "a trial .mp4 was written and read")


def look_at_cameras() -> Iterator[Finding]:
    """Tell of each camera what it gives."""
    numbers = camera_numbers()
    working = 0
    for number in numbers:
        camera = probe(number)
        name = f"camera {number}"
        if camera.sizes:
            working += 1
            sizes = ", ".join(f"{width}x{height}" for width, height in camera.sizes)
            yield Finding(name, f"{sizes}: python -m realtime.webcam --source {number}")
        elif sys.platform.startswith("linux"):
            node = camera_node(number)
            if not os.access(node, os.R_OK | os.W_OK):
                remedy = "sudo usermod -aG video $USER, then log in again"
                yield Finding(name, f"{node} may not be read by this user", remedy)
            else:
                text = camera.warning or ("gives no picture" if camera.opens else "cannot be opened")
                remedy = f"close the program that uses it (fuser -v {node} names it), plug it in anew, or take another"
                yield Finding(name, text, remedy)
    if not working:
        text = "none gives a picture" if numbers else "none is there"
        yield Finding(
            "cameras", text, "plug one in and allow its use; a video, an image or a stream is also a --source"
        )


def probe(number: int) -> Camera:
    """Ask a camera for pictures, in a program of its own that ends after `WEBCAM.probe_seconds`."""
    command = [sys.executable, "-c", _PROBE, str(number), json.dumps(_RESOLUTIONS)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=WEBCAM.probe_seconds, check=False)
    except subprocess.TimeoutExpired:
        return Camera(number, True, [], f"gave no answer for {WEBCAM.probe_seconds:.0f} seconds")
    if ended.returncode:
        return Camera(number, False, [], "made OpenCV crash")
    opens, sizes = json.loads(ended.stdout.splitlines()[-1])
    return Camera(number, opens, [(width, height) for width, height in sizes])


def look_at_model(model: Path, load: Callable[[Path], Any]) -> tuple[Finding, Any]:
    """Load a network, and tell what its card says."""
    start = time.perf_counter()
    try:
        classifier = load(model)
    except InputError as error:
        files = " ".join(shlex.quote(str(file)) for file in (model, model.with_suffix(".json")))
        remedy = f"git checkout -- {files}" if model == PATHS.pretrained else "give --model a trained network"
        return Finding("model", str(error), remedy, True), None
    seconds = time.perf_counter() - start
    card = classifier.card
    scores = [
        f"{score['accuracy']:.1%} on {score['dataset']} {score['split']}"
        + (f" ({score['banner']})" if score.get("banner") else "")
        for score in card.scores
        if "tta" not in score  # here, faces are asked about once
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
    if missing:
        words = ["--dataset", card.dataset or "NAME", "--model", str(model), *missing]
        remedy = f"python -m evaluation.model_evaluation {shlex.join(words)}"
        return Finding("model", text, remedy), classifier
    return Finding("model", text), classifier


def look_at_detector() -> tuple[Finding, Detector | None]:
    """Find the face of the sample portrait."""
    start = time.perf_counter()
    try:
        detector = build_detector("mtcnn")
        faces = detector.detect(cv2.cvtColor(portrait_frame(), cv2.COLOR_BGR2RGB))
    except (InputError, OSError) as error:
        return Finding("detector", f"mtcnn cannot be used: {error}", reinstall("mtcnn"), True), None
    text = f"mtcnn, ready after {time.perf_counter() - start:.1f} s"
    if not faces:
        remedy = f"delete {PATHS.converted}; {reinstall('mtcnn')}"
        return Finding("detector", f"{text}, finds no face in a portrait", remedy, True), None
    return Finding("detector", f"{text}, finds the sample portrait's face"), detector


def look_at_conversions() -> Finding:
    """Tell whether the converted networks are kept."""
    files = sorted(PATHS.converted.glob("*.tflite"))
    if files:
        size = sum(file.stat().st_size for file in files) / 1e6
        return Finding("converted", f"{len(files)} networks, {size:.1f} MB, in {PATHS.converted}")
    remedy = f"allow writing to {PATHS.converted}: without it, every start takes seconds longer"
    return Finding("converted", "no converted network could be kept", remedy)


def reinstall(*packages: str) -> str:
    """Return the commands that install packages anew, in the versions that the project takes."""
    return f"python -m pip uninstall -y {' '.join(packages)}; python -m pip install -r requirements.txt"


def portrait_frame() -> np.ndarray:
    """Return the sample portrait as a camera's frame, uint8 BGR, 640x480."""
    import matplotlib  # late: the live path does without

    file = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    return letterbox(cv2.cvtColor(read_image_rgb(file), cv2.COLOR_RGB2BGR), (640, 480))


def measure(frame_bgr: np.ndarray, detector: Detector, classifier: Classifier) -> Iterator[Finding]:
    """Tell what each stage takes for one face in a frame, and what frame rate that comes to."""
    image_rgb = cv2.cvtColor(frame_bgr, cv2.COLOR_BGR2RGB)
    face: Face = detector.detect(image_rgb)[0]
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
        follower = detector
        stages["following"] = lambda: follower.propagate(image_rgb, [face])
    took = {name: milliseconds(run) for name, run in stages.items()}
    text = ", ".join(f"{name} {value:.1f} ms" for name, value in took.items())
    yield Finding("speed", f"{text} (one face, 640x480)")
    steady = took.get("following", took["detection"]) + took["crop"] + took["network"] + took["drawing"]
    slowest = took["detection"] + took["crop"] + took["network"] + took["drawing"]
    text = f"about {1000 / steady:.0f} frames/s while a face is followed, {1000 / slowest:.0f} searching every frame"
    remedy = ""
    if 1000 / steady < WEBCAM.fallback_fps:
        remedy = "close other programs; a larger --min-face-size makes the search cheaper"
    yield Finding("rate", text, remedy)


def milliseconds(run: Callable[[], object]) -> float:
    """Return the median time of a few runs, the first of which is not counted."""
    run()
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return median(times)
