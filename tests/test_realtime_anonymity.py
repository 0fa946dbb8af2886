from dataclasses import replace

import cv2
import numpy as np
from realtime_fakes import recognition, result

from inference.face_detector import build_detector
from inference.faces import Face
from realtime.anonymity import HIDDEN_MARGIN, Anonymizer
from realtime.doctor import portrait_frame

PLACE = Face(60.0, 50.0, 40.0, 50.0, 0.9)


def noise(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (160, 240, 3), np.uint8)


def is_plain(image_bgr, face):
    """Whether a face's box holds one colour."""
    left, top = max(0, round(face.left)), max(0, round(face.top))
    part = image_bgr[top : round(face.top + face.height), left : round(face.left + face.width)]
    return len(np.unique(part.reshape(-1, 3), axis=0)) == 1


def hide(frames, known=0, **options):
    anonymizer = Anonymizer(**options)
    ready = [each for frame in frames for each in anonymizer.add(frame, known)]
    return ready + anonymizer.finish(known)


def test_hidden_face_is_not_detected():
    frame_bgr = portrait_frame()
    detector = build_detector("mtcnn")
    (face,) = detector.detect(cv2.cvtColor(frame_bgr, cv2.COLOR_BGR2RGB))
    (hidden,) = hide([result(frame_bgr, recognition(face))], still=True)
    assert detector.detect(cv2.cvtColor(hidden.frame.image_bgr, cv2.COLOR_BGR2RGB)) == []


def test_fill_does_not_depend_on_face():
    covered = []
    for seed in range(5):
        image_bgr = noise(seed)
        (hidden,) = hide([result(image_bgr, recognition(PLACE))], still=True)
        margin = HIDDEN_MARGIN
        left, top = int(60 - 40 * margin), int(50 - 50 * margin)
        right, bottom = int(100 + 40 * margin) + 1, int(100 + 50 * margin) + 1
        covered.append(hidden.frame.image_bgr[top:bottom, left:right])
        expected = image_bgr.copy()
        expected[top:bottom, left:right] = covered[-1]
        np.testing.assert_array_equal(expected, hidden.frame.image_bgr)
        assert (image_bgr == noise(seed)).all(), "the frame itself, which the log and the network share, is not touched"
    for each in covered:
        np.testing.assert_array_equal(each, np.broadcast_to(covered[0][0, 0], each.shape))


def run_of(seen, step=0.125):
    """Frames of noise, those in `seen` with face 1 at its place."""
    return [
        result(
            noise(index), *([recognition(PLACE, track_id=1)] if index in seen else []), index=index, time=index * step
        )
        for index in range(40)
    ]


def test_place_is_hidden_before_detection_and_after_loss():
    hidden = hide(run_of(range(10, 20)))
    assert [each.frame.index for each in hidden] == list(range(40))
    are_plain = [is_plain(each.frame.image_bgr, PLACE) for each in hidden]
    assert are_plain == [6 <= index <= 27 for index in range(40)]


def test_gap_is_hidden_from_last_to_next_place():
    moved = replace(PLACE, left=150.0)
    frames = run_of(())
    frames[3].recognitions.append(recognition(PLACE, track_id=1))
    frames[6].recognitions.append(recognition(moved, track_id=1))
    hidden = hide(frames)
    for index in (4, 5):
        for face in (PLACE, replace(PLACE, left=100.0), moved):
            assert is_plain(hidden[index].frame.image_bgr, replace(face, width=20.0))
    assert not is_plain(hidden[6].frame.image_bgr, PLACE), "where a face is found, its old place is free"


def test_known_face_is_visible_where_a_lost_one_was():
    frames = run_of(())
    frames[3].recognitions.append(recognition(PLACE, track_id=2))
    frames[5].recognitions.append(recognition(PLACE, track_id=1))
    hidden = hide(frames, known=1)
    assert [is_plain(hidden[index].frame.image_bgr, PLACE) for index in (3, 4, 5, 6)] == [True, True, False, True]
    around = replace(PLACE, top=PLACE.top - 12, height=10.0)
    assert is_plain(hidden[5].frame.image_bgr, around)


def test_faces_over_the_border_are_hidden():
    for box in ((-30, -20, 60, 60), (220, 140, 60, 60), (-500, 0, 40, 40), (10, 10, 0.4, 0.4), (-50, -50, 500, 400)):
        face = Face(*map(float, box), confidence=0.9)
        (hidden,) = hide([result(noise(), recognition(face))], still=True)
        assert hidden.frame.image_bgr.shape == (160, 240, 3)


def test_slow_source_hides_lost_face_for_three_frames():
    frames = run_of({10}, step=2.0)
    assert [is_plain(each.frame.image_bgr, PLACE) for each in hide(frames)][9:15] == [True] * 5 + [False]


def test_face_that_overlaps_known_one_is_hidden():
    other = replace(PLACE, left=80.0)
    (hidden,) = hide([result(noise(), recognition(PLACE, track_id=1), recognition(other, track_id=2))], known=1)
    assert is_plain(hidden.frame.image_bgr, other)
    assert not is_plain(hidden.frame.image_bgr, replace(PLACE, width=19.0))
