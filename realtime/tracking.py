"""Multi-face tracking: run the full detector at intervals and propagate known faces with O-Net in between.

Propagation costs a tenth of a detection, or less. A lost face is detected again in a small copy of the region where it
should be, and otherwise by the next full detection. Slow detections may run in the background; their faces are then
propagated to the current frame.

A new track is tentative until two detections found its face, as in SORT (Bewley et al. 2016). A cut ends all tracks.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import NamedTuple, Protocol, runtime_checkable

import cv2
import numpy as np

from configuration import TRACKING, TrackingConfig
from inference.face_detector import nms, nms_min
from inference.faces import Detector, Face, scaled
from realtime.background import BackgroundDetector
from realtime.scenes import CutDetector

_SAME_IOU = 0.3  # minimum intersection over union (IoU) of two boxes of one face
_CONFIRMED_IOU = 0.6  # minimum IoU at which a detection confirms a propagated box
_DUPLICATE_OVERLAP = 0.7  # share of the smaller box above which two tracks are on one face
_MIN_CONFIDENCE = 0.8  # of a propagated face, 0-1; below, it is lost
_REDETECT_SECONDS = 0.03  # between two detections around the last place of a lost face
_CONFIRM_SECONDS = 0.06  # after which the surroundings of a tentative face are searched again
_VELOCITY_SECONDS = 0.15  # time constant of the average velocity
_COAST_SECONDS = 2.0  # time constant in which a hidden, moving face is expected to slow down
_MIN_STEP = 0.25  # share of the face's height: a smaller predicted step of a hidden face is box jitter
_MIN_FRAME_STEP = 0.15  # the same from one frame to the next
_MAX_SPEED = 6.0  # widths of the face per second between two frames: a person who walks
_REGION = 2.0  # sides of the face: side of the region around a lost face
_REGION_FACE = 56  # pixels: side of the lost face in the copy of that region
_MAX_INTERVAL = 10.0  # seconds between two frames across which a face can keep its track


class TrackedFace(NamedTuple):
    """A face of a frame.

    Attributes:
        track_id: From 1, the same while the face is tracked; 0 while its track is tentative.
        face: Its place.
        key: Identifies the track from its first frame on, also while it is tentative.
    """

    track_id: int
    face: Face
    key: int


@runtime_checkable
class Propagator(Protocol):
    """A detector that can also propagate faces, such as `inference.face_detector.FaceDetector`."""

    def propagate(self, image_rgb: np.ndarray, faces: Sequence[Face]) -> list[Face]:
        """Return the faces in the next image; lost ones have a low confidence."""
        ...


@dataclass(frozen=True)
class _Track:
    """A face that is visible, or was until recently.

    O-Net's box depends on the box that it is given. On a still image, given its own output again and again, it
    oscillates by up to 6 % of the face's height. So it is given `anchor`, which moves only half the way each time.
    """

    key: int
    face: Face  # where it was last seen
    seen: float  # seconds: when it was last seen
    anchor: Face  # input of the next propagation
    velocity: tuple[float, float] = (0.0, 0.0)  # pixels per second of its centre, to the right and down
    searched: float = -np.inf  # seconds: last detection around its place
    hits: int = 0  # detections of the face
    track_id: int = 0  # 0: tentative


class Tracker:
    """Tracks the faces of one source.

    Where the detector cannot propagate faces (the Haar cascade), it runs in every frame.

    Args:
        detector: Detects the faces.
        options: Intervals and limits.
        background: Runs detections that take longer than `options.background_after`. None: all detections are
            synchronous, and the same frames always give the same faces.
    """

    def __init__(
        self, detector: Detector, options: TrackingConfig = TRACKING, background: BackgroundDetector | None = None
    ):
        self._detector, self._options = detector, options
        self._propagator = detector if isinstance(detector, Propagator) else None
        self._background = background if self._propagator else None
        self._tracks: list[_Track] = []
        self._keys = self._track_ids = 0  # tracks so far, and confirmed ones
        self._time = self._detected = -np.inf  # seconds: last frame, last detection
        self._interval = 0.0  # seconds between the last two frames
        self._pending: list[_Track] | None = None  # visible tracks of the image in the background; None: outdated
        self._duration = 0.0  # seconds: last detection
        self._cuts = CutDetector()

    def update(self, image_rgb: np.ndarray, time: float) -> list[TrackedFace]:
        """Return the faces of the next frame, the oldest track first.

        Args:
            image_rgb: uint8 (h, w, 3).
            time: Seconds, on the clock of the source, later than the frame before.
        """
        if self._cuts.is_cut(image_rgb) or time <= self._time:  # or the source starts again
            self._tracks, self._detected, self._interval = [], -np.inf, 0.0
        # Below one frame per second, consecutive frames must still share tracks.
        longest = max(self._options.max_hidden_seconds, 1.5 * self._interval)
        self._tracks = [track for track in self._tracks if time - track.seen <= longest]
        propagated = self._propagate(image_rgb, time)
        is_due = not self._propagator or time - self._detected >= self._options.detect_every
        if self._background and self._is_slow(self._background):
            self._replace(propagated)
            self._detect_in_background(self._background, image_rgb, time, is_due)
        elif is_due:
            self._detected, self._pending = time, None
            faces = self._detect(self._detector, image_rgb)
            confirmed = _match([[track.face] for track in propagated], faces, _CONFIRMED_IOU)
            # The propagated box is kept, as it is smoother.
            self._replace([self._hit(propagated[i]) for i in sorted(confirmed.values())])
            self._assign([face for j, face in enumerate(faces) if j not in confirmed], time)
            self._tracks = [track for track in self._tracks if track.track_id or track.seen == time]
        else:
            self._replace(propagated)
            self._redetect(image_rgb, time)
        self._interval = min(time - self._time, _MAX_INTERVAL)
        self._time = time
        return [TrackedFace(track.track_id, track.face, track.key) for track in self._visible(time)]

    def _visible(self, time: float) -> list[_Track]:
        return [track for track in self._tracks if track.seen == time]

    def _is_slow(self, background: BackgroundDetector) -> bool:
        """Return whether to detect in the background; the first detection of a scene is synchronous."""
        return self._detected > -np.inf and (self._duration > self._options.background_after or not background.is_idle)

    def _detect(self, detector: Detector, image_rgb: np.ndarray) -> list[Face]:
        start = perf_counter()
        faces = detector.detect(image_rgb)
        self._duration = perf_counter() - start
        return faces

    def _propagate(self, image_rgb: np.ndarray, time: float) -> list[_Track]:
        """Propagate the visible tracks; of two that end on one face, keep the one whose prediction fits better."""
        if not self._propagator:
            return []
        tracks = self._visible(self._time)
        faces = self._propagator.propagate(image_rgb, [self._propagation_input(track, time) for track in tracks])
        kept = [
            (track, face)
            for track, face in zip(tracks, faces, strict=True)
            if face.confidence >= _MIN_CONFIDENCE and overlap(track.face, face) >= _SAME_IOU
        ]
        scores = np.array([overlap(self._predicted(track, time), face) for track, face in kept])
        distinct = nms_min(_boxes(face for _, face in kept), scores, _DUPLICATE_OVERLAP)
        return [
            self._moved(track, face, _mean_box(track.anchor, face), time)
            for track, face in (kept[index] for index in distinct)
        ]

    def _detect_in_background(
        self, background: BackgroundDetector, image_rgb: np.ndarray, time: float, is_due: bool
    ) -> None:
        """Take the faces of an earlier image, and start the next detection if it is due."""
        faces = background.take()
        if faces is not None and self._pending is not None:
            self._merge(faces, self._pending, image_rgb, time)
        if is_due and background.is_idle:
            self._detected, self._pending = time, self._visible(time)
            background.start(lambda detector: self._detect(detector, image_rgb))
        self._redetect(image_rgb, time, most=1)

    def _merge(self, faces: Sequence[Face], then: Sequence[_Track], image_rgb: np.ndarray, time: float) -> None:
        """Confirm tracks by the faces of an earlier image, and propagate the other faces to this one.

        Args:
            faces: Faces of the earlier image.
            then: Visible tracks of that image.
            image_rgb: The current image.
            time: Its time in seconds.
        """
        confirmed = _match([[track.face] for track in then], faces, _CONFIRMED_IOU)
        now = {track.key: track for track in self._tracks}
        lost = [t for i, t in enumerate(then) if i not in confirmed.values() and t.key in now]
        self._replace([replace(t, hits=now[t.key].hits, track_id=now[t.key].track_id) for t in lost])
        here = {track.key: track for track in self._visible(time)}
        self._replace([self._hit(here[then[i].key]) for i in sorted(confirmed.values()) if then[i].key in here])
        others = [f for j, f in enumerate(faces) if j not in confirmed or then[confirmed[j]].key not in here]
        assert self._propagator
        moved = self._propagator.propagate(image_rgb, others)
        self._assign(self._untracked([face for face in moved if face.confidence >= _MIN_CONFIDENCE], time), time)
        missed = {track.key for track in then}
        self._tracks = [t for t in self._tracks if t.track_id or t.seen == time or t.key not in missed]

    def _redetect(self, image_rgb: np.ndarray, time: float, most: int | None = None) -> None:
        """Detect lost and tentative faces around their predicted places, at most `most`, longest-waiting first."""
        lost = [t for t in self._tracks if t.track_id and t.seen < time and time - t.searched >= _REDETECT_SECONDS]
        tentative = [t for t in self._visible(time) if not t.track_id and time - t.searched >= _CONFIRM_SECONDS]
        due = sorted([*lost, *tentative], key=lambda track: track.searched)[:most]
        due = [replace(track, searched=time) for track in due]
        self._replace(due)
        found: list[Face] = []
        for track in due:
            near = _detect_near(self._predicted(track, time), image_rgb, self._detector)
            if track.seen < time:
                found += near
            elif any(overlap(track.face, face) >= _CONFIRMED_IOU for face in near):
                self._replace([self._hit(track)])
        self._assign(self._untracked(found, time), time)

    def _untracked(self, faces: Sequence[Face], time: float) -> list[Face]:
        """Return the faces that no visible track is on, without duplicates."""
        visible = [track.face for track in self._visible(time)]
        faces = [face for face in faces if all(overlap(face, other) < _SAME_IOU for other in visible)]
        kept = nms(_boxes(faces), np.array([face.confidence for face in faces]), _SAME_IOU)
        return [faces[index] for index in kept]

    def _assign(self, faces: Sequence[Face], time: float) -> None:
        """Assign detected faces to the hidden tracks; start a new track for each remaining face."""
        tracks = [track for track in self._tracks if track.seen < time]
        places = [[track.face, self._predicted(track, time)] for track in tracks]  # it stopped, or moved on
        assigned = _match(places, faces, _SAME_IOU)
        recent = [i for i, t in enumerate(tracks) if t.seen == self._time and i not in assigned.values()]
        rest = [j for j in range(len(faces)) if j not in assigned]
        growth = min(1.0, _MAX_SPEED * (time - self._time))  # at low frame rates a face moves by its own width
        wide_places = [[_widened(face, growth) for face in places[i]] for i in recent]
        wide = _match(wide_places, [_widened(faces[j], growth) for j in rest], _SAME_IOU)
        assigned |= {rest[j]: recent[i] for j, i in wide.items()}
        moved = ((i, self._moved(tracks[i], faces[j], faces[j], time)) for j, i in assigned.items())
        self._replace([self._hit(track) for _, track in sorted(moved, key=lambda pair: pair[0])])
        for j, face in enumerate(faces):
            if j not in assigned:
                self._keys += 1
                self._tracks.append(self._hit(_Track(self._keys, face, time, face, searched=time)))

    def _hit(self, track: _Track) -> _Track:
        """Count a detection of a track, and confirm the track where it has enough."""
        hits = track.hits + 1
        if track.track_id or hits < self._options.min_hits:
            return replace(track, hits=hits)
        self._track_ids += 1
        return replace(track, hits=hits, track_id=self._track_ids)

    def _moved(self, track: _Track, face: Face, anchor: Face, time: float) -> _Track:
        """Return the track with its next face and velocity."""
        if track.seen < self._time:  # it was hidden: the box of an uncertain detection may jump
            return replace(track, face=face, seen=time, anchor=anchor, velocity=(0.0, 0.0))
        seconds = time - track.seen
        weight = 1 - math.exp(-seconds / _VELOCITY_SECONDS)
        steps = _centre(face) - _centre(track.face)
        x, y = (old + weight * (step / seconds - old) for old, step in zip(track.velocity, steps, strict=True))
        return replace(track, face=face, seen=time, anchor=anchor, velocity=(x, y))

    def _predicted(self, track: _Track, time: float, min_step: float = _MIN_STEP) -> Face:
        """Return the predicted place of a face that moves on and slows down; steps below `min_step` are ignored."""
        seconds = _COAST_SECONDS * (1 - math.exp(-(time - track.seen) / _COAST_SECONDS))
        x, y = (speed * seconds for speed in track.velocity)
        return _shifted(track.face, x, y) if math.hypot(x, y) >= min_step * track.face.height else track.face

    def _propagation_input(self, track: _Track, time: float) -> Face:
        """Return the box that propagation starts from; the anchor lags behind a moving face."""
        predicted = self._predicted(track, time, _MIN_FRAME_STEP)
        return track.anchor if predicted is track.face else predicted

    def _replace(self, tracks: Sequence[_Track]) -> None:
        by_key = {track.key: track for track in tracks}
        self._tracks = [by_key.get(track.key, track) for track in self._tracks]


def _match(places: Sequence[Sequence[Face]], faces: Sequence[Face], min_iou: float) -> dict[int, int]:
    """Match faces to tracks greedily, the largest intersection over union (IoU) first.

    `scipy.optimize.linear_sum_assignment` would find the largest sum, but takes 0.26 s to import, longer than all
    else before the first frame. It differs only where two faces overlap.

    Args:
        places: Possible places of each track's face.
        faces: The detected faces.
        min_iou: Minimum IoU of a match.

    Returns:
        Index of a face -> index of its track.
    """
    pairs = [
        (max(overlap(place, face) for place in alternatives), -i, j)
        for i, alternatives in enumerate(places)
        for j, face in enumerate(faces)
    ]
    assigned: dict[int, int] = {}
    for iou, i, j in sorted(pairs, reverse=True):
        if iou >= min_iou and j not in assigned and -i not in assigned.values():
            assigned[j] = -i
    return assigned


def _detect_near(face: Face, image_rgb: np.ndarray, detector: Detector) -> list[Face]:
    """Return the faces of the region around a face, detected in a reduced copy."""
    height, width = image_rgb.shape[:2]
    side = max(face.width, face.height)
    centre = _centre(face)
    left, top = (centre - _REGION * side / 2).astype(int).clip(0)
    right, bottom = (centre + _REGION * side / 2).astype(int).clip(0, (width, height))
    scale = min(1.0, _REGION_FACE / side)
    if min(right - left, bottom - top) * scale < 1:  # it has left the image
        return []
    region_rgb = image_rgb[top:bottom, left:right]
    if scale < 1:
        region_rgb = cv2.resize(region_rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return [_shifted(scaled(found, 1 / scale), left, top) for found in detector.detect(region_rgb)]


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


def _mean_box(first: Face, second: Face) -> Face:
    """Return the second face with the mean box of both."""
    left, top, width, height = (
        (getattr(first, side) + getattr(second, side)) / 2 for side in ("left", "top", "width", "height")
    )
    return replace(second, left=left, top=top, width=width, height=height)


def _widened(face: Face, share: float) -> Face:
    """Return a face with its box enlarged by a share of its size around its centre."""
    left, top = face.left - share * face.width / 2, face.top - share * face.height / 2
    return replace(face, left=left, top=top, width=(1 + share) * face.width, height=(1 + share) * face.height)


def _shifted(face: Face, x: float, y: float) -> Face:
    points = None if face.landmarks is None else face.landmarks + np.array([x, y], np.float32)
    return replace(face, left=face.left + x, top=face.top + y, landmarks=points)
