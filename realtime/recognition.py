"""From frames to expressions: detect and track faces, crop them, classify them, smooth the predictions.

from realtime import analyze, watch

for result in watch("talk.mp4"):
    for face in result.recognitions:
        print(result.frame.time, face.track_id, face.shown, face.probabilities)
faces = analyze("photo.jpg")
"""

import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import cv2
import numpy as np

from common.errors import InputError
from configuration import FACES, PATHS, WEBCAM, FaceConfig
from inference.crops import network_input, read_image_rgb
from inference.face_detector import FaceDetector, build_detector
from inference.faces import Detector, Face
from inference.sequence_classifier import SequenceClassifier
from realtime.background import BackgroundDetector
from realtime.sequence_smoothing import SequenceSmoother
from realtime.smoothing import SmoothedPrediction, TemporalSmoother
from realtime.sources import Frame, Source, holds_pictures, open_source
from realtime.tracking import Tracker

if TYPE_CHECKING:
    from inference.emotion_classifier import EmotionClassifier

NOT_SURE = "unsure"  # the label shown where no emotion reaches the abstention threshold
BACKGROUND_THREADS = 1  # cores of a background detection; the others serve each frame
BATCH_FACES = 32  # faces after which `analyze_many` classifies the images that wait
BATCH_PIXELS = 20_000_000  # pixels of all waiting images after which it does so, too


class Classifier(Protocol):
    """A classifier of face crops, such as `inference.emotion_classifier.EmotionClassifier`."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, in class order."""
        ...

    @property
    def faces(self) -> FaceConfig:
        """Geometry of its input."""
        ...

    @property
    def abstention_threshold(self) -> float:
        """Minimum probability, 0-1, of a label."""
        ...

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return probabilities, float32 (n, classes), of crops, uint8 (n, size, size, channels)."""
        ...


@dataclass(frozen=True)
class Recognition:
    """One face and its expression.

    Attributes:
        face: Its place, in pixels of the frame.
        probabilities: Emotion -> probability, in class order; they sum to one. Smoothed over time for tracked faces.
        track_id: From 1, the same while the face is tracked; 0 for images, and while `tentative`.
        label: The most probable emotion, or for tracked faces the smoothed one.
        unsure: No emotion reaches the abstention threshold.
        tentative: Only one detection has found the face so far, possibly a false one. The next detection gives it a
            track ID or drops it.
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
        """Probability of the label, 0-1."""
        return self.probabilities[self.label]

    @property
    def shown(self) -> str:
        """The label in all outputs: an emotion, or `unsure`."""
        return NOT_SURE if self.unsure else self.label

    def to_dict(self) -> dict[str, Any]:
        """Return the face as a JSON object with the names and units of the log's columns."""
        sides = ("left", "top", "width", "height")
        return {
            "track_id": 0 if self.tentative else self.track_id or None,
            **{f"box_{side}": round(float(getattr(self.face, side)), 1) for side in sides},
            "label": self.shown,
            "probability": round(self.probability, 5),
            "unsure": self.unsure,
            "tentative": self.tentative,
            **{f"p_{label}": round(probability, 5) for label, probability in self.probabilities.items()},
        }


