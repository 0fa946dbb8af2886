from dataclasses import replace

import numpy as np
import pytest
from realtime_fakes import FACE, FakeDetector

from configuration import TRACKING
from preprocessing.faces import Face
from realtime.tracking import Tracker, overlap

FRAME = np.full((240, 320, 3), 90, np.uint8)
RATE = 30  # frames per second


class FollowingDetector(FakeDetector):
    """Sees `faces` wherever they are; follows each face given to the nearest of them, and looks at whole frames."""

    def __init__(self, *faces: Face):
        super().__init__(*faces)
        self.searched = 0

    def detect(self, image_rgb: np.ndarray) -> list[Face]:
        if image_rgb.shape != FRAME.shape:  # a region around a lost face
            return []
        self.searched += 1
        return list(self.faces)

    def follow(self, image_rgb: np.ndarray, faces) -> list[Face]:
        return [
            max(self.faces, key=lambda seen: overlap(seen, face), default=face)
            if any(overlap(seen, face) > 0 for seen in self.faces)
            else replace(face, confidence=0.01)
            for face in faces
        ]


def at(left: float, top: float = 50.0, confidence: float = 0.99) -> Face:
    return Face(left, top, 40.0, 50.0, confidence)


def numbers(tracker: Tracker, frame: int) -> list[int]:
    return [number for number, _ in tracker.update(FRAME, frame / RATE)]


def test_overlap_is_intersection_over_union():
    assert overlap(at(0), at(0)) == 1
    assert overlap(at(0), at(20)) == pytest.approx(20 * 50 / (2 * 40 * 50 - 20 * 50))
    assert overlap(at(0), at(40)) == overlap(at(0), at(200)) == 0


@pytest.mark.parametrize("kind", [FakeDetector, FollowingDetector])
def test_a_face_that_moves_keeps_its_number_and_its_place_is_told(kind):
    detector = kind(at(10), at(200))
    tracker = Tracker(detector)
    for frame in range(60):
        places = {1: 10.0 + frame, 2: 200.0 - frame}
        detector.faces = [at(left) for left in sorted(places.values(), reverse=frame % 2 == 1)]
        assert {number: face.left for number, face in tracker.update(FRAME, frame / RATE)} == places


def test_known_faces_are_followed_and_the_picture_is_searched_every_so_often():
    detector = FollowingDetector(at(10))
    tracker = Tracker(detector, replace(TRACKING, search_every=0.5))
    for frame in range(61):
        assert numbers(tracker, frame) == [1]
    assert detector.searched == 5  # at 0, 0.5, 1, 1.5 and 2 seconds


def test_a_detector_that_cannot_follow_searches_every_frame():
    detector = FakeDetector(at(10))
    tracker = Tracker(detector)
    for frame in range(7):
        numbers(tracker, frame)
    assert len(detector.seen) == 7


@pytest.mark.parametrize("kind", [FakeDetector, FollowingDetector])
@pytest.mark.parametrize(("seconds", "number"), [(0.6, 1), (1.5, 2)])
def test_a_face_hidden_for_a_moment_keeps_its_number_and_one_that_was_away_gets_another(kind, seconds, number):
    detector = kind(at(10))
    tracker = Tracker(detector)
    for frame in range(10):
        assert numbers(tracker, frame) == [1]
    detector.faces, back = [], 10 + round(seconds * RATE)
    for frame in range(10, back):
        assert numbers(tracker, frame) == []
    detector.faces = [at(14)]
    seen = [numbers(tracker, frame) for frame in range(back, back + RATE)]
    assert seen[-1] == [number]
    assert {n for row in seen for n in row} == {number}


def test_a_new_face_is_found_by_the_next_search_and_gets_the_next_number():
    detector = FollowingDetector(at(10))
    tracker = Tracker(detector, replace(TRACKING, search_every=0.2))
    assert numbers(tracker, 0) == [1]
    detector.faces.append(at(200))
    seen = [numbers(tracker, frame) for frame in range(1, 10)]
    assert seen == [[1]] * 5 + [[1, 2]] * 4


def test_a_face_that_only_following_sees_goes_with_the_next_search():
    class Ghost(FollowingDetector):
        def detect(self, image_rgb):
            return super().detect(image_rgb) if self.searched == 0 else []

    tracker = Tracker(Ghost(at(10)), replace(TRACKING, search_every=0.2))
    assert [numbers(tracker, frame) for frame in range(7)][5:] == [[1], []]


def test_two_tracks_never_hold_one_face():
    detector = FollowingDetector(at(10), at(30))
    tracker = Tracker(detector, replace(TRACKING, search_every=10.0))
    assert numbers(tracker, 0) == [1, 2]
    detector.faces = [at(20)]  # one of them went behind the other
    assert len(numbers(tracker, 1)) == 1


def test_another_scene_is_searched_at_once():
    detector = FollowingDetector(at(10))
    tracker = Tracker(detector, replace(TRACKING, search_every=10.0))
    numbers(tracker, 0)
    detector.faces = [at(200)]
    assert numbers(tracker, 1) == []
    tracked = tracker.update(255 - FRAME, 2 / RATE)
    assert [number for number, _ in tracked] == [2]


def test_a_source_that_begins_anew_is_searched_and_its_faces_are_others():
    detector = FollowingDetector(at(10))
    tracker = Tracker(detector)
    assert [numbers(tracker, frame) for frame in (0, 1, 2, 0, 1)] == [[1], [1], [1], [2], [2]]


def test_thirty_faces_and_none():
    detector = FakeDetector(
        *[replace(FACE, left=10.0 * x, top=40.0 * y, width=9.0) for x in range(10) for y in range(3)]
    )
    tracker = Tracker(detector)
    assert numbers(tracker, 0) == numbers(tracker, 1) == list(range(1, 31))
    detector.faces = []
    assert numbers(tracker, 2) == []


def test_on_a_still_picture_boxes_come_to_rest():
    """O-Net by itself may go to and fro for ever: fed 10 pixels too far left, it answers as much too far right."""

    class Swinging(FollowingDetector):
        def follow(self, image_rgb, faces):
            return [replace(face, left=2 * 100.0 - face.left) for face in faces]

    detector = Swinging(at(94))
    tracker = Tracker(detector, replace(TRACKING, search_every=0.2))
    lefts = [tracker.update(FRAME, frame / RATE)[0].face.left for frame in range(30)]
    assert np.abs(np.diff(lefts[2:])).max() < 0.1
    assert lefts[-1] == pytest.approx(100)
