"""Face detection with OpenCV's frontal Haar cascade."""

from pathlib import Path

import cv2
import numpy as np

from configuration import FACES, FaceConfig
from inference.faces import Face, as_rgb, check_options, reduced_copy

HAAR_VOTES = 5  # windows that must agree for a face
# mtcnn's box, as shares of the side of the cascade's square, which has the same centre: median of 150 faces that both
# found in photographs and videos. The cascade's square itself frames a face as FER2013 does (0.99 of its side).
HAAR_WIDTH, HAAR_HEIGHT = 0.80, 1.04


class HaarDetector:
    """OpenCV's frontal cascade: fast, needs upright frontal faces, gives no landmarks.

    Its `confidence` is the share n / (n + 5) of n agreeing search windows: an order, not a probability.

    Args:
        options: Smallest face and size of the searched copy.

    Raises:
        InputError: options that cannot be used.
    """

    def __init__(self, options: FaceConfig = FACES):
        check_options(options)
        self.options = options
        file = Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_default.xml"
        self._cascade = cv2.CascadeClassifier(str(file))
        if self._cascade.empty():
            raise RuntimeError(f"OpenCV's frontal cascade is not at {file}; reinstall opencv-python 4")

    def detect(self, image_rgb: np.ndarray) -> list[Face]:
        """Find the faces of a picture; see `FaceDetector.detect`."""
        picture_rgb, scale = reduced_copy(as_rgb(image_rgb), self.options.largest_side)
        gray = cv2.cvtColor(picture_rgb, cv2.COLOR_RGB2GRAY)
        smallest = round(self.options.min_face_size * scale / HAAR_HEIGHT)
        boxes, votes = self._cascade.detectMultiScale2(
            gray, scaleFactor=1.1, minNeighbors=HAAR_VOTES, minSize=(smallest, smallest)
        )
        faces = [_haar_face(np.array(box) / scale, int(vote)) for box, vote in zip(boxes, votes, strict=True)]
        return sorted(faces, key=lambda face: (-face.confidence, face.left, face.top))


def _haar_face(box: np.ndarray, votes: int) -> Face:
    """Return the face of a cascade's square, its box framed as mtcnn would frame it."""
    left, top, side = box[:3]
    width, height = HAAR_WIDTH * side, HAAR_HEIGHT * side
    left, top = left + (side - width) / 2, top + (side - height) / 2
    return Face(float(left), float(top), float(width), float(height), votes / (votes + HAAR_VOTES))
