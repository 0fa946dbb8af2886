from dataclasses import replace

import cv2
import numpy as np
import pytest
from realtime_fakes import recognition, result

from common.emotions import COLORS, EMOTIONS
from inference.faces import Face
from realtime.sinks.drawing import Drawer, View, draw_notes

SHAPE = (240, 320, 3)
FACE_IN_THE_MIDDLE = Face(120.0, 100.0, 60.0, 80.0, 0.9)


def draw(result):
    return Drawer(still=True).draw(result)


def drawn_pixels(shape, *recognitions):
    """Return the mask of what is drawn, equal on black and on white, and the drawing."""
    on_black, on_white = (draw(result(np.full(shape, value, np.uint8), *recognitions)) for value in (0, 255))
    return (on_black == on_white).all(axis=2), on_black


def luminance(color_bgr):
    """Relative luminance of WCAG 2."""
    channels = np.asarray(color_bgr)[::-1] / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def test_box_leaves_the_face_visible():
    mask, _ = drawn_pixels(SHAPE, recognition(FACE_IN_THE_MIDDLE))
    assert mask[100:180, 120].all() and mask[100:180, 180].all()
    assert mask[180, 120:180].all()
    assert not mask[105:175, 125:175].any()


def test_unsure_face_has_corners_and_no_emotion():
    mask, unsure_bgr = drawn_pixels(SHAPE, recognition(FACE_IN_THE_MIDDLE, "anger", unsure=True))
    assert mask[100, 120] and mask[180, 180] and not mask[130:150, 120].any()
    happy_bgr = drawn_pixels(SHAPE, recognition(FACE_IN_THE_MIDDLE, "happiness", unsure=True))[1]
    above = slice(70, 98)
    np.testing.assert_array_equal(unsure_bgr[above], happy_bgr[above])  # the same label
    assert not (unsure_bgr[above] == COLORS["anger"][::-1]).all(axis=2).any()


def test_tentative_face_has_only_a_thin_box():
    image_bgr = np.full((480, 640, 3), 90, np.uint8)
    face = Face(200.0, 150.0, 120.0, 160.0, 0.9)
    tentative = replace(recognition(face), tentative=True)
    drawn_bgr = Drawer().draw(result(image_bgr, tentative))
    is_drawn = (drawn_bgr != image_bgr).any(axis=2)[:440]  # the status line is below
    assert is_drawn[150:311, 200].all() and is_drawn[150, 200:321].all()
    assert is_drawn.sum() == 2 * (160 + 120)
    confirmed_bgr = Drawer().draw(result(image_bgr, replace(recognition(face), track_id=1)))
    assert (confirmed_bgr != image_bgr).any(axis=2)[:440].sum() > 5000


@pytest.mark.parametrize("emotion", EMOTIONS)
def test_label_contrasts_with_its_background(emotion):
    mask, drawn_bgr = drawn_pixels(SHAPE, recognition(FACE_IN_THE_MIDDLE, emotion, 0.87))
    rows, columns = np.nonzero(mask[:98])
    tag_bgr = drawn_bgr[rows.min() + 1 : rows.max(), columns.min() + 1 : columns.max()]
    assert mask[rows.min() + 1 : rows.max(), columns.min() + 1 : columns.max()].all(), "the tag covers its rectangle"
    colors, counts = np.unique(tag_bgr.reshape(-1, 3), axis=0, return_counts=True)
    paper = luminance(colors[counts.argmax()])
    ink = max((luminance(color) for color in colors), key=lambda value: abs(value - paper))
    assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5


