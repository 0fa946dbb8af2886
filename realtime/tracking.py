"""Which face is which: the whole picture is searched now and then, the faces known already are followed in between.

Following a face by mtcnn's last network costs a tenth of a search, or less. A face that following loses is looked for
again around the place where it should be by now, in a small copy, which costs little as well; the next search finds it
wherever it is. A slow search may run beside the following: its faces are then brought up to date when it is done.

A new track is tentative until two searches found its face, as in SORT (Bewley et al. 2016). A cut ends all tracks.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import NamedTuple, Protocol, runtime_checkable

import cv2
import numpy as np

from configuration import TRACKING, TrackingConfig
from inference.face_detector import nms as suppress
from inference.face_detector import nms_min as suppress_inner
from inference.faces import Detector, Face, scaled
from realtime.background import Searcher
from realtime.scenes import CutDetector

_SAME = 0.3  # intersection over union from which on two boxes may be one face
_AGREED = 0.6  # the same from which on a search confirms where a face was followed to
_COVERED = 0.7  # share of the smaller of two boxes above which two tracks hold one face
_STEP = 0.25  # height of the face from which on a hidden face has moved; less is the trembling of its box
_NEXT_STEP = 0.15  # the same from one frame to the next
_PACE = 6.0  # widths of the face per second that it may go between two frames: somebody who walks
_SPAN = 2.0  # sides of the face: side of the region in which a lost face is looked for
_SIDE = 56  # pixels: side that a lost face would have in the copy which is looked at
_SLOWEST = 10.0  # seconds: longest interval between frames over which a face can keep its number


class TrackedFace(NamedTuple):
    """A face of a frame.

    Attributes:
        track_id: Which face it is, from 1, kept while it stays; 0 while its track is tentative.
        face: Where it is.
        key: Identifies the track from its first frame on. No other track of the tracker has it.
    """

    track_id: int
    face: Face
    key: int


@runtime_checkable
class Follower(Protocol):
    """A detector that can also follow faces, as `inference.face_detector.FaceDetector` does."""

    def propagate(self, image_rgb: np.ndarray, faces: Sequence[Face]) -> list[Face]:
        """Return where known faces are in the next picture; those with a low confidence are lost."""
        ...


@dataclass(frozen=True)
class _Track:
    """A face that is, or not long ago was, in the picture; `face` and `seen` (seconds) tell where and when last.

    `track_id` is 0 while the track is tentative; `found` counts the searches that found the face.

    O-Net's answer depends on the square it is given, and on a still picture, given its own answer again and again, it
    goes to and fro by up to 6 % of the face's height. So it is given `near`, which goes only half the way each time.
    """

    key: int
    face: Face
    seen: float
    near: Face  # where the face is looked for in the next frame
    velocity: tuple[float, float] = (0.0, 0.0)  # pixels per second of its centre, to the right and down
    looked: float = -np.inf  # seconds: when it was last looked for
    found: int = 0
    track_id: int = 0


class Tracker:
    """Finds the faces in the frames of one source and tells them apart.

    Where the detector cannot follow faces (the Haar cascade), every frame is searched.

    Args:
        detector: What finds the faces.
        options: How often to search, and for how long a hidden face keeps its number.
        searcher: What searches beside the following where a search takes longer than `options.wait_for`; None: each
            search is waited for, and the same frames give the same faces every time.
    """

    def __init__(self, detector: Detector, options: TrackingConfig = TRACKING, searcher: Searcher | None = None):
        self._detector, self._options = detector, options
        self._searcher = searcher if isinstance(detector, Follower) else None
        self._tracks: list[_Track] = []
        self._keys = self._count = 0  # tracks so far, and those of them that have a number
        self._time = self._searched = -np.inf  # seconds: the last frame, the last search
        self._interval = 0.0  # seconds between the last two frames
        self._then: list[_Track] | None = None  # who was followed in the picture searched beside; None: of no use now
        self._took = 0.0  # seconds: the last search
        self._cuts = CutDetector()

    def update(self, image_rgb: np.ndarray, time: float) -> list[TrackedFace]:
        """Return the faces of the next frame, the one that has been here longest first.

        Args:
            image_rgb: uint8 (h, w, 3).
            time: Seconds, on the source's own clock, later than the frame before.
        """
        if self._cuts.is_cut(image_rgb) or time <= self._time:  # or the source begins anew
            self._tracks, self._searched, self._interval = [], -np.inf, 0.0
        # A camera of less than a frame per second shows each face in every frame, and hides it in none.
        remember = max(self._options.remember, 1.5 * self._interval)
        self._tracks = [track for track in self._tracks if time - track.seen <= remember]
        followed = self._followed(image_rgb, time)
        is_search_due = not isinstance(self._detector, Follower) or time - self._searched >= self._options.detect_every
        if self._searcher and self._is_slow(self._searcher):
            self._replace(followed)
            self._search_beside(self._searcher, image_rgb, time, is_search_due)
        elif is_search_due:
            self._searched, self._then = time, None
            faces = self._search(self._detector, image_rgb)
            confirmed = _pairs([[track.face] for track in followed], faces, _AGREED)
            # A followed box does not jump.
            self._replace([self._found(followed[i]) for i in sorted(confirmed.values())])
            self._assign([face for j, face in enumerate(faces) if j not in confirmed], time)
            self._tracks = [track for track in self._tracks if track.track_id or track.seen == time]
        else:
            self._replace(followed)
            self._look_again(image_rgb, time)
        self._interval = min(time - self._time, _SLOWEST)
        self._time = time
        return [TrackedFace(track.track_id, track.face, track.key) for track in self._tracks if track.seen == time]

    def _is_slow(self, searcher: Searcher) -> bool:
        """Return whether searches are not to be waited for; the first one of a scene is: there is nobody to follow."""
        return self._searched > -np.inf and (self._took > self._options.wait_for or not searcher.is_idle)

    def _search(self, detector: Detector, image_rgb: np.ndarray) -> list[Face]:
        start = perf_counter()
        faces = detector.detect(image_rgb)
        self._took = perf_counter() - start
        return faces

    def _followed(self, image_rgb: np.ndarray, time: float) -> list[_Track]:
        """Return the faces of the last frame that O-Net is sure of and that no other one covers.

        Of two tracks that came to hold one face, it is the one's who should be there by now.
        """
        if not isinstance(self._detector, Follower):
            return []
        tracks = [track for track in self._tracks if track.seen == self._time]
        faces = self._detector.propagate(image_rgb, [self._ahead(track, time) for track in tracks])
        sure = [
            (track, face)
            for track, face in zip(tracks, faces, strict=True)
            if face.confidence >= self._options.lost_below and overlap(track.face, face) >= _SAME
        ]
        shares = np.array([overlap(self._expected(track, time), face) for track, face in sure])
        kept = suppress_inner(_boxes(face for _, face in sure), shares, _COVERED)
        held = [sure[index] for index in kept]
        return [self._moved_on(track, face, _halfway(track.near, face), time) for track, face in held]

    def _search_beside(self, searcher: Searcher, image_rgb: np.ndarray, time: float, is_search_due: bool) -> None:
        """Take over what was found in an earlier picture, and let this one be searched if that is due."""
        faces = searcher.take()
        if faces is not None and self._then is not None:
            self._take_over(faces, self._then, image_rgb, time)
        if is_search_due and searcher.is_idle:
            self._searched = time
            self._then = [track for track in self._tracks if track.seen == time]
            searcher.start(lambda detector: self._search(detector, image_rgb))
        self._look_again(image_rgb, time, most=1)

    def _take_over(self, faces: Sequence[Face], then: Sequence[_Track], image_rgb: np.ndarray, time: float) -> None:
        """Confirm by an earlier picture's faces who was followed in it, and follow the others to this one."""
        confirmed = _pairs([[track.face] for track in then], faces, _AGREED)
        now = {track.key: track for track in self._tracks}
        lost = [t for i, t in enumerate(then) if i not in confirmed.values() and t.key in now]  # since then
        self._replace([replace(t, found=now[t.key].found, track_id=now[t.key].track_id) for t in lost])
        here = {track.key: track for track in self._tracks if track.seen == time}
        still = [here[then[i].key] for i in sorted(confirmed.values()) if then[i].key in here]
        self._replace([self._found(track) for track in still])
        others = [f for j, f in enumerate(faces) if j not in confirmed or then[confirmed[j]].key not in here]
        assert isinstance(self._detector, Follower)
        moved = self._detector.propagate(image_rgb, others)
        self._assign(self._unseen([face for face in moved if face.confidence >= self._options.lost_below], time), time)
        missed = {track.key for track in then}
        self._tracks = [t for t in self._tracks if t.track_id or t.seen == time or t.key not in missed]

    def _look_again(self, image_rgb: np.ndarray, time: float, most: int | None = None) -> None:
        """Look for faces that were lost where they should be by now; for at most so many, who waited longest first."""
        options = self._options
        lost = [t for t in self._tracks if t.track_id and t.seen < time and time - t.looked >= options.look_every]
        new = [
            t for t in self._tracks if not t.track_id and t.seen == time and time - t.looked >= options.confirm_after
        ]
        looked = [replace(t, looked=time) for t in sorted([*lost, *new], key=lambda track: track.looked)[:most]]
        self._replace(looked)
        found: list[Face] = []
        for track in looked:
            near = _search_near(self._expected(track, time), image_rgb, self._detector)
            if track.seen < time:
                found += near
            elif any(overlap(track.face, face) >= _AGREED for face in near):
                self._replace([self._found(track)])
        self._assign(self._unseen(found, time), time)

    def _unseen(self, faces: Sequence[Face], time: float) -> list[Face]:
        """Return those of the faces that are on no track of this frame, each of them once."""
        seen = [track.face for track in self._tracks if track.seen == time]
        faces = [face for face in faces if all(overlap(face, other) < _SAME for other in seen)]
        kept = suppress(_boxes(faces), np.array([face.confidence for face in faces]), _SAME)
        return [faces[index] for index in kept]

    def _assign(self, faces: Sequence[Face], time: float) -> None:
        """Give faces that were found to the tracks not seen in this frame, or a new number where none was near."""
        tracks = [track for track in self._tracks if track.seen < time]
        places = [[track.face, self._expected(track, time)] for track in tracks]  # it may have stopped, or gone on
        assigned = _pairs(places, faces, _SAME)
        before = [i for i, t in enumerate(tracks) if t.seen == self._time and i not in assigned.values()]
        rest = [j for j in range(len(faces)) if j not in assigned]
        way = min(1.0, _PACE * (time - self._time))  # where frames are slow a face goes by its own width
        wide_places = [[_widened(face, way) for face in places[i]] for i in before]
        wide = _pairs(wide_places, [_widened(faces[j], way) for j in rest], _SAME)
        assigned |= {rest[j]: before[i] for j, i in wide.items()}
        moved = ((i, self._moved_on(tracks[i], faces[j], faces[j], time)) for j, i in assigned.items())
        self._replace([self._found(track) for _, track in sorted(moved, key=lambda pair: pair[0])])
        for j, face in enumerate(faces):
            if j not in assigned:
                self._keys += 1
                self._tracks.append(self._found(_Track(self._keys, face, time, face, looked=time)))

    def _found(self, track: _Track) -> _Track:
        """Return a track that one more search found, with the next number if that confirms it."""
        found = track.found + 1
        if track.track_id or found < self._options.confirmed_by:
            return replace(track, found=found)
        self._count += 1
        return replace(track, found=found, track_id=self._count)

    def _moved_on(self, track: _Track, face: Face, near: Face, time: float) -> _Track:
        """Return the track with its next face. Its velocity is an average over the last moments that it was seen."""
        if track.seen < self._time:  # found again: where a detector sees a doubtful face may jump meanwhile
            return replace(track, face=face, seen=time, near=near, velocity=(0.0, 0.0))
        seconds = time - track.seen
        weight = 1 - math.exp(-seconds / self._options.velocity_over)
        steps = _centre(face) - _centre(track.face)
        x, y = (old + weight * (step / seconds - old) for old, step in zip(track.velocity, steps, strict=True))
        return replace(track, face=face, seen=time, near=near, velocity=(x, y))

    def _expected(self, track: _Track, time: float, step: float = _STEP) -> Face:
        """Return where a face should be if it went on as before, ever slower; less than a step is none."""
        coast = self._options.coast
        seconds = coast * (1 - math.exp(-(time - track.seen) / coast))
        x, y = (speed * seconds for speed in track.velocity)
        return _moved(track.face, x, y) if math.hypot(x, y) >= step * track.face.height else track.face

    def _ahead(self, track: _Track, time: float) -> Face:
        """Return where to look for a face that was seen in the last frame; `near` is behind one that moves."""
        expected = self._expected(track, time, _NEXT_STEP)
        return track.near if expected is track.face else expected

    def _replace(self, tracks: Sequence[_Track]) -> None:
        by_key = {track.key: track for track in tracks}
        self._tracks = [by_key.get(track.key, track) for track in self._tracks]


