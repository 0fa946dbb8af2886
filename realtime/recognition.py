"""From frames to named expressions: find the faces, cut them out, ask the classifier, steady what it says.

For programs that build on it, from the repository's root or with it on `PYTHONPATH`:

    from realtime.recognition import analyze, watch

    for result in watch("talk.mp4"):
        for face in result.recognitions:
            print(result.frame.time, face.track_id, "unsure" if face.unsure else face.label, face.probabilities)
    faces = analyze("photo.jpg")
"""

import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from itertools import chain, groupby
from pathlib import Path
from typing import Protocol, runtime_checkable

import cv2
import numpy as np

from common.errors import InputError
from configuration import FACES, PATHS, WEBCAM, FaceConfig
from inference.crops import network_input, read_image_rgb
from inference.face_detector import FaceDetector, build_detector
from inference.faces import Detector, Face
from inference.sequence_classifier import SequenceClassifier
from realtime.background import Searcher
from realtime.sequence_smoothing import TemporalReader
from realtime.smoothing import SmoothedPrediction, TemporalSmoother
from realtime.sources import Frame, Source, holds_pictures, open_source
from realtime.tracking import TrackedFace, Tracker

NOT_SURE = "unsure"  # the label shown where no emotion reaches the abstention threshold
SEARCH_THREADS = 1  # cores that a search beside the following takes; the others are for what each frame waits for


class Classifier(Protocol):
    """What names expressions; `inference.emotion_classifier.EmotionClassifier` is one."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of its classes, in class order."""
        ...

    @property
    def faces(self) -> FaceConfig:
        """How its input is to be cropped."""
        ...

    @property
    def abstention_threshold(self) -> float:
        """Least probability, 0-1, at which a class is worth showing."""
        ...

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return probabilities, float32 (n, classes), for crops, uint8 (n, size, size, channels)."""
        ...


@runtime_checkable
class Describing(Classifier, Protocol):
    """A classifier that also says what it sees, which a sequence network reads."""

    @property
    def features_of(self) -> str:
        """SHA-256 of its network's file; empty where it does not give its features."""
        ...

    def features(self, images: np.ndarray) -> np.ndarray:
        """Return features and probabilities, float32 (n, size), for crops, uint8 (n, side, side, channels)."""
        ...


@dataclass(frozen=True)
class Recognition:
    """One face and its expression.

    Attributes:
        face: Where it is, in pixels of the frame.
        probabilities: By emotion, in class order; they sum to one. Of a tracked face, the average over the last
            moments, unless the labels are raw.
        track_id: Which face it is, from 1, kept while it stays; 0 where faces are not tracked, and while `tentative`.
        label: The emotion shown; left out, the most probable one.
        unsure: The label's probability is below the abstention threshold, and so is every other emotion's.
        tentative: Only one search has found the face, so it may be a false detection. The next search gives it a
            number or drops it.
    """

    face: Face
    probabilities: dict[str, float]
    track_id: int = 0
    label: str = ""
    unsure: bool = False
    tentative: bool = False

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", max(self.probabilities, key=self.probabilities.__getitem__))

    @property
    def probability(self) -> float:
        """The label's probability, 0-1."""
        return self.probabilities[self.label]

    @property
    def shown(self) -> str:
        """The label that the window, log, spans and summary show: an emotion, or `unsure`."""
        return NOT_SURE if self.unsure else self.label


@dataclass(frozen=True)
class Timing:
    """What the work on a frame took, in seconds."""

    detection: float = 0.0
    network: float = 0.0


@dataclass(frozen=True)
class Result:
    """A frame and what was recognized in it."""

    frame: Frame
    recognitions: list[Recognition]
    timing: Timing = Timing()


