"""Hiding faces, so that a recording can be shown or kept without showing whom it shows.

A hidden face is covered by a solid fill of one fixed colour. The fill does not depend on the pixels below it, so no
number of frames reveals the face; averages or blocks of its pixels would. Faces that the detector misses stay visible,
and so do clothes, hair beyond the box, the place and the way of moving.
"""

from collections import deque
from dataclasses import replace

import numpy as np

from configuration import WEBCAM
from inference.faces import Face
from realtime.recognition import Recognition, Result

_FILL = (96, 96, 96)  # BGR
_LEAST = 3  # frames after a face is lost in which its place stays hidden, however slow the source is


class Anonymizer:
    """Hides the faces of a run's frames, also shortly before they are found and after they are lost.

    To know what will be found, it holds frames back for `WEBCAM.hidden_before` seconds.

    Args:
        still: The frames are single pictures, which have nothing to do with each other.
    """

    def __init__(self, still: bool = False):
        self._still = still
        self._waiting: deque[Result] = deque()
        self._passed: deque[Result] = deque()  # of the last seconds; their pictures are not kept

    def add(self, result: Result, known: int = 0) -> list[Result]:
        """Take up a frame's result.

        Args:
            result: The newest one.
            known: Number of the face that stays to be seen; 0: none does.

        Returns:
            Those results that were held back long enough, in a frame that hides the faces.
        """
        if self._still:
            return [_hide(result, _areas(result, []), known)]
        self._waiting.append(result)
        ready = []
        while self._is_due(result.frame.time):
            ready.append(self._next(known))
        return ready

    def finish(self, known: int = 0) -> list[Result]:
        """Return what is still held back."""
        return [self._next(known) for _ in range(len(self._waiting))]

    def _is_due(self, now: float) -> bool:
        return bool(self._waiting) and (
            now - self._waiting[0].frame.time >= WEBCAM.hidden_before or len(self._waiting) > WEBCAM.hidden_frames
        )

    def _next(self, known: int) -> Result:
        result = self._waiting.popleft()
        time = result.frame.time
        while len(self._passed) > _LEAST and not 0 <= time - self._passed[0].frame.time <= WEBCAM.hidden_after:
            self._passed.popleft()
        near = [*self._passed, *self._waiting]  # by their times
        hidden = _hide(result, _areas(result, near), known)
        self._passed.append(replace(result, frame=replace(result.frame, image_bgr=np.empty((0, 0, 3), np.uint8))))
        return hidden


def _areas(result: Result, near: list[Result]) -> list[tuple[int, Face]]:
    """Return the number and the place of every face of a frame, and of those that only its neighbours show."""
    areas = [(each.track_id, _grown(each.face, WEBCAM.hidden_margin)) for each in result.recognitions]
    here = {number for number, _ in areas if number}
    missing: dict[int, list[tuple[float, Recognition]]] = {}
    for other in near:
        for each in other.recognitions:
            if each.track_id not in here:
                missing.setdefault(each.track_id, []).append((other.frame.time - result.frame.time, each))
    for number, seen in missing.items():
        if number:  # the last place before, and the first one after
            seen = [*[each for each in seen if each[0] <= 0][-1:], *[each for each in seen if each[0] > 0][:1]]
        places = [_grown(each.face, WEBCAM.hidden_margin * (1 + abs(distance))) for distance, each in seen]
        areas += [(number, place) for place in (places if not number else [_joined(places)])]
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
    for number, area in areas:
        if not known or number != known:
            hidden_bgr[_part(image_bgr, area)] = _FILL
    if known:  # seen here and now, whatever was hidden over it, but for the other faces of this frame
        for each in result.recognitions:
            if each.track_id == known:
                part = _part(image_bgr, each.face)
                hidden_bgr[part] = image_bgr[part]
        for each in result.recognitions:
            if each.track_id != known:
                hidden_bgr[_part(image_bgr, each.face)] = _FILL
    return replace(result, frame=replace(result.frame, image_bgr=hidden_bgr))


def _part(image_bgr: np.ndarray, area: Face) -> tuple[slice, slice]:
    """Return the rows and columns of a picture that an area covers; none where it lies outside."""
    height, width = image_bgr.shape[:2]
    right, bottom = area.left + area.width, area.top + area.height
    return (
        slice(max(0, int(area.top)), max(0, min(height, int(bottom) + 1))),
        slice(max(0, int(area.left)), max(0, min(width, int(right) + 1))),
    )
