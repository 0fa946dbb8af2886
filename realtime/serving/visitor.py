"""A visitor of the page: the tracker of its camera, its uploaded video, and its tables."""

import time
from collections.abc import Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from common.emotions import css_color
from common.errors import InputError
from configuration import WEB, WEBCAM
from inference.face_detector import FaceDetector
from inference.faces import Detector, Face
from realtime.anonymity import NO_PIXELS, Anonymizer, cover, with_image
from realtime.recognition import BACKGROUND_THREADS, NOT_SURE, Classifier, Result, recognize, watch
from realtime.serving.frames import FrameReader, open_upload
from realtime.serving.messages import MessageError, Picture, decode, described, encode
from realtime.sinks.log import FaceLog
from realtime.sinks.segments import SegmentTable
from realtime.sinks.summary import SummaryPage
from realtime.sources import Frame, Video
from realtime.sources.frames import oriented

TABLES = ("log.csv", "segments.csv", "summary.html")

Reply = tuple[dict[str, Any], bytes | None]


@dataclass(frozen=True)
class Recognizer:
    """What all visitors share.

    Attributes:
        classifier: Classifies the crops.
        detector: Detects the faces.
        model: Name of the network.
        anonymous: Cover all faces in everything that is sent to a page.
        background: Runs the cameras' slow detections, one at a time, beside the shared thread.
    """

    classifier: Classifier
    detector: Detector
    model: str = ""
    anonymous: bool = False
    background: Detector | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if isinstance(self.detector, FaceDetector):
            background = _InTurns(FaceDetector(self.detector.options, BACKGROUND_THREADS))
            object.__setattr__(self, "background", background)


class _InTurns:
    """A detector that several threads take in turns."""

    def __init__(self, detector: Detector):
        self._detector, self._lock = detector, Lock()

    def detect(self, image_rgb: np.ndarray) -> list[Face]:
        with self._lock:
            return self._detector.detect(image_rgb)


class Visitor:
    """The state of one open page. Its methods, but for `read_frame`, run on the thread of the shared classifier.

    Args:
        shared: Classifier and detector.
        folder: An empty folder for the uploaded video and the tables. Its owner deletes it.
    """

    def __init__(self, shared: Recognizer, folder: Path):
        self._shared, self.folder = shared, folder
        self._camera: _Camera | None = None
        self._video: _VideoRun | None = None
        self._tables: _Tables | None = None

    @property
    def hello(self) -> dict[str, Any]:
        """What the page shows before the first frame."""
        labels = self._shared.classifier.labels
        colors = {label: css_color(label) for label in (*labels, NOT_SURE)}
        return {"labels": labels, "colors": colors, "model": self._shared.model, "anonymous": self._shared.anonymous}

    def recognize(self, picture: Picture) -> Reply:
        """Recognize the faces of a camera frame or a picture.

        Raises:
            MessageError: It cannot be decoded, or its time does not follow the one before.
        """
        start = time.perf_counter()
        image_bgr = oriented(decode(picture.jpeg), mirror=not picture.still)
        if picture.still:
            result, anonymizer = self._recognize_still(image_bgr), Anonymizer(still=True)
        else:
            self._camera = self._camera or _Camera(self._shared, picture.time)
            result, anonymizer = self._camera.recognize(image_bgr, picture.time), self._camera.anonymizer
        reply = described(result) | {"server": time.perf_counter() - start}
        reply["log"] = not picture.still and self._write(result)
        if not self._shared.anonymous:
            return reply, None
        results = anonymizer.add(result)
        if not results:  # the anonymizer waits for the frames that follow
            return reply | {"faces": []}, None
        return reply | described(results[-1]), encode(results[-1].frame.image_bgr)

    def _recognize_still(self, image_bgr: np.ndarray) -> Result:
        frame = Frame(image_bgr, 0, 0.0, "picture", still=True)
        return next(recognize([frame], self._shared.detector, self._shared.classifier, still=True))

    def _write(self, result: Result) -> bool:
        """Add a camera frame to the log, and return whether the log goes on."""
        if self._video or not self._tables:  # a video has tables of its own
            return False
        self._tables.write(result)
        return not self._tables.is_finished

    def log(self, is_on: bool) -> None:
        """Start a new log of the camera, or finish it.

        Raises:
            InputError: A table cannot be written.
        """
        if self._tables:
            self._tables.close()
        if is_on:
            self._tables = _Tables(self.folder, self._shared, "camera")

    def table(self, name: str) -> Path | None:
        """Return a finished table, one of `TABLES`; None if there is none."""
        return self.folder / name if self._tables and self._tables.is_finished and name in TABLES else None

    def open(self, file: Path, name: str) -> dict[str, Any]:
        """Open an uploaded video in place of an earlier one.

        Args:
            file: The video, which this visitor deletes.
            name: Its name on the visitor's machine.

        Raises:
            InputError: It cannot be used.
        """
        self.discard()
        try:
            source = open_upload(file, name)
        except InputError:
            file.unlink()
            raise
        self.log(False)
        self._video = _VideoRun(self._shared, source, file)
        self._tables = _Tables(self.folder, self._shared, name)
        return {"name": name, "count": source.count, "fps": source.fps, "size": source.size}

    def advance(self, with_picture: bool) -> Reply:
        """Recognize the next frame of the video.

        Raises:
            MessageError: There is no video.
            InputError: A table cannot be written.
        """
        if not self._video or not self._tables:
            raise MessageError("there is no video")
        start = time.perf_counter()
        result = self._video.advance()
        if result is None:
            self._tables.close()
            return {"type": "end", "warning": self._video.warning}, None
        self._tables.write(result)
        reply = described(result) | {"server": time.perf_counter() - start}
        is_sent = with_picture and not self._shared.anonymous
        return reply, encode(result.frame.image_bgr) if is_sent else None

    def read_frame(self, place: int) -> bytes | None:
        """Return a recognized frame of the video as JPEG, with covered faces if need be; None if there is none."""
        return self._video.read(place) if self._video else None

    def discard(self) -> None:
        """Delete the uploaded video, and finish its tables.

        Raises:
            InputError: A table cannot be written.
        """
        if self._video:
            self._video.close()
            self._video = None
            self.log(False)

    def close(self) -> None:
        """Free everything but the folder."""
        with ExitStack() as stack:
            for each in (self._camera, self._video, self._tables):
                if each:
                    stack.enter_context(closing(each))
        self._camera = self._video = self._tables = None