def watch(
    source: str | int | Path | Source,
    model: str | Path | Classifier = PATHS.pretrained,
    detector: str | Detector = WEBCAM.detector,
    *,
    min_face_size: int = FACES.min_face_size,
    mirror: bool | None = None,
    raw: bool = False,
    temporal: str | Path | SequenceClassifier | None = None,
    synchronous: bool = False,
) -> Generator[Result, None, None]:
    """Name the expression of every face in a camera's, video's, folder's or stream's frames, one frame after another.

    Nothing is opened before the first result is asked for. The source is closed with the generator: after its last
    frame, when a loop over it is left and the generator is dropped, or by its `close()`. One that was handed over open
    stays open. Several may be watched in turns; loops in threads of their own need a classifier and a detector each.

    Args:
        source: A camera number, a path or an address as `open_source` takes it, or an open source.
        model: A `.keras` file with its card beside it, or a classifier.
        detector: `mtcnn` or `haar`, or a detector.
        min_face_size: Pixels; smaller faces are not looked for. Not used with a detector that was handed over.
        mirror: As `open_source` takes it. Not used with a source that was handed over.
        raw: Give what the network says of each frame, not steadied over time and never unsure.
        temporal: A sequence network, a `.keras` file of `training.step4_sequence_model` or one that was loaded, which
            names what each followed face did, in place of the steadying. It reads the features of `model`, which must
            be the one that it was trained with; hand that over loaded with `features=True`, or as a file.
        synchronous: Wait for every detection, also where it is slow. Results of a camera or stream may come later.

    Yields:
        A result for each frame. Faces of a video or camera keep their numbers until the next cut. Pictures are taken
        each by itself. Each video of a folder has times and face numbers of its own. The same file gives the same
        results each time. For a camera or stream, mtcnn searches a picture that takes it long (`TRACKING.wait_for`) on
        a thread of its own, which ends with the generator.

    Raises:
        InputError: the source, the model, the detector or the sequence network cannot be used, or do not fit.
    """
    if isinstance(source, str | int | Path):
        with closing(open_source(str(source), mirror)) as frames:
            yield from watch(
                frames,
                model,
                detector,
                min_face_size=min_face_size,
                raw=raw,
                temporal=temporal,
                synchronous=synchronous,
            )
        return
    if isinstance(temporal, str | Path):
        temporal = SequenceClassifier.load_litert(Path(temporal))
    classifier, faces = _prepare(model, detector, min_face_size, features=temporal is not None)
    beside = None
    if source.live and not synchronous and isinstance(faces, FaceDetector):
        beside = FaceDetector(faces.options, SEARCH_THREADS)
    if temporal:
        check_temporal(temporal, classifier, raw, holds_pictures(source))
    # Each video of a folder has tracks of its own.
    for _, frames in groupby(source, lambda frame: "" if frame.still else frame.name):
        first = next(frames)
        still = source.still or first.still
        frames = chain([first], frames)
        yield from recognize(frames, faces, classifier, raw=raw, still=still, beside=beside, temporal=temporal)


def analyze(
    image: str | Path | np.ndarray,
    model: str | Path | Classifier = PATHS.pretrained,
    detector: str | Detector = WEBCAM.detector,
    *,
    min_face_size: int = FACES.min_face_size,
) -> list[Recognition]:
    """Name the expression of every face in one picture.

    For many pictures, hand over a classifier (`EmotionClassifier.load_litert`) and a detector (`build_detector`), so
    that they are made once.

    Args:
        image: A picture file, or uint8 (h, w, 3) RGB or (h, w) gray.
        model: As for `watch`.
        detector: As for `watch`.
        min_face_size: As for `watch`.

    Returns:
        The faces, the most confident one first, with `track_id` 0; empty where there is none.

    Raises:
        InputError: the file, the model or the detector cannot be used.
        ValueError: the array is no such picture.
    """
    classifier, faces = _prepare(model, detector, min_face_size)
    image_rgb = image if isinstance(image, np.ndarray) else read_image_rgb(Path(image))
    return _recognize_picture(image_rgb, faces, classifier)[0]


def _prepare(
    model: str | Path | Classifier, detector: str | Detector, min_face_size: int, features: bool = False
) -> tuple[Classifier, Detector]:
    if isinstance(model, str | Path):
        from inference.emotion_classifier import EmotionClassifier

        load = EmotionClassifier.load_litert
        model = load(Path(model), features=True) if features else load(Path(model))
    if isinstance(detector, str):
        detector = build_detector(detector, replace(model.faces, min_face_size=min_face_size))
    return model, detector


