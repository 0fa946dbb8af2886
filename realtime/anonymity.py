"""Hiding faces, so that a recording can be shown or kept without showing whom it shows.

A hidden face is replaced by a few plain cells, each the mean colour of its part: from the picture alone nobody can
undo that. What is hidden is the face; clothes, hair beyond it, the place and the way of moving stay to be seen.
"""

from collections import deque
from dataclasses import replace

import cv2
import numpy as np

from configuration import WEBCAM
from preprocessing.faces import Face
from realtime.recognition import Recognition, Result


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
        while self._passed and not 0 <= time - self._passed[0].frame.time <= WEBCAM.hidden_after:
            self._passed.popleft()
        near = [*self._passed, *self._waiting]  # by their times
        hidden = _hide(result, _areas(result, near), known)
        self._passed.append(replace(result, frame=replace(result.frame, image_bgr=np.empty((0, 0, 3), np.uint8))))
        return hidden


def _areas(result: Result, near: list[Result]) -> list[tuple[int, Face]]:
    """Return the number and the place of every face of a frame, and of those that only its neighbours show."""
    areas = [(each.number, _grown(each.face, WEBCAM.hidden_margin)) for each in result.recognitions]
    here = {number for number, _ in areas if number}
    missing: dict[int, list[tuple[float, Recognition]]] = {}
    for other in near:
        for each in other.recognitions:
            if each.number not in here:
                missing.setdefault(each.number, []).append((other.frame.time - result.frame.time, each))
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
            _coarsen(hidden_bgr, area)
    for each in result.recognitions:
        if known and each.number == known:  # seen here and now, whatever was hidden over it
            part = _part(image_bgr, each.face)
            hidden_bgr[part] = image_bgr[part]
    return replace(result, frame=replace(result.frame, image_bgr=hidden_bgr))


def _part(image_bgr: np.ndarray, area: Face) -> tuple[slice, slice]:
    """Return the rows and columns of a picture that an area covers; none where it lies outside."""
    height, width = image_bgr.shape[:2]
    right, bottom = area.left + area.width, area.top + area.height
    return (
        slice(max(0, int(area.top)), max(0, min(height, int(bottom) + 1))),
        slice(max(0, int(area.left)), max(0, min(width, int(right) + 1))),
    )


def _coarsen(image_bgr: np.ndarray, area: Face) -> None:
    """Replace an area by plain cells, in place."""
    part = _part(image_bgr, area)
    part_bgr = image_bgr[part]
    height, width = part_bgr.shape[:2]
    if height and width:
        cells = (min(WEBCAM.hidden_cells, width), min(WEBCAM.hidden_cells, height))
        coarse_bgr = cv2.resize(part_bgr, cells, interpolation=cv2.INTER_AREA)
        image_bgr[part] = cv2.resize(coarse_bgr, (width, height), interpolation=cv2.INTER_NEAREST)
