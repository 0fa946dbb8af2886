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
AT_ONCE = replace(TRACKING, min_hits=1)  # a face has its number from its first frame on
FRAME = scene(0)


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


def numbers(tracker: Tracker, frame: int) -> list[int]:
    return [number for number, _ in update(tracker, FRAME, frame / RATE)]


@pytest.mark.parametrize("kind", [FakeDetector, FollowingDetector])
def test_moving_face_keeps_track_id(kind):
    detector = kind(at(10), at(200))
    tracker = Tracker(detector, AT_ONCE)
    for frame in range(60):
        places = {1: 10.0 + frame, 2: 200.0 - frame}
        detector.faces = [at(left) for left in sorted(places.values(), reverse=frame % 2 == 1)]
        assert {number: face.left for number, face in update(tracker, FRAME, frame / RATE)} == places


def test_full_detection_runs_at_intervals():
    detector = FollowingDetector(at(10))
    tracker = Tracker(detector, replace(AT_ONCE, detect_every=0.5))
    for frame in range(61):
        assert numbers(tracker, frame) == [1]
    assert detector.searched == 5  # at 0, 0.5, 1, 1.5 and 2 seconds


@pytest.mark.parametrize("kind", [FakeDetector, FollowingDetector])
@pytest.mark.parametrize(("seconds", "number"), [(0.6, 1), (1.5, 2)])
def test_track_survives_short_gap_only(kind, seconds, number):
    detector = kind(at(10))
    tracker = Tracker(detector, AT_ONCE)
    for frame in range(10):
        assert numbers(tracker, frame) == [1]
    detector.faces, back = [], 10 + round(seconds * RATE)
    for frame in range(10, back):
        assert numbers(tracker, frame) == []
    detector.faces = [at(14)]
    seen = [numbers(tracker, frame) for frame in range(back, back + RATE)]
    assert seen[-1] == [number]
    assert {n for row in seen for n in row} == {number}


def test_two_tracks_never_share_a_face():
    detector = FollowingDetector(at(10), at(30))
    tracker = Tracker(detector, replace(AT_ONCE, detect_every=10.0))
    assert numbers(tracker, 0) == [1, 2]
    detector.faces = [at(20)]  # one of them went behind the other
    assert len(numbers(tracker, 1)) == 1


SEARCH = 4  # frames from one search of the whole picture to the next


def test_track_is_tentative_until_second_detection():
    detector = FollowingDetector(at(10))
    tracker = Tracker(detector)
    assert [numbers(tracker, frame) for frame in range(SEARCH + 1)] == [[0]] * SEARCH + [[1]]
    assert detector.searched == 2


def test_missed_tentative_track_takes_no_track_id():
    detector = FollowingDetector(at(10))
    tracker = Tracker(detector)
    for start in range(0, 5 * SEARCH, SEARCH):  # a false detection here and there, each for a moment
        detector.faces = [at(10 + 10 * start)]
        assert numbers(tracker, start)[-1] == 0
        detector.faces = []
        assert all(numbers(tracker, start + frame) == [] for frame in range(1, SEARCH))
    detector.faces = [at(100, 150)]
    told = [numbers(tracker, frame) for frame in range(5 * SEARCH, 7 * SEARCH)]
    assert told[0] == [0] and told[-1] == [1]


def test_new_face_is_confirmed_within_a_tenth_of_a_second():
    class Looking(FollowingDetector):
        def detect(self, image_rgb):
            if image_rgb.shape == FRAME.shape:
                return super().detect(image_rgb)
            return [replace(FACE, left=30.0, top=25.0, width=40.0, height=50.0)]  # in the middle of the region

    detector = Looking(at(100))
    tracker = Tracker(detector)
    told = [numbers(tracker, frame)[0] for frame in range(4)]
    assert told == [0, 0, 1, 1]
    assert detector.searched == 1


def test_key_of_a_track_is_unique():
    tracker = Tracker(FakeDetector(at(10)))
    tracked = [tracker.update(FRAME, frame / RATE)[0] for frame in range(3)]
    tracked.append(tracker.update(scene(1), 3 / RATE)[0])
    assert [(each.key, each.track_id) for each in tracked] == [(1, 0), (1, 1), (1, 1), (2, 0)]