def recognize(
    frames: Iterable[Frame],
    detector: Detector,
    classifier: Classifier,
    raw: bool = False,
    still: bool = False,
    beside: Detector | None = None,
    temporal: SequenceClassifier | None = None,
) -> Generator[Result, None, None]:
    """Name the expression of every face in every frame; all faces of a frame are classified in one batch.

    Args:
        frames: The frames, in the order of their times.
        detector: What finds the faces.
        classifier: What names the expressions.
        raw: Give what the classifier says of each frame, not steadied over time and never unsure.
        still: The frames are pictures that have nothing to do with each other.
        beside: A second detector, which searches whole pictures on a thread of its own while `detector` follows, where
            a search takes longer than `TRACKING.wait_for`: which frame shows what it found depends on the machine.
            None: every search is waited for.
        temporal: What names the expressions instead, from the classifier's features and what each face did before.

    Raises:
        InputError: the sequence network was not trained on the classifier's features, or there is nothing that it
            could follow.
    """
    smoother, reader, labels = TemporalSmoother(classifier.abstention_threshold), None, classifier.labels
    if temporal:
        check_temporal(temporal, classifier, raw, still)
        reader, labels = TemporalReader(temporal, classifier.labels), temporal.labels
    with closing(Searcher(beside)) if beside else nullcontext() as searcher:
        tracker = Tracker(detector, searcher=searcher)
        for frame in frames:
            image_rgb = cv2.cvtColor(frame.image_bgr, cv2.COLOR_BGR2RGB)
            if still:
                yield Result(frame, *_recognize_picture(image_rgb, detector, classifier, raw))
                continue
            start = time.perf_counter()
            tracked = tracker.update(image_rgb, frame.time)
            found = time.perf_counter()
            crops = _crops(image_rgb, [each.face for each in tracked], classifier.faces)
            keys = [each.key for each in tracked]  # from a face's first frame on, before it has a number
            if reader and isinstance(classifier, Describing):
                verdicts = reader.update(keys, classifier.features(crops), frame.time) if tracked else []
            elif raw:
                verdicts = [SmoothedPrediction(row, int(row.argmax()), False) for row in classifier.predict(crops)]
            else:
                verdicts = smoother.update(keys, classifier.predict(crops), frame.time)
            timing = Timing(found - start, time.perf_counter() - found)
            yield Result(frame, _named(tracked, verdicts, labels), timing)


def check_temporal(temporal: SequenceClassifier, classifier: Classifier, raw: bool, still: bool) -> None:
    """Refuse what a sequence network cannot work with.

    Raises:
        InputError: with the remedy.
    """
    if still:
        raise InputError("--temporal needs a video or a camera: a picture shows nothing over time")
    if raw:
        raise InputError("--raw shows single frames, --temporal what a face did over time; give one of the two")
    temporal.check_features(classifier.features_of if isinstance(classifier, Describing) else "")


def _recognize_picture(
    image_rgb: np.ndarray, detector: Detector, classifier: Classifier, raw: bool = False
) -> tuple[list[Recognition], Timing]:
    start = time.perf_counter()
    faces = detector.detect(image_rgb)
    found = time.perf_counter()
    probabilities = classifier.predict(_crops(image_rgb, faces, classifier.faces))
    timing = Timing(found - start, time.perf_counter() - found)
    recognitions = [
        Recognition(
            face,
            _by_label(classifier.labels, row),
            unsure=not raw and float(row.max()) < classifier.abstention_threshold,
        )
        for face, row in zip(faces, probabilities, strict=True)
    ]
    return recognitions, timing


def _named(
    tracked: list[TrackedFace],
    verdicts: Sequence[SmoothedPrediction],
    labels: Sequence[str],
) -> list[Recognition]:
    return [
        Recognition(
            each.face,
            _by_label(labels, verdict.probabilities),
            each.track_id,
            labels[verdict.index],
            verdict.unsure,
            tentative=not each.track_id,
        )
        for each, verdict in zip(tracked, verdicts, strict=True)
    ]


def _by_label(labels: Sequence[str], row: np.ndarray) -> dict[str, float]:
    return dict(zip(labels, map(float, row), strict=True))


def _crops(image_rgb: np.ndarray, faces: list[Face], options: FaceConfig) -> np.ndarray:
    crops = np.empty((len(faces), options.size, options.size, options.channels), np.uint8)
    for crop, face in zip(crops, faces, strict=True):
        crop[:] = network_input(image_rgb, face, options)
    return crops