def test_label_at_the_border_stays_inside_the_frame():
    mask, drawn_bgr = drawn_pixels(SHAPE, recognition(FACE_IN_THE_MIDDLE))
    rows, columns = np.nonzero(mask[:98])
    tag_bgr = drawn_bgr[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    for box in ((-20.0, -30.0, 60.0, 80.0), (290.0, 200.0, 60.0, 80.0), (-5.0, -5.0, 400.0, 300.0)):
        border_bgr = drawn_pixels(SHAPE, recognition(Face(*box, confidence=0.9)))[1]
        assert cv2.matchTemplate(border_bgr, tag_bgr, cv2.TM_SQDIFF).min() < 1


def bars(recognition, shape=(480, 640, 3), drawer=None, time=0.0):
    """Draw one large face on white, and return its picture and the lengths of its bars in pixels, by emotion."""
    drawer = drawer or Drawer(still=True)
    drawn_bgr = drawer.draw(result(np.full(shape, 255, np.uint8), recognition, time=time))
    beside_bgr = drawn_bgr[:, round(recognition.face.left + recognition.face.width) + 5 :]
    return drawn_bgr, {
        emotion: int((beside_bgr == COLORS[emotion][::-1]).all(axis=2).sum(axis=1).max())
        for emotion in recognition.probabilities
    }


LARGE = Face(150.0, 120.0, 150.0, 200.0, 0.9)


def test_bar_lengths_are_proportional_to_probabilities():
    _, lengths = bars(recognition(LARGE, "happiness", 0.6))
    assert lengths["happiness"] / lengths["anger"] == pytest.approx(3, rel=0.15)
    assert lengths["anger"] == lengths["neutral"]
    assert bars(recognition(LARGE, "anger", 0.9))[1]["anger"] / lengths["happiness"] == pytest.approx(1.5, rel=0.1)


def test_bars_do_not_cover_faces_and_can_be_turned_off():
    neighbours = [Face(150.0 + 160 * i, 120.0, 150.0, 200.0, 0.9) for i in range(3)]
    frame = result(np.full((480, 640, 3), 255, np.uint8), *map(recognition, neighbours))
    drawn_bgr = draw(frame)
    for face in neighbours:
        left, top = round(face.left), round(face.top)
        assert (drawn_bgr[top + 5 : top + 195, left + 5 : left + 145] == 255).all()
    without_bgr = Drawer(still=True).draw(frame, View(bars=False))
    outside = (drawn_bgr != without_bgr).any(axis=2)
    assert outside[100:200, :148].sum() > 2000, "the first face has room beside it"
    assert not outside[:, 148:].any(), "the others have none"


def in_color(drawn_bgr, label):
    return (drawn_bgr == COLORS[label][::-1]).all(axis=2)


def test_history_shows_the_last_ten_seconds_of_a_track():
    drawer = Drawer()
    for index in range(100):  # twenty seconds: ten of anger, five of happiness, five of neutral
        label = "anger" if index < 50 else "happiness" if index < 75 else "neutral"
        drawn_bgr, _ = bars(recognition(LARGE, label, 0.8, track_id=3), drawer=drawer, time=index / 5)
    columns = {
        label: in_color(drawn_bgr[172:202, 305:], label).any(axis=0) for label in ("anger", "happiness", "neutral")
    }
    below = {label: in_color(drawn_bgr[172:202, 305:], label).sum() for label in columns}
    assert below["happiness"] == pytest.approx(below["neutral"], rel=0.15), "half of the time each"
    assert below["happiness"] > 500 and below["anger"] < 50, "older values are dropped"
    assert np.flatnonzero(columns["happiness"]).max() < np.flatnonzero(columns["neutral"]).max(), "now is at the right"
    other_bgr, _ = bars(recognition(LARGE, "neutral", 0.8, track_id=4), drawer=drawer, time=20.0)
    assert in_color(other_bgr[172:202, 305:], "happiness").sum() < 50, "another track has its own history"


def test_status_line_is_drawn_on_videos_only():
    frame = result(np.full((480, 640, 3), 255, np.uint8))
    drawer = Drawer()
    drawer.draw(frame)
    dark = drawer.draw(frame).max(axis=2) < 80
    assert dark[-20:, :60].mean() > 0.6 and not dark[:440].any()
    assert (draw(frame) == 255).all()


def test_notes_and_help_are_not_recorded():
    drawn_bgr = np.full((480, 640, 3), 200, np.uint8)
    assert draw_notes(drawn_bgr, View()) is drawn_bgr
    for view in (View(help=True), View(note="wrote it"), View(paused=True), View(recording=True)):
        assert (draw_notes(drawn_bgr, view) != 200).any()
        assert (drawn_bgr == 200).all()


@pytest.mark.parametrize("shape", [(48, 48, 3), (1, 1, 3), (8, 2000, 3), (2000, 8, 3)])
def test_frames_of_any_size_can_be_drawn_on(shape):
    view = View(followed=1, help=True, note="a long note " * 20, paused=True)
    drawn_bgr = Drawer().draw(result(np.zeros(shape, np.uint8), recognition(track_id=1), recognition(track_id=2)), view)
    assert draw_notes(drawn_bgr, view).shape == shape