@dataclass(frozen=True)
class Result:
    """A frame and its faces."""

    frame: Frame
    recognitions: list[Recognition]

    def to_dict(self) -> dict[str, Any]:
        """Return the frame and its `faces` as a JSON object with the names and units of the log's columns."""
        faces = [each.to_dict() for each in self.recognitions]
        frame = self.frame
        return {"time": round(frame.time, 3), "frame": frame.index, "name": frame.name, "faces": faces}


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
    """Recognize the expression of each face in a camera, video, folder or stream, frame by frame.

    The source opens with the first result and closes with the generator. A source that was passed open stays open.
    Loops in several threads need a classifier and a detector each.

    Args:
        source: A camera number, a path or an address (see `open_source`), or an open source.
        model: A `.keras` file with its card, or a classifier.
        detector: `mtcnn` or `haar`, or a detector.
        min_face_size: Pixels; smaller faces are not detected. Ignored with a detector object.
        mirror: Flip frames horizontally; None: only those of cameras. Ignored with an open source.
        raw: Turn off smoothing and abstention.
        temporal: A sequence network (a `.keras` file of `training.step4_sequence_model`, or a loaded one) in place of
            the smoothing. It reads the features of `model`: the file it was trained with, or a classifier loaded with
            `features=True`.
        synchronous: Wait for every detection, also where it is slow. Results of a camera or stream may come later.

    Yields:
        A result for each frame. Track IDs of a video or camera are kept until the next cut; each video of a folder has
        its own times and track IDs. Images are not tracked. Files give the same results each time. For cameras and
        streams, detections slower than `TRACKING.background_after` run in the background.

    Raises:
        InputError: the source, model, detector or sequence network cannot be used, or they do not fit together.
    """
    if isinstance(temporal, str | Path):
        temporal = SequenceClassifier.load_litert(Path(temporal))
    is_name = isinstance(source, str | int | Path)
    with closing(open_source(str(source), mirror)) if is_name else nullcontext(source) as frames:
        classifier, faces = _load(model, detector, min_face_size, features=temporal is not None)
        background = None
        if frames.live and not synchronous and isinstance(faces, FaceDetector):
            background = FaceDetector(faces.options, BACKGROUND_THREADS)
        if temporal:
            check_temporal(temporal, classifier, raw, holds_pictures(frames))
        for video, group in groupby(frames, lambda frame: "" if frame.still else frame.name):
            yield from recognize(group, faces, classifier, raw, frames.still or not video, background, temporal)


def analyze(
    image: str | Path | np.ndarray,
    model: str | Path | Classifier = PATHS.pretrained,
    detector: str | Detector = WEBCAM.detector,
    *,
    min_face_size: int = FACES.min_face_size,
) -> list[Recognition]:
    """Recognize the expression of each face in an image.

    For many images use `analyze_many`, which loads the networks once.

    Args:
        image: An image file, or uint8 (h, w, 3) RGB or (h, w) gray.
        model: See `watch`.
        detector: See `watch`.
        min_face_size: See `watch`.

    Returns:
        The faces, the most confident one first, with `track_id` 0.

    Raises:
        InputError: the file, the model or the detector cannot be used.
        ValueError: the array has another shape or dtype.
    """
    classifier, faces = _load(model, detector, min_face_size)
    image_rgb = image if isinstance(image, np.ndarray) else read_image_rgb(Path(image))
    frame = Frame(image_rgb[..., ::-1], 0, 0.0, "", still=True)
    (result,) = _classify([_detect(frame, image_rgb, faces, classifier.faces)], classifier)
    return result.recognitions


