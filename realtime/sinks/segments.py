"""Segments: stretches of time in which a face shows one label."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from realtime.recognition import Result
from realtime.sinks.files import RowFile
from realtime.sinks.log import csv_text

SEGMENT_COLUMNS = ("track_id", "start", "end", "label", "probability", "frames")
MAX_INTERVAL = 1.0  # seconds: a segment lasts at most this long after its last frame when no frames come
_MAX_GAP = 0.5  # seconds: a segment continues over a gap in which its face is not detected


@dataclass(frozen=True, slots=True)  # a long run has many segments
class Segment:
    """A stretch of time in which a face shows one label.

    Attributes:
        track_id: Track of the face, from 1.
        start: Seconds since the first frame of the source.
        end: Seconds; time of the first frame that is not part of the segment.
        label: An emotion, or `unsure`.
        probability: Mean probability of the label shown over its frames, 0-1.
        frames: Number of frames in which the face was detected.
    """

    track_id: int
    start: float
    end: float
    label: str
    probability: float
    frames: int


@dataclass
class _OpenSegment:
    label: str
    start: float
    last: float
    end: float | None = None  # None until the frame after the last one has come
    probability: float = 0.0  # sum
    frames: int = 0


class Segmenter:
    """Turn results, in temporal order, into segments. Tentative faces are left out."""

    def __init__(self) -> None:
        self._open: dict[int, _OpenSegment] = {}
        self._interval = 0.0  # seconds between the last two frames

    def add(self, result: Result) -> list[Segment]:
        """Add a frame and return the segments that it ends."""
        now = result.frame.time
        for each in self._open.values():
            if each.end is None:
                each.end = min(now, each.last + MAX_INTERVAL)
                self._interval = each.end - each.last
        seen = {each.track_id: each for each in result.recognitions if each.track_id}
        ended = []
        for track_id, each in list(self._open.items()):
            has_changed = track_id in seen and seen[track_id].shown != each.label
            if has_changed or now - each.last > _MAX_GAP + self._interval:
                ended.append(self._end(track_id))
        for track_id, recognition in seen.items():
            each = self._open.setdefault(track_id, _OpenSegment(recognition.shown, now, now))
            each.last, each.end = now, None
            each.probability += recognition.probability
            each.frames += 1
        return ended

    def finish(self) -> list[Segment]:
        """End and return all open segments."""
        return [self._end(track_id) for track_id in list(self._open)]

    def _end(self, track_id: int) -> Segment:
        each = self._open.pop(track_id)
        end = each.last + self._interval if each.end is None else each.end
        return Segment(track_id, each.start, end, each.label, each.probability / each.frames, each.frames)


class SegmentTable:
    """Sink that writes one row per segment when the segment ends. A killed program loses only open segments.

    Columns: the attributes of `Segment`.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, file: Path):
        self._segmenter = Segmenter()
        self._rows = RowFile(f"--segments {file}", file)
        self._rows.write(csv_text([SEGMENT_COLUMNS]))

    def write(self, result: Result) -> None:
        """Add a frame."""
        self._write(self._segmenter.add(result))

    def _write(self, segments: list[Segment]) -> None:
        self._rows.write(
            csv_text(
                [
                    each.track_id,
                    f"{each.start:.3f}",
                    f"{each.end:.3f}",
                    each.label,
                    f"{each.probability:.5f}",
                    each.frames,
                ]
                for each in segments
            )
        )

    def close(self) -> None:
        """Write the open segments and close the file."""
        with closing(self._rows):
            self._write(self._segmenter.finish())
