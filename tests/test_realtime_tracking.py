import threading
import time
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from realtime_fakes import FACE, FakeDetector, scene

from configuration import TRACKING
from inference.faces import Face
from realtime.background import BackgroundDetector
from realtime.tracking import Tracker, overlap

RATE = 30  # frames per second
ONE_HIT = replace(TRACKING, min_hits=1)  # tracks are confirmed by their first detection
FRAME = scene(0)


class PropagatingDetector(FakeDetector):
    """Detects `faces` in whole frames and propagates each given face to the nearest of them."""

    def __init__(self, *faces: Face):
        super().__init__(*faces)
        self.detections = 0

    def detect(self, image_rgb: np.ndarray) -> list[Face]:
        if image_rgb.shape != FRAME.shape:  # the region of a lost face
            return []
        self.detections += 1
        return list(self.faces)

    def propagate(self, image_rgb: np.ndarray, faces) -> list[Face]:
        return [
            max(self.faces, key=lambda seen: overlap(seen, face), default=face)
            if any(overlap(seen, face) > 0 for seen in self.faces)
            else replace(face, confidence=0.01)
            for face in faces
        ]


def at(left: float, top: float = 50.0, confidence: float = 0.99) -> Face:
    return Face(left, top, 40.0, 50.0, confidence)


def update(tracker: Tracker, image_rgb: np.ndarray, time: float) -> list[tuple[int, Face]]:
    return [(each.track_id, each.face) for each in tracker.update(image_rgb, time)]


def track_ids(tracker: Tracker, frame: int) -> list[int]:
    return [track_id for track_id, _ in update(tracker, FRAME, frame / RATE)]


@pytest.mark.parametrize("kind", [FakeDetector, PropagatingDetector])
@pytest.mark.parametrize(("seconds", "track_id"), [(0.6, 1), (1.5, 2)])
def test_track_survives_short_gap_only(kind, seconds, track_id):
    detector = kind(at(10))
    tracker = Tracker(detector, ONE_HIT)
    for frame in range(10):
        assert track_ids(tracker, frame) == [1]
    detector.faces, back = [], 10 + round(seconds * RATE)
    for frame in range(10, back):
        assert track_ids(tracker, frame) == []
    detector.faces = [at(14)]
    seen = [track_ids(tracker, frame) for frame in range(back, back + RATE)]
    assert seen[-1] == [track_id]
    assert {n for row in seen for n in row} == {track_id}


def test_track_is_tentative_until_second_detection_and_takes_no_track_id_if_missed():
    detector, interval = PropagatingDetector(at(10)), 4  # frames from one full detection to the next
    tracker = Tracker(detector)
    for start in range(0, 5 * interval, interval):  # false detections in single frames
        detector.faces = [at(10 + 10 * start)]
        assert track_ids(tracker, start)[-1] == 0
        detector.faces = []
        assert all(track_ids(tracker, start + frame) == [] for frame in range(1, interval))
    detector.faces = [at(100, 150)]
    ids = [track_ids(tracker, frame) for frame in range(5 * interval, 6 * interval + 1)]
    assert ids == [[0]] * interval + [[1]]


def test_new_face_is_confirmed_within_a_tenth_of_a_second():
    class RegionDetector(PropagatingDetector):
        def detect(self, image_rgb):
            if image_rgb.shape == FRAME.shape:
                return super().detect(image_rgb)
            return [replace(FACE, left=30.0, top=25.0, width=40.0, height=50.0)]  # in the middle of the region

    detector = RegionDetector(at(100))
    tracker = Tracker(detector)
    ids = [track_ids(tracker, frame)[0] for frame in range(4)]
    assert ids == [0, 0, 1, 1]
    assert detector.detections == 1


def test_slow_camera_keeps_tracks():
    tracker = Tracker(FakeDetector(at(10)))
    assert [track_ids(tracker, 60 * frame) for frame in range(4)] == [[0], [1], [1], [1]]
    tracker = Tracker(FakeDetector(at(10)))
    assert [track_ids(tracker, frame) for frame in (0, 1, 2, 62, 63)] == [[0], [1], [1], [0], [2]]


@pytest.mark.parametrize("kind", [FakeDetector, PropagatingDetector])
@pytest.mark.parametrize("brightness", [0.2, 1.0])
def test_cut_ends_all_tracks(kind, brightness):
    detector = kind(at(10), at(200))
    tracker = Tracker(detector)
    before, after = ((brightness * scene(seed)).astype(np.uint8) for seed in (0, 1))
    for frame in range(15):
        ids = update(tracker, before, frame / RATE)
    assert [track_id for track_id, _ in ids] == [1, 2]
    detector.faces = [at(10)]  # the other one is hidden; its track is kept
    for frame in range(15, 18):
        update(tracker, before, frame / RATE)
    detector.faces = [at(12), at(202)]
    seen = [{track_id for track_id, _ in update(tracker, after, frame / RATE)} for frame in range(18, 36)]
    assert seen[0] == {0} and seen[-1] == {3, 4}
    assert set.union(*seen) == {0, 3, 4}


def test_boxes_settle_on_a_still_image():
    """O-Net may oscillate: given a box 10 pixels too far left, it returns one 10 pixels too far right."""

    class OscillatingDetector(PropagatingDetector):
        def propagate(self, image_rgb, faces):
            return [replace(face, left=2 * 100.0 - face.left) for face in faces]

    detector = OscillatingDetector(at(94))
    tracker = Tracker(detector, replace(ONE_HIT, detect_every=0.2))
    lefts = [update(tracker, FRAME, frame / RATE)[0][1].left for frame in range(30)]
    assert np.abs(np.diff(lefts[2:])).max() < 0.1
    assert lefts[-1] == pytest.approx(100)


