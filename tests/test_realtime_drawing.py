from dataclasses import replace

import cv2
import numpy as np
import pytest
from realtime_fakes import FACE, recognition, result

from preprocessing.emotions import EMOTIONS
from preprocessing.faces import Face
from realtime.drawing import draw

SHAPE = (240, 320, 3)
FACE_IN_THE_MIDDLE = Face(120.0, 100.0, 60.0, 80.0, 0.9)


def drawn_pixels(shape, *recognitions):
    """Return the mask of what is drawn, equal on black and on white, and the drawing."""
    on_black, on_white = (draw(result(np.full(shape, value, np.uint8), *recognitions)) for value in (0, 255))
    return (on_black == on_white).all(axis=2), on_black


def luminance(color_bgr):
    """Relative luminance of WCAG 2."""
    channels = np.asarray(color_bgr)[::-1] / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def test_the_frame_itself_stays_as_it_was():
    image_bgr = np.full(SHAPE, 90, np.uint8)
    drawn_bgr = draw(result(image_bgr, recognition(FACE_IN_THE_MIDDLE)))
    assert (image_bgr == 90).all()
    assert drawn_bgr.shape == SHAPE
    assert (drawn_bgr != 90).any()


def test_without_a_face_nothing_is_drawn():
    image_bgr = np.full(SHAPE, 90, np.uint8)
    np.testing.assert_array_equal(draw(result(image_bgr)), image_bgr)


def test_the_box_runs_around_the_face_and_leaves_its_inside_free():
    mask, _ = drawn_pixels(SHAPE, recognition(FACE_IN_THE_MIDDLE))
    assert mask[100:180, 120].all() and mask[100:180, 180].all()
    assert mask[180, 120:180].all()
    assert not mask[105:175, 125:175].any()


@pytest.mark.parametrize("emotion", EMOTIONS)
def test_the_words_stand_out_from_their_tag_whatever_the_picture(emotion):
    mask, drawn_bgr = drawn_pixels(SHAPE, recognition(FACE_IN_THE_MIDDLE, emotion, 0.87))
    rows, columns = np.nonzero(mask[:98])
    tag_bgr = drawn_bgr[rows.min() + 1 : rows.max(), columns.min() + 1 : columns.max()]
    assert mask[rows.min() + 1 : rows.max(), columns.min() + 1 : columns.max()].all(), "the tag covers its rectangle"
    colors, counts = np.unique(tag_bgr.reshape(-1, 3), axis=0, return_counts=True)
    paper = luminance(colors[counts.argmax()])
    ink = max((luminance(color) for color in colors), key=lambda value: abs(value - paper))
    assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5


@pytest.mark.parametrize(
    "face",
    [
        Face(-20.0, -30.0, 60.0, 80.0, 0.9),
        Face(290.0, 200.0, 60.0, 80.0, 0.9),
        Face(300.0, -5.0, 30.0, 30.0, 0.9),
        Face(-5.0, -5.0, 400.0, 300.0, 0.9),
    ],
)
def test_the_words_of_a_face_at_the_border_are_all_within_the_picture(face):
    mask, drawn_bgr = drawn_pixels(SHAPE, recognition(FACE_IN_THE_MIDDLE))
    rows, columns = np.nonzero(mask[:98])
    tag_bgr = drawn_bgr[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    border_bgr = drawn_pixels(SHAPE, recognition(face))[1]
    assert cv2.matchTemplate(border_bgr, tag_bgr, cv2.TM_SQDIFF).min() < 1


def test_lines_and_letters_grow_with_the_picture():
    small, _ = drawn_pixels((480, 640, 3), recognition(Face(200.0, 200.0, 80.0, 80.0, 0.9)))
    large, _ = drawn_pixels((1440, 1920, 3), recognition(Face(600.0, 600.0, 240.0, 240.0, 0.9)))
    tag_heights = [np.flatnonzero(mask.any(axis=1))[0] for mask in (small, large)]
    assert 600 - tag_heights[1] == pytest.approx(3 * (200 - tag_heights[0]), rel=0.25)


@pytest.mark.parametrize("shape", [(48, 48, 3), (1, 1, 3), (8, 2000, 3)])
def test_pictures_of_any_size_can_be_drawn_on(shape):
    assert draw(result(np.zeros(shape, np.uint8), recognition(replace(FACE, left=0.0, top=0.0)))).shape == shape