def test_slow_camera_keeps_tracks():
    tracker = Tracker(FakeDetector(at(10)))
    assert [numbers(tracker, 60 * frame) for frame in range(4)] == [[0], [1], [1], [1]]
    tracker = Tracker(FakeDetector(at(10)))
    assert [numbers(tracker, frame) for frame in (0, 1, 2, 62, 63)] == [[0], [1], [1], [0], [2]]


@pytest.mark.parametrize("kind", [FakeDetector, FollowingDetector])
@pytest.mark.parametrize("brightness", [0.2, 1.0])
def test_cut_ends_all_tracks(kind, brightness):
    detector = kind(at(10), at(200))
    tracker = Tracker(detector)
    before, after = ((brightness * scene(seed)).astype(np.uint8) for seed in (0, 1))
    for frame in range(15):
        told = update(tracker, before, frame / RATE)
    assert [number for number, _ in told] == [1, 2]
    detector.faces = [at(10)]  # the other one is hidden, and would be remembered
    for frame in range(15, 18):
        update(tracker, before, frame / RATE)
    detector.faces = [at(12), at(202)]
    seen = [{number for number, _ in update(tracker, after, frame / RATE)} for frame in range(18, 36)]
    assert seen[0] == {0} and seen[-1] == {3, 4}
    assert set.union(*seen) == {0, 3, 4}


def test_boxes_settle_on_a_still_image():
    """O-Net by itself may go to and fro for ever: fed 10 pixels too far left, it answers as much too far right."""

    class Swinging(FollowingDetector):
        def propagate(self, image_rgb, faces):
            return [replace(face, left=2 * 100.0 - face.left) for face in faces]

    detector = Swinging(at(94))
    tracker = Tracker(detector, replace(AT_ONCE, detect_every=0.2))
    lefts = [update(tracker, FRAME, frame / RATE)[0][1].left for frame in range(30)]
    assert np.abs(np.diff(lefts[2:])).max() < 0.1
    assert lefts[-1] == pytest.approx(100)


@pytest.mark.parametrize("kind", [FakeDetector, FollowingDetector])
@pytest.mark.parametrize("speed", [120.0, -120.0, 0.0])
def test_face_behind_obstacle_keeps_track_id(kind, speed):
    detector = kind()
    tracker = Tracker(detector, AT_ONCE)
    hidden, ends = round(0.6 * RATE), 15
    for frame in range(2 * ends + hidden):
        is_hidden = ends <= frame < ends + hidden
        detector.faces = [] if is_hidden else [at(140 + speed * (frame / RATE - 0.75))]
        told = numbers(tracker, frame)
        assert told == [] if is_hidden else set(told) <= {1}
    assert told == [1]


@pytest.mark.parametrize("kind", [FakeDetector, FollowingDetector])
@pytest.mark.parametrize("front", [1, 2])
def test_crossing_faces_keep_track_ids(kind, front):
    """While one covers a part of the other, only the one in front can be seen."""
    detector = kind()
    tracker = Tracker(detector, AT_ONCE)
    for frame in range(80):
        places = {1: at(20 + 2.5 * frame), 2: at(220 - 2.5 * frame, top=54)}
        covered = overlap(places[1], places[2]) > 0.2
        detector.faces = [places[front]] if covered else list(places.values())
        told = dict(update(tracker, FRAME, frame / RATE))
        if not covered:
            assert all(told[number] == places[number] for number in told), frame
    assert set(told) == {1, 2}


@pytest.mark.parametrize("kind", [FakeDetector, FollowingDetector])
def test_fast_face_at_low_frame_rate_keeps_track_id(kind):
    """A slow machine, or a slow camera, sees one who walks so."""
    detector = kind()
    tracker = Tracker(detector, AT_ONCE)
    for frame in range(7):
        detector.faces = [at(10 + 40 * frame), at(5, top=150)]
        assert dict(update(tracker, FRAME, frame / 6)) == {1: detector.faces[0], 2: detector.faces[1]}


def test_fast_face_is_propagated_from_predicted_place():
    class Near(FollowingDetector):
        """Sees a face only where it is given a place near it."""

        def propagate(self, image_rgb, faces):
            return [
                max(self.faces, key=lambda seen: overlap(seen, face))
                if any(overlap(seen, face) >= 0.3 for seen in self.faces)
                else replace(face, confidence=0.01)
                for face in faces
            ]

    detector = Near()
    tracker = Tracker(detector, replace(AT_ONCE, detect_every=10.0))
    for frame in range(36):
        detector.faces = [at(10 + 0.2 * frame**2)]  # in the end it goes 14 pixels a frame, and is 40 wide
        assert update(tracker, FRAME, frame / RATE) == [(1, detector.faces[0])]


