"""Face detection with OpenCV's frontal Haar cascade."""

from pathlib import Path

import cv2
import numpy as np

from configuration import FACES, FaceConfig
from inference.faces import Face, as_rgb, check_options, reduced_copy

HAAR_NEIGHBORS = 5  # overlapping windows that must agree on a face
# The box of mtcnn, relative to the cascade's square, which has the same centre: median of 150 faces that both found in
# photographs and videos. The cascade's square itself frames a face as FER2013 does (0.99 of its side).
HAAR_WIDTH, HAAR_HEIGHT = 0.80, 1.04


class HaarDetector:
    """Detect upright frontal faces with OpenCV's cascade: fast, without landmarks.

    The confidence is n / (n + 5), where n is the number of agreeing windows. It orders faces and is not a probability.

    Args:
        options: Smallest face and size of the searched copy.

    Raises:
        InputError: An option is out of range.
    """

    def __init__(self, options: FaceConfig = FACES):
        check_options(options)
        self.options = options
        file = Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_default.xml"
        self._cascade = cv2.CascadeClassifier(str(file))
        if self._cascade.empty():
            raise RuntimeError(f"OpenCV's frontal cascade is not at {file}; reinstall opencv-python 4")

    def detect(self, image_rgb: np.ndarray) -> list[Face]:
        """Find the faces in an image; see `FaceDetector.detect`."""
        searched_rgb, scale = reduced_copy(as_rgb(image_rgb), self.options.largest_side)
        gray = cv2.cvtColor(searched_rgb, cv2.COLOR_RGB2GRAY)
        smallest = round(self.options.min_face_size * scale / HAAR_HEIGHT)
        boxes, counts = self._cascade.detectMultiScale2(
            gray, scaleFactor=1.1, minNeighbors=HAAR_NEIGHBORS, minSize=(smallest, smallest)
        )
        faces = [_framed(np.array(box) / scale, int(count)) for box, count in zip(boxes, counts, strict=True)]
        return sorted(faces, key=lambda face: (-face.confidence, face.left, face.top))


def _framed(square: np.ndarray, count: int) -> Face:
    """Return the face of a square of the cascade, its box framed as mtcnn frames it."""
    left, top, side = square[:3]
    width, height = HAAR_WIDTH * side, HAAR_HEIGHT * side
    left, top = left + (side - width) / 2, top + (side - height) / 2
    return Face(float(left), float(top), float(width), float(height), count / (count + HAAR_NEIGHBORS))
