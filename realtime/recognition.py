"""From frames to named expressions: find the faces, cut them out, ask the classifier."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from configuration import Faces
from preprocessing.faces import Detector, Face, network_input
from realtime.sources import Frame


class Classifier(Protocol):
    """What names expressions; `training.emotion_classifier.EmotionClassifier` is one."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of its classes, in class order."""
        ...

    @property
    def faces(self) -> Faces:
        """How its input is to be cropped."""
        ...

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return probabilities, float32 (n, classes), for crops, uint8 (n, size, size, channels)."""
        ...


@dataclass(frozen=True)
class Recognition:
    """One face and its expression.

    Attributes:
        face: Where it is, in pixels of the frame.
        probabilities: By emotion, in class order; they sum to one.
    """

    face: Face
    probabilities: dict[str, float]

    @property
    def label(self) -> str:
        """The most probable emotion."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    @property
    def probability(self) -> float:
        """Its probability, 0-1."""
        return self.probabilities[self.label]


@dataclass(frozen=True)
class Result:
    """A frame and what was recognized in it."""

    frame: Frame
    recognitions: list[Recognition]


def recognize(frames: Iterable[Frame], detector: Detector, classifier: Classifier) -> Iterator[Result]:
    """Name the expression of every face in every frame; all faces of a frame are classified in one batch."""
    for frame in frames:
        image_rgb = cv2.cvtColor(frame.image_bgr, cv2.COLOR_BGR2RGB)
        faces = detector.detect(image_rgb)
        probabilities = classifier.predict(_crops(image_rgb, faces, classifier.faces))
        yield Result(
            frame,
            [
                Recognition(face, dict(zip(classifier.labels, map(float, row), strict=True)))
                for face, row in zip(faces, probabilities, strict=True)
            ],
        )


def _crops(image_rgb: np.ndarray, faces: list[Face], options: Faces) -> np.ndarray:
    crops = np.empty((len(faces), options.size, options.size, options.channels), np.uint8)
    for crop, face in zip(crops, faces, strict=True):
        crop[:] = network_input(image_rgb, face, options)
    return crops