class Slow(FollowingDetector):
    """A search ends when it is let go, with what was there when it began; regions show nothing."""

    def __init__(self, *faces: Face):
        super().__init__(*faces)
        self.go, self.begun = threading.Event(), 0
        self.go.set()

    def detect(self, image_rgb):
        faces = super().detect(image_rgb)
        if image_rgb.shape == FRAME.shape:
            self.begun += 1
            assert self.go.wait(10)
        return faces


@pytest.fixture
def beside():
    """A tracker with a searcher beside it, and the two's detectors; both see the same faces."""
    searching = Slow(at(10))
    following = FollowingDetector(at(10))
    following.faces = searching.faces
    with closing(BackgroundDetector(searching)) as background:
        yield (
            Tracker(following, replace(AT_ONCE, detect_every=0.1, background_after=0.0), background),
            following,
            searching,
        )
        searching.go.set()


def let_go(searching: Slow) -> None:
    """Let the search that is under way end."""
    searching.go.set()
    time.sleep(0.05)
    searching.go.clear()


def test_background_detection_does_not_delay_frames(beside):
    tracker, following, searching = beside
    assert numbers(tracker, 0) == [1]  # the first picture is waited for
    searching.go.clear()
    searching.faces.append(at(100))
    for frame in range(1, 13):
        searching.faces[:] = [at(10 + frame), at(100 + 2 * frame)]
        assert numbers(tracker, frame) == [1]
    assert (following.searched, searching.begun) == (1, 1)
    let_go(searching)
    searching.faces[:] = [at(30), at(130)]
    assert [(number, face.left) for number, face in update(tracker, FRAME, 13 / RATE)] == [(1, 30), (2, 130)]


def test_background_detection_drops_missed_face(beside):
    tracker, following, searching = beside
    numbers(tracker, 0)
    searching.go.clear()
    following.faces = [at(10), at(150)]
    searching.faces = []
    for frame in range(1, 7):
        assert numbers(tracker, frame) == [1]
    let_go(searching)  # it saw nobody, where one is followed
    assert numbers(tracker, 7) == []
    searching.faces = [at(10)]
    let_go(searching)
    for frame in range(8, 16):
        told = numbers(tracker, frame)
        let_go(searching)
    assert told == [1]


def test_face_lost_during_background_detection_keeps_track_id(beside):
    tracker, following, searching = beside
    numbers(tracker, 0)
    searching.go.clear()
    for frame in range(1, 5):
        assert numbers(tracker, frame) == [1]
    assert searching.begun == 1
    following.faces = []
    assert numbers(tracker, 5) == numbers(tracker, 6) == []
    following.faces = [at(12)]
    let_go(searching)
    assert numbers(tracker, 7) == [1]


def test_fast_detection_is_synchronous():
    detector, other = FollowingDetector(at(10)), FollowingDetector(at(10))
    with closing(BackgroundDetector(other)) as background:
        tracker = Tracker(detector, replace(AT_ONCE, detect_every=0.1, background_after=5.0), background)
        for frame in range(3):
            numbers(tracker, frame)
        detector.faces = [at(13), at(200)]
        assert [numbers(tracker, frame) for frame in (3, 4)] == [[1, 2], [1, 2]]
    assert (detector.searched, other.searched) == (2, 0)


def test_background_exception_reaches_caller():
    class Broken(FakeDetector):
        def detect(self, image_rgb):
            raise ValueError("no memory")

    with closing(BackgroundDetector(Broken())) as background:
        tracker = Tracker(FollowingDetector(at(10)), replace(AT_ONCE, background_after=0.0), background)
        with pytest.raises(ValueError, match="no memory"):
            for frame in range(100):
                numbers(tracker, frame)
                time.sleep(0.01)
    assert not any(thread.name.startswith("detector") for thread in threading.enumerate())


def test_cut_discards_background_detection(beside):
    tracker, following, searching = beside
    numbers(tracker, 0)
    searching.go.clear()
    for frame in range(1, 6):
        numbers(tracker, frame)
    following.faces = [at(200)]
    assert [number for number, _ in update(tracker, scene(1), 6 / RATE)] == [2]
    let_go(searching)  # what the old scene showed is not in the new one
    assert [number for number, _ in update(tracker, scene(1), 7 / RATE)] == [2]
