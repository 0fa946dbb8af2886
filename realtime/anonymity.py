"""Hide faces in recordings and in the window.

Each face is covered by a solid fill, which does not depend on the pixels below it. So no number of frames reveals the
face; a blur or mosaic would. Undetected faces, clothes, hair outside the box, place and gait stay visible.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from configuration import WEBCAM
from inference.faces import Face
from realtime.recognition import Recognition, Result

HIDDEN_MARGIN = 0.3  # share of a face's box that is covered around it on every side
MAX_DELAYED = 90  # frames held back at most
NO_PIXELS = np.empty((0, 0, 3), np.uint8)  # the image of a result that is kept without it
_FILL = (96, 96, 96)  # BGR
_MAX_NEAR = 240  # frames before and after a frame that are looked at: a second at the highest frame rate
_MIN_PASSED = 3  # frames after a lost face in which its place stays covered, however slow the source is


class Anonymizer:
    """Covers the faces of a run, also shortly before they are detected and after they are lost.

    It delays frames by `WEBCAM.hidden_before` seconds to know the detections that follow.

    Args:
        still: The frames are images, which are independent of each other.
    """

    def __init__(self, still: bool = False):
        self._still = still
        self._waiting: deque[Result] = deque()
        self._passed: deque[Result] = deque()  # without images

    def add(self, result: Result, known: int = 0) -> list[Result]:
        """Add a frame.

        Args:
            result: The newest result.
            known: Track ID of the face that stays visible; 0: none.

        Returns:
            The results that are ready, with covered faces.
        """
        if self._still:
            return [_hide(result, _areas(result, []), known)]
        self._waiting.append(result)
        ready = []
        while self._is_due(result.frame.time):
            ready.append(self._next(known))
        return ready

    def finish(self, known: int = 0) -> list[Result]:
        """Return the results that are still delayed."""
        return [self._next(known) for _ in range(len(self._waiting))]

    def _is_due(self, now: float) -> bool:
        return bool(self._waiting) and (
            now - self._waiting[0].frame.time >= WEBCAM.hidden_before or len(self._waiting) > MAX_DELAYED
        )

    def _next(self, known: int) -> Result:
        result = self._waiting.popleft()
        time = result.frame.time
        while len(self._passed) > _MIN_PASSED and not 0 <= time - self._passed[0].frame.time <= WEBCAM.hidden_after:
            self._passed.popleft()
        hidden = _hide(result, _areas(result, [*self._passed, *self._waiting]), known)
        self._passed.append(with_image(result, NO_PIXELS))
        return hidden


def cover(result: Result, place: int, results: Sequence[Result]) -> Result:
    """Cover the faces of any frame of a video, as `Anonymizer` does.

    Args:
        result: The frame.
        place: Its place in the video.
        results: The results of the whole video; their images are not used.
    """
    time, last = result.frame.time, place - _MIN_PASSED
    near = [
        results[other]
        for other in range(max(0, place - _MAX_NEAR), min(len(results), place + _MAX_NEAR))
        if other != place
        and (last <= other < place or -WEBCAM.hidden_after <= results[other].frame.time - time <= WEBCAM.hidden_before)
    ]
    return _hide(result, _areas(result, near), 0)


def _areas(result: Result, neighbours: list[Result]) -> list[tuple[int, Face]]:
    """Return track ID and area of each face of a frame, and of faces that only neighbouring frames show.

    Args:
        result: The frame.
        neighbours: Frames before and after it, in the order of their times.
    """
    areas = [(each.track_id, _grown(each.face, HIDDEN_MARGIN)) for each in result.recognitions]
    here = {track_id for track_id, _ in areas if track_id}
    missing: defaultdict[int, list[tuple[float, Recognition]]] = defaultdict(list)
    for other in neighbours:
        for each in other.recognitions:
            if each.track_id not in here:
                missing[each.track_id].append((other.frame.time - result.frame.time, each))
    for track_id, seen in missing.items():
        if track_id:  # the last place before, and the first one after
            seen = [*[each for each in seen if each[0] <= 0][-1:], *[each for each in seen if each[0] > 0][:1]]
        places = [_grown(each.face, HIDDEN_MARGIN * (1 + abs(distance))) for distance, each in seen]
        areas += [(track_id, place) for place in ([_joined(places)] if track_id else places)]
    return areas


def _grown(face: Face, share: float) -> Face:
    across, down = share * face.width, share * face.height
    return Face(face.left - across, face.top - down, face.width + 2 * across, face.height + 2 * down, face.confidence)


def _joined(faces: list[Face]) -> Face:
    left, top = min(face.left for face in faces), min(face.top for face in faces)
    right, bottom = max(face.left + face.width for face in faces), max(face.top + face.height for face in faces)
    return Face(left, top, right - left, bottom - top, faces[0].confidence)


def _hide(result: Result, areas: list[tuple[int, Face]], known: int) -> Result:
    image_bgr = result.frame.image_bgr
    hidden_bgr = image_bgr.copy()
    _fill(hidden_bgr, (area for track_id, area in areas if not known or track_id != known))
    if known:  # uncover the known face in this frame, then cover the other faces of this frame again
        for each in result.recognitions:
            if each.track_id == known:
                part = _part(image_bgr, each.face)
                hidden_bgr[part] = image_bgr[part]
        _fill(hidden_bgr, (each.face for each in result.recognitions if each.track_id != known))
    return with_image(result, hidden_bgr)


def with_image(result: Result, image_bgr: np.ndarray) -> Result:
    """Return a result with another image."""
    return replace(result, frame=replace(result.frame, image_bgr=image_bgr))


def _fill(image_bgr: np.ndarray, areas: Iterable[Face]) -> None:
    for area in areas:
        image_bgr[_part(image_bgr, area)] = _FILL


def _part(image_bgr: np.ndarray, area: Face) -> tuple[slice, slice]:
    """Return the rows and columns of an area within an image."""
    height, width = image_bgr.shape[:2]
    right, bottom = area.left + area.width, area.top + area.height
    return (
        slice(max(0, int(area.top)), max(0, min(height, int(bottom) + 1))),
        slice(max(0, int(area.left)), max(0, min(width, int(right) + 1))),
    )