@pytest.mark.parametrize("kind", [FakeDetector, PropagatingDetector])
@pytest.mark.parametrize("speed", [120.0, -120.0, 0.0])
def test_face_behind_obstacle_keeps_track_id(kind, speed):
    detector = kind()
    tracker = Tracker(detector, ONE_HIT)
    hidden, ends = round(0.6 * RATE), 15
    for frame in range(2 * ends + hidden):
        is_hidden = ends <= frame < ends + hidden
        detector.faces = [] if is_hidden else [at(140 + speed * (frame / RATE - 0.75))]
        ids = track_ids(tracker, frame)
        assert ids == [] if is_hidden else set(ids) <= {1}
    assert ids == [1]


@pytest.mark.parametrize("kind", [FakeDetector, PropagatingDetector])
@pytest.mark.parametrize("front", [1, 2])
def test_crossing_faces_keep_track_ids(kind, front):
    """While they overlap, only the face in front is detected."""
    detector = kind()
    tracker = Tracker(detector, ONE_HIT)
    for frame in range(80):
        places = {1: at(20 + 2.5 * frame), 2: at(220 - 2.5 * frame, top=54)}
        covered = overlap(places[1], places[2]) > 0.2
        detector.faces = [places[front]] if covered else list(places.values())
        ids = dict(update(tracker, FRAME, frame / RATE))
        if not covered:
            assert all(ids[track_id] == places[track_id] for track_id in ids), frame
    assert set(ids) == {1, 2}


def test_fast_face_is_propagated_from_predicted_place():
    class Near(PropagatingDetector):
        """Propagates only boxes that overlap a face well."""

        def propagate(self, image_rgb, faces):
            near = [any(overlap(seen, face) >= 0.3 for seen in self.faces) for face in faces]
            found = zip(super().propagate(image_rgb, faces), near, strict=True)
            return [each if is_near else replace(each, confidence=0.01) for each, is_near in found]

    detector = Near()
    tracker = Tracker(detector, replace(ONE_HIT, detect_every=10.0))
    for frame in range(36):
        detector.faces = [at(10 + 0.2 * frame**2)]  # at the end 14 pixels per frame, at a width of 40
        assert update(tracker, FRAME, frame / RATE) == [(1, detector.faces[0])]


class Slow(PropagatingDetector):
    """A full detection waits for `may_end`, and returns the faces of its start."""

    def __init__(self, *faces: Face):
        super().__init__(*faces)
        self.may_end, self.started = threading.Event(), 0
        self.may_end.set()

    def detect(self, image_rgb):
        faces = super().detect(image_rgb)
        if image_rgb.shape == FRAME.shape:
            self.started += 1
            assert self.may_end.wait(10)
        return faces


@pytest.fixture
def trackers():
    """A tracker with a background detector, and both detectors, which detect the same faces."""
    slow = Slow(at(10))
    foreground = PropagatingDetector(at(10))
    foreground.faces = slow.faces
    with closing(BackgroundDetector(slow)) as background:
        yield (
            Tracker(foreground, replace(ONE_HIT, detect_every=0.1, background_after=0.0), background),
            foreground,
            slow,
        )
        slow.may_end.set()


def finish(slow: Slow) -> None:
    """Let the running detection end."""
    slow.may_end.set()
    time.sleep(0.05)
    slow.may_end.clear()


def test_background_detection_does_not_delay_frames(trackers):
    tracker, foreground, slow = trackers
    assert track_ids(tracker, 0) == [1]  # the first detection is synchronous
    slow.may_end.clear()
    slow.faces.append(at(100))
    for frame in range(1, 13):
        slow.faces[:] = [at(10 + frame), at(100 + 2 * frame)]
        assert track_ids(tracker, frame) == [1]
    assert (foreground.detections, slow.started) == (1, 1)
    finish(slow)
    slow.faces[:] = [at(30), at(130)]
    assert [(track_id, face.left) for track_id, face in update(tracker, FRAME, 13 / RATE)] == [(1, 30), (2, 130)]


def test_background_detection_drops_missed_face(trackers):
    tracker, foreground, slow = trackers
    track_ids(tracker, 0)
    slow.may_end.clear()
    foreground.faces = [at(10), at(150)]
    slow.faces = []
    for frame in range(1, 7):
        assert track_ids(tracker, frame) == [1]
    finish(slow)  # it detects no face where a track is
    assert track_ids(tracker, 7) == []
    slow.faces = [at(10)]
    finish(slow)
    for frame in range(8, 16):
        ids = track_ids(tracker, frame)
        finish(slow)
    assert ids == [1]


def test_background_exception_reaches_caller():
    class Broken(FakeDetector):
        def detect(self, image_rgb):
            raise ValueError("no memory")

    with closing(BackgroundDetector(Broken())) as background:
        tracker = Tracker(PropagatingDetector(at(10)), replace(ONE_HIT, background_after=0.0), background)
        with pytest.raises(ValueError, match="no memory"):
            for frame in range(100):
                track_ids(tracker, frame)
                time.sleep(0.01)
    assert not any(thread.name.startswith("detector") for thread in threading.enumerate())


def test_cut_discards_background_detection(trackers):
    tracker, foreground, slow = trackers
    track_ids(tracker, 0)
    slow.may_end.clear()
    for frame in range(1, 6):
        track_ids(tracker, frame)
    foreground.faces = [at(200)]
    assert [track_id for track_id, _ in update(tracker, scene(1), 6 / RATE)] == [2]
    finish(slow)  # faces of the old scene are discarded
    assert [track_id for track_id, _ in update(tracker, scene(1), 7 / RATE)] == [2]
