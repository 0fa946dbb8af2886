"""Boxes and expressions on a picture, readable on dark and on bright ones."""

import cv2
import numpy as np

from realtime.recognition import Recognition, Result

# Okabe and Ito's colours, which colour-blind people tell apart; RGB.
COLORS = {
    "anger": (213, 94, 0),
    "disgust": (0, 158, 115),
    "fear": (204, 121, 167),
    "happiness": (240, 228, 66),
    "sadness": (0, 114, 178),
    "surprise": (86, 180, 233),
    "neutral": (225, 225, 225),
    "contempt": (230, 159, 0),
}
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_FONT = cv2.FONT_HERSHEY_DUPLEX
_FONT_HEIGHT = 22  # pixels: a capital letter's height at scale 1


def draw(result: Result) -> np.ndarray:
    """Return a copy of the frame with a box, the expression and its probability on every face.

    Lines and letters grow with the picture, letters also with the face. What is drawn last, on top, is the largest.

    Returns:
        uint8 BGR, of the frame's size.
    """
    drawn_bgr = result.frame.image_bgr.copy()
    recognitions = sorted(result.recognitions, key=lambda recognition: recognition.face.height)
    for recognition in recognitions:
        _draw_box(drawn_bgr, recognition)
    for recognition in recognitions:  # after all boxes, so that no line crosses a word
        _draw_tag(drawn_bgr, recognition)
    return drawn_bgr


def _line_width(image_bgr: np.ndarray) -> int:
    return max(1, round(min(image_bgr.shape[:2]) / 300))


def _draw_box(image_bgr: np.ndarray, recognition: Recognition) -> None:
    left, top, right, bottom = _corners(image_bgr, recognition)
    width = _line_width(image_bgr)
    for color, thickness in ((_BLACK, width + 2), (_color_bgr(recognition), width)):  # outlined: seen on its color
        cv2.rectangle(image_bgr, (left, top), (right, bottom), color, thickness)


def _draw_tag(image_bgr: np.ndarray, recognition: Recognition) -> None:
    """Write the expression on a filled tag above the box, or inside it where there is no room above."""
    height, width = image_bgr.shape[:2]
    text = f"{recognition.label} {recognition.probability:.0%}"
    side = min(height, width)
    scale = max(0.4, min(max(recognition.face.height / 150, side / 1300), side / 800))
    text_width = cv2.getTextSize(text, _FONT, scale, 1)[0][0]
    scale *= min(1.0, 0.9 * width / text_width)  # the tag of a tiny picture is as wide as the picture
    stroke = max(1, round(1.4 * scale))
    text_width = cv2.getTextSize(text, _FONT, scale, stroke)[0][0]
    letter = _FONT_HEIGHT * scale
    margin = round(0.5 * letter)

    left, top, _, _ = _corners(image_bgr, recognition)
    tag_width, tag_height = text_width + 2 * margin, round(letter) + 2 * margin
    left = max(0, min(left - _line_width(image_bgr), width - 1 - tag_width))
    top = max(0, min(top - tag_height if top >= tag_height else top, height - 1 - tag_height))

    color = _color_bgr(recognition)
    ink = _BLACK if np.dot(color, (0.114, 0.587, 0.299)) > 100 else _WHITE  # the colour's brightness, 0-255
    cv2.rectangle(image_bgr, (left, top), (left + tag_width, top + tag_height), color, cv2.FILLED)
    cv2.rectangle(image_bgr, (left, top), (left + tag_width, top + tag_height), _BLACK, 1)
    baseline = top + tag_height - margin
    cv2.putText(image_bgr, text, (left + margin, baseline), _FONT, scale, ink, stroke, cv2.LINE_AA)


def _corners(image_bgr: np.ndarray, recognition: Recognition) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a face's box, kept within the picture."""
    height, width = image_bgr.shape[:2]
    face = recognition.face
    left, right = np.clip([face.left, face.left + face.width], 0, width - 1)
    top, bottom = np.clip([face.top, face.top + face.height], 0, height - 1)
    return round(left), round(top), round(right), round(bottom)


def _color_bgr(recognition: Recognition) -> tuple[int, int, int]:
    red, green, blue = COLORS.get(recognition.label, _WHITE)
    return blue, green, red