def _pairs(places: Sequence[Sequence[Face]], faces: Sequence[Face], least: float) -> dict[int, int]:
    """Return, by the index of a face, that of the track that it belongs to; the pair that overlaps most comes first.

    Args:
        places: Of each track, where its face may be.
        faces: The faces that were found.
        least: Intersection over union from which on two boxes may be one face.

    (The assignment with the greatest sum, by `scipy.optimize.linear_sum_assignment`, takes 0.26 s to import, longer
    than all else before the first frame, and differs only where two faces lie over each other.)
    """
    pairs = [
        (max(overlap(place, face) for place in may_be), -i, j)
        for i, may_be in enumerate(places)
        for j, face in enumerate(faces)
    ]
    assigned: dict[int, int] = {}
    for share, i, j in sorted(pairs, reverse=True):
        if share >= least and j not in assigned and -i not in assigned.values():
            assigned[j] = -i
    return assigned


def _search_near(face: Face, image_rgb: np.ndarray, detector: Detector) -> list[Face]:
    """Return the faces of the region around a face, found in a copy in which that face would be small."""
    height, width = image_rgb.shape[:2]
    side = max(face.width, face.height)
    centre = _centre(face)
    left, top = (centre - _SPAN * side / 2).astype(int).clip(0)
    right, bottom = (centre + _SPAN * side / 2).astype(int).clip(0, (width, height))
    scale = min(1.0, _SIDE / side)
    if min(right - left, bottom - top) * scale < 1:  # it has left the picture
        return []
    region_rgb = image_rgb[top:bottom, left:right]
    if scale < 1:
        region_rgb = cv2.resize(region_rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return [_moved(scaled(found, 1 / scale), left, top) for found in detector.detect(region_rgb)]


def overlap(first: Face, second: Face) -> float:
    """Return the intersection over union of two faces' boxes, 0-1."""
    width = min(first.left + first.width, second.left + second.width) - max(first.left, second.left)
    height = min(first.top + first.height, second.top + second.height) - max(first.top, second.top)
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / (first.width * first.height + second.width * second.height - shared)


def _centre(face: Face) -> np.ndarray:
    return np.array([face.left + face.width / 2, face.top + face.height / 2])


def _boxes(faces: Iterable[Face]) -> np.ndarray:
    edges = [(face.left, face.top, face.left + face.width, face.top + face.height) for face in faces]
    return np.array(edges, np.float64).reshape(-1, 4)


def _halfway(first: Face, second: Face) -> Face:
    """Return a face with the mean box of two."""
    left, top, width, height = (
        (getattr(first, side) + getattr(second, side)) / 2 for side in ("left", "top", "width", "height")
    )
    return replace(second, left=left, top=top, width=width, height=height)


def _widened(face: Face, share: float) -> Face:
    """Return a face with a box that is larger by a share of its size, around the same centre."""
    left, top = face.left - share * face.width / 2, face.top - share * face.height / 2
    return replace(face, left=left, top=top, width=(1 + share) * face.width, height=(1 + share) * face.height)


def _moved(face: Face, x: float, y: float) -> Face:
    points = None if face.landmarks is None else face.landmarks + np.array([x, y], np.float32)
    return replace(face, left=face.left + x, top=face.top + y, landmarks=points)
