"""Which face is which: the whole picture is searched now and then, the faces known already are followed in between.

Following a face by mtcnn's last network costs a tenth of a search, or less. A face that following loses is looked for
again around its last place, in a small copy, which costs little as well; the next search finds it wherever it is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import cv2
import numpy as np

from configuration import TRACKING, Tracking
from preprocessing.faces import Detector, Face, scaled, suppress, suppress_inner

_SAME = 0.3  # intersection over union from which on two boxes may be one face
_AGREED = 0.6  # the same from which on a search confirms where a face was followed to
_COVERED = 0.7  # share of the smaller of two boxes above which two tracks hold one face
_SPAN = 2.0  # sides of the face: side of the region in which a lost face is looked for
_SIDE = 80  # pixels: side that a lost face would have in the copy which is looked at
_THUMBNAIL = (32, 24)  # pixels: what two frames are compared by


class TrackedFace(NamedTuple):
    """A face and its number, from 1, which it keeps while it stays."""

    number: int
    face: Face


@runtime_checkable
class Follower(Protocol):
    """A detector that can also follow faces, as `preprocessing.faces.FaceDetector` does."""

    def follow(self, image_rgb: np.ndarray, faces: Sequence[Face]) -> list[Face]:
        """Return where known faces are in the next picture; those with a low confidence are lost."""
        ...


@dataclass(frozen=True)
class _Track:
    """A face that is, or not long ago was, in the picture; `face` and `seen` (seconds) tell where and when last.

    O-Net's answer depends on the square it is given, and on a still picture, given its own answer again and again, it
    goes to and fro by up to 6 % of the face's height. So it is given `near`, which goes only half the way each time.
    """

    number: int
    face: Face
    seen: float
    near: Face  # where the face is looked for in the next frame
    looked: float = -np.inf  # seconds: when it was last looked for


class Tracker:
    """Finds the faces in the frames of one source and tells them apart.

    Where the detector cannot follow faces (the Haar cascade), every frame is searched.

    Args:
        detector: What finds the faces.
        options: How often to search, and for how long a hidden face keeps its number.
    """

    def __init__(self, detector: Detector, options: Tracking = TRACKING):
        self._detector, self._options = detector, options
        self._tracks: list[_Track] = []
        self._count = 0
        self._time = self._searched = -np.inf  # seconds: the last frame, the last search
        self._thumbnail = np.zeros((*_THUMBNAIL[::-1], 3), np.uint8)

    def update(self, image_rgb: np.ndarray, time: float) -> list[TrackedFace]:
        """Return the faces of the next frame, the one that has been here longest first.

        Args:
            image_rgb: uint8 (h, w, 3).
            time: Seconds, on the source's own clock, later than the frame before.
        """
        if time <= self._time:  # another source, or this one from its beginning
            self._tracks, self._searched = [], -np.inf
        self._tracks = [track for track in self._tracks if time - track.seen <= self._options.remember]
        if self._is_search_due(image_rgb, time):
            self._searched = time
            self._search(image_rgb, time)
        else:
            self._replace(list(self._followed(image_rgb, time).values()))
            self._look_again(image_rgb, time)
        self._time = time
        return [TrackedFace(track.number, track.face) for track in self._tracks if track.seen == time]

    def _is_search_due(self, image_rgb: np.ndarray, time: float) -> bool:
        before = self._thumbnail
        self._thumbnail = cv2.resize(image_rgb, _THUMBNAIL, interpolation=cv2.INTER_NEAREST)
        return (
            not isinstance(self._detector, Follower)
            or time - self._searched >= self._options.search_every
            or cv2.absdiff(before, self._thumbnail).mean() > self._options.cut
        )

    def _search(self, image_rgb: np.ndarray, time: float) -> None:
        """Search the whole picture. A face that is also followed there keeps its followed box, which does not jump."""
        followed = self._followed(image_rgb, time)
        self._assign(self._detector.detect(image_rgb), time)
        self._replace(
            [
                followed[track.number]
                for track in self._tracks
                if track.seen == time
                and track.number in followed
                and overlap(track.face, followed[track.number].face) >= _AGREED
            ]
        )

    def _followed(self, image_rgb: np.ndarray, time: float) -> dict[int, _Track]:
        """Return the faces of the last frame, by number, that O-Net is sure of and that no other one covers."""
        if not isinstance(self._detector, Follower):
            return {}
        tracks = [track for track in self._tracks if track.seen == self._time]
        faces = self._detector.follow(image_rgb, [track.near for track in tracks])
        followed = [
            replace(track, face=face, seen=time, near=_halfway(track.near, face))
            for track, face in zip(tracks, faces, strict=True)
            if face.confidence >= self._options.lost_below and overlap(track.face, face) >= _SAME
        ]
        confidences = np.array([track.face.confidence for track in followed])
        kept = suppress_inner(_boxes(track.face for track in followed), confidences, _COVERED)
        return {followed[index].number: followed[index] for index in kept}

    def _look_again(self, image_rgb: np.ndarray, time: float) -> None:
        """Search around the last place of each face that was lost, at once and then every so often."""
        found: list[Face] = []
        for index, track in enumerate(self._tracks):
            if track.seen < time and time - track.looked >= self._options.look_every:
                self._tracks[index] = replace(track, looked=time)
                found += self._search_near(image_rgb, track.face)
        seen = [track.face for track in self._tracks if track.seen == time]
        found = [face for face in found if all(overlap(face, other) < _SAME for other in seen)]
        kept = suppress(_boxes(found), np.array([face.confidence for face in found]), _SAME)  # regions may overlap
        self._assign([found[index] for index in kept], time)

    def _search_near(self, image_rgb: np.ndarray, face: Face) -> list[Face]:
        """Return the faces of the region around a face, found in a copy in which that face would be small."""
        height, width = image_rgb.shape[:2]
        side = max(face.width, face.height)
        centre = np.array([face.left + face.width / 2, face.top + face.height / 2])
        left, top = (centre - _SPAN * side / 2).astype(int).clip(0)
        right, bottom = (centre + _SPAN * side / 2).astype(int).clip(0, (width, height))
        scale = min(1.0, _SIDE / side)
        if min(right - left, bottom - top) * scale < 1:  # it has left the picture
            return []
        region_rgb = image_rgb[top:bottom, left:right]
        if scale < 1:
            region_rgb = cv2.resize(region_rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        return [_moved(scaled(found, 1 / scale), left, top) for found in self._detector.detect(region_rgb)]

    def _assign(self, faces: Sequence[Face], time: float) -> None:
        """Give faces that were found to the tracks not seen in this frame, or a new number where none was near.

        The pair that overlaps most comes first. (The assignment with the greatest sum, by
        `scipy.optimize.linear_sum_assignment`, takes 0.26 s to import, longer than all else before the first frame,
        and differs only where two faces lie over each other.)
        """
        tracks = [track for track in self._tracks if track.seen < time]
        pairs = [(overlap(track.face, face), -i, j) for i, track in enumerate(tracks) for j, face in enumerate(faces)]
        assigned: dict[int, int] = {}  # face to track
        for share, i, j in sorted(pairs, reverse=True):
            if share >= _SAME and j not in assigned and -i not in assigned.values():
                assigned[j] = -i
        self._replace([replace(tracks[i], face=faces[j], seen=time, near=faces[j]) for j, i in assigned.items()])
        for j, face in enumerate(faces):
            if j not in assigned:
                self._count += 1
                self._tracks.append(_Track(self._count, face, time, face))

    def _replace(self, tracks: Sequence[_Track]) -> None:
        by_number = {track.number: track for track in tracks}
        self._tracks = [by_number.get(track.number, track) for track in self._tracks]


def overlap(first: Face, second: Face) -> float:
    """Return the intersection over union of two faces' boxes, 0-1."""
    width = min(first.left + first.width, second.left + second.width) - max(first.left, second.left)
    height = min(first.top + first.height, second.top + second.height) - max(first.top, second.top)
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / (first.width * first.height + second.width * second.height - shared)


def _boxes(faces: Iterable[Face]) -> np.ndarray:
    edges = [(face.left, face.top, face.left + face.width, face.top + face.height) for face in faces]
    return np.array(edges, np.float64).reshape(-1, 4)


def _halfway(first: Face, second: Face) -> Face:
    """Return a face with the mean box of two."""
    left, top, width, height = (
        (getattr(first, side) + getattr(second, side)) / 2 for side in ("left", "top", "width", "height")
    )
    return replace(second, left=left, top=top, width=width, height=height)


def _moved(face: Face, x: float, y: float) -> Face:
    points = None if face.landmarks is None else face.landmarks + np.array([x, y], np.float32)
    return replace(face, left=face.left + x, top=face.top + y, landmarks=points)