class _Camera:
    """Tracks the faces of a camera as `watch` does, which takes one frame per result."""

    def __init__(self, shared: Recognizer, start: float):
        frames = iter(lambda: self._frame, None)
        background = None if shared.anonymous else shared.background  # a late detection would leave faces uncovered
        self._results = recognize(frames, shared.detector, shared.classifier, background=background)
        self.anonymizer = Anonymizer()
        self._start, self._last, self._count = start, -np.inf, 0

    def recognize(self, image_bgr: np.ndarray, now: float) -> Result:
        if now <= self._last:
            raise MessageError("the time of a frame must be later than that of the frame before")
        self._frame = Frame(image_bgr, self._count, now - self._start, "camera")
        self._last, self._count = now, self._count + 1
        return next(self._results)

    def close(self) -> None:
        self._results.close()


class _VideoRun:
    """Recognizes an uploaded video frame by frame, and reads its frames again."""

    def __init__(self, shared: Recognizer, source: Video, file: Path):
        self._source, self._file, self._anonymous = source, file, shared.anonymous
        self._results: Generator[Result, None, None] = watch(source, shared.classifier, shared.detector)
        self._done: list[Result] = []  # without pixels and, unless they are covered, without faces
        self._reader = FrameReader(file)
        self._is_finished = False

    @property
    def warning(self) -> str:
        """What was wrong with the file; else empty."""
        return self._source.warning

    def advance(self) -> Result | None:
        """Return the next result; None at the end."""
        result = next(self._results, None)
        self._is_finished = result is None
        if result:
            faces = [replace(each, probabilities={each.label: 1.0}) for each in result.recognitions]
            frame = replace(result.frame, image_bgr=NO_PIXELS)
            self._done.append(Result(frame, faces if self._anonymous else []))
        return result

    def read(self, place: int) -> bytes | None:
        """Return a recognized frame as JPEG; None if it does not exist, must wait, or can no longer be read."""
        if not 0 <= place < len(self._done):
            return None
        result = self._done[place]
        since = self._done[-1].frame.time - result.frame.time
        if self._anonymous and not self._is_finished and since < WEBCAM.hidden_before:
            return None  # the next frames may show faces that must be covered here
        image_bgr = self._reader.read(result.frame.index, self._source.stamps if self._source.is_ordered else [])
        if image_bgr is None:
            return None
        result = with_image(result, image_bgr)
        return encode((cover(result, place, self._done) if self._anonymous else result).frame.image_bgr)

    def close(self) -> None:
        """Close and delete the file."""
        with closing(self._reader), closing(self._source), closing(self._results):
            self._file.unlink(missing_ok=True)


class _Tables:
    """The log, the segments and the summary page of one recording, in a folder."""

    def __init__(self, folder: Path, shared: Recognizer, source: str):
        labels, (log, segments, summary) = shared.classifier.labels, (folder / name for name in TABLES)
        self.is_finished = False
        for old in (log, segments, summary):  # a download of the old file goes on
            old.unlink(missing_ok=True)
        self._log = log
        self._sinks = FaceLog(log, labels), SegmentTable(segments), SummaryPage(summary, labels, source, shared.model)

    def write(self, result: Result) -> None:
        """Add a frame, unless the tables are finished."""
        if self.is_finished:
            return
        for sink in self._sinks:
            sink.write(result)
        if self._log.stat().st_size > WEB.log:
            self.close()

    def close(self) -> None:
        if not self.is_finished:
            self.is_finished = True
            with ExitStack() as stack:
                for sink in self._sinks:
                    stack.enter_context(closing(sink))