def analyze_many(
    paths: str | Path | Iterable[str | Path],
    model: str | Path | Classifier = PATHS.pretrained,
    detector: str | Detector = WEBCAM.detector,
    *,
    min_face_size: int = FACES.min_face_size,
) -> Generator[Result, None, None]:
    """Recognize the expression of each face in many images.

    Faces are detected image by image and classified in batches, which end at `BATCH_FACES` or `BATCH_PIXELS`.

    Args:
        paths: Image files, or one.
        model: See `watch`.
        detector: See `watch`.
        min_face_size: See `watch`.

    Yields:
        A result for each image, in order, with the path as `frame.name` and its position as `frame.index`. A file that
        cannot be read is skipped with a Python warning.

    Raises:
        InputError: the model or the detector cannot be used.
    """
    classifier, faces = _load(model, detector, min_face_size)
    waiting: list[_Detected] = []
    for index, path in enumerate([paths] if isinstance(paths, str | Path) else paths):
        try:
            image_rgb = read_image_rgb(Path(path))
        except InputError as error:
            warnings.warn(f"{error}; it is skipped", stacklevel=2)
            continue
        frame = Frame(cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR), index, 0.0, str(path), still=True)
        waiting.append(_detect(frame, image_rgb, faces, classifier.faces))
        pixels = sum(each.frame.image_bgr.size // 3 for each in waiting)
        if pixels >= BATCH_PIXELS or sum(len(each.faces) for each in waiting) >= BATCH_FACES:
            yield from _classify(waiting, classifier)
            waiting = []
    yield from _classify(waiting, classifier)


def _load(
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
    background: Detector | None = None,
    temporal: SequenceClassifier | None = None,
) -> Generator[Result, None, None]:
    """Recognize the expression of each face in each frame; all faces of a frame are one batch.

    Args:
        frames: The frames, in order of time.
        detector: Detects the faces.
        classifier: Classifies the crops.
        raw: Turn off smoothing and abstention.
        still: The frames are images, which are independent of each other.
        background: A second detector for slow detections, which run on a thread. Their timing depends on the machine.
            None: all detections are synchronous.
        temporal: Predicts the expressions from the classifier's features over time.

    Raises:
        InputError: the sequence network does not fit the classifier or the source.
    """
    if still:
        for frame in frames:
            image_rgb = cv2.cvtColor(frame.image_bgr, cv2.COLOR_BGR2RGB)
            yield from _classify([_detect(frame, image_rgb, detector, classifier.faces)], classifier, raw)
        return
    predict, labels = _predictor(classifier, raw, temporal), (temporal or classifier).labels
    with closing(BackgroundDetector(background)) if background else nullcontext() as background_detector:
        tracker = Tracker(detector, background=background_detector)
        for frame in frames:
            image_rgb = cv2.cvtColor(frame.image_bgr, cv2.COLOR_BGR2RGB)
            tracked = tracker.update(image_rgb, frame.time)
            crops = _crops(image_rgb, [each.face for each in tracked], classifier.faces)
            predictions = predict([each.key for each in tracked], crops, frame.time)
            recognitions = [
                Recognition(
                    each.face,
                    _by_label(labels, prediction.probabilities),
                    each.track_id,
                    labels[prediction.index],
                    prediction.unsure,
                    tentative=not each.track_id,
                )
                for each, prediction in zip(tracked, predictions, strict=True)
            ]
            yield Result(frame, recognitions)


_Predict = Callable[[Sequence[int], np.ndarray, float], list[SmoothedPrediction]]


def _predictor(classifier: Classifier, raw: bool, temporal: SequenceClassifier | None) -> _Predict:
    """Return what predicts the crops of a frame, given their tracks and the time."""
    if temporal:
        sequences, features = (
            SequenceSmoother(temporal, classifier.labels),
            cast("EmotionClassifier", classifier).features,
        )
        return lambda keys, crops, now: sequences.update(keys, features(crops), now) if keys else []
    if raw:
        return lambda _, crops, __: [SmoothedPrediction(p, int(p.argmax()), False) for p in classifier.predict(crops)]
    smoother = TemporalSmoother(classifier.abstention_threshold)
    return lambda keys, crops, now: smoother.update(keys, classifier.predict(crops), now)


def check_temporal(temporal: SequenceClassifier, classifier: Classifier, raw: bool, still: bool) -> None:
    """Check that a sequence network fits the classifier and the source.

    Raises:
        InputError: it does not, with the remedy.
    """
    if still:
        raise InputError("--temporal needs a video or a camera: images are not tracked")
    if raw:
        raise InputError("--temporal and --raw exclude each other; give one of the two")
    temporal.check_features(getattr(classifier, "features_of", ""))


@dataclass(frozen=True)
class _Detected:
    """An image, its faces and their crops."""

    frame: Frame
    faces: list[Face]
    crops: np.ndarray


def _detect(frame: Frame, image_rgb: np.ndarray, detector: Detector, options: FaceConfig) -> _Detected:
    faces = detector.detect(image_rgb)
    return _Detected(frame, faces, _crops(image_rgb, faces, options))


def _classify(detected: Sequence[_Detected], classifier: Classifier, raw: bool = False) -> Iterator[Result]:
    """Classify the faces of some images as one batch."""
    rows = iter(classifier.predict(np.concatenate([each.crops for each in detected])) if detected else ())
    threshold = 0.0 if raw else classifier.abstention_threshold
    for each in detected:
        recognitions = [
            Recognition(face, _by_label(classifier.labels, row), unsure=float(row.max()) < threshold)
            for face, row in zip(each.faces, rows, strict=False)  # the next image continues with the next row
        ]
        yield Result(each.frame, recognitions)


def _by_label(labels: Sequence[str], row: np.ndarray) -> dict[str, float]:
    return dict(zip(labels, map(float, row), strict=True))


def _crops(image_rgb: np.ndarray, faces: list[Face], options: FaceConfig) -> np.ndarray:
    crops = np.empty((len(faces), options.size, options.size, options.channels), np.uint8)
    for crop, face in zip(crops, faces, strict=True):
        crop[:] = network_input(image_rgb, face, options)
    return crops
