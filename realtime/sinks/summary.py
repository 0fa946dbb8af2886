"""Summary page: timeline of each face's expressions, their shares of time, and the number of changes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.command_line import counted
from common.emotions import css_color
from common.files import atomic_file
from realtime.recognition import NOT_SURE, Result
from realtime.sinks.files import write_errors
from realtime.sinks.segments import Segment, Segmenter

MAX_FACES = 40  # faces on the page, those seen longest
_BINS = 800  # of a chart's time axis, where a face has too many segments to be seen one by one
_TICK_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)


class Bar(NamedTuple):
    """Bar of a chart: its row, its times in seconds, and its label."""

    row: int
    start: float
    end: float
    label: str


@dataclass(frozen=True)
class FaceTimeline:
    """Expressions of one face over time.

    Attributes:
        track_id: Track of the face.
        start: Seconds; start of the first segment.
        end: Seconds; end of the last segment.
        changes: Number of changes of the label.
        label_seconds: Seconds of each label, in class order, `unsure` last.
        bars: Bars of the face's chart, one row per label.
    """

    track_id: int
    start: float
    end: float
    changes: int
    label_seconds: dict[str, float]
    bars: list[Bar]

    @property
    def seconds(self) -> float:
        """Total length of the segments."""
        return sum(self.label_seconds.values())

    @property
    def main_label(self) -> str:
        """Label shown longest."""
        return max(self.label_seconds, key=self.label_seconds.__getitem__)


@dataclass(frozen=True)
class Timeline:
    """Content of the summary page.

    Attributes:
        seconds: Length of the source.
        faces: Timelines of the faces shown, by track ID.
        overview: Bars of the overview chart, one row per face shown.
        hidden_faces: Number of faces that are not shown.
        longest_hidden: Seconds of the longest timeline that is not shown; 0 where all are.
    """

    seconds: float
    faces: list[FaceTimeline]
    overview: list[Bar]
    hidden_faces: int
    longest_hidden: float


def compute_timeline(segments: Sequence[Segment], labels: Sequence[str], seconds: float) -> Timeline:
    """Return the content of the summary page.

    Args:
        segments: All segments of the run.
        labels: The emotions, in class order, and `unsure`.
        seconds: Length of the source.
    """
    by_face: dict[int, list[Segment]] = {}
    for segment in sorted(segments, key=lambda each: each.start):
        by_face.setdefault(segment.track_id, []).append(segment)
    timelines = sorted(
        (_face_timeline(each, labels) for each in by_face.values()), key=lambda each: each.seconds, reverse=True
    )
    shown, hidden = sorted(timelines[:MAX_FACES], key=lambda each: each.track_id), timelines[MAX_FACES:]
    overview = [
        Bar(row, *bar)
        for row, face in enumerate(shown)
        for bar in _visible_bars(by_face[face.track_id], labels, 0.0, max(seconds, 1e-3))
    ]
    return Timeline(seconds, shown, overview, len(hidden), hidden[0].seconds if hidden else 0.0)


def _face_timeline(segments: list[Segment], labels: Sequence[str]) -> FaceTimeline:
    start, end = segments[0].start, max(segments[-1].end, segments[0].start + 1e-3)
    changes = sum(before.label != after.label for before, after in pairwise(segments))
    seconds = {label: sum(each.end - each.start for each in segments if each.label == label) for label in labels}
    bars = [Bar(labels.index(bar[2]), *bar) for bar in _visible_bars(segments, labels, start, end)]
    return FaceTimeline(segments[0].track_id, start, end, changes, seconds, bars)


def _visible_bars(
    segments: list[Segment], labels: Sequence[str], start: float, end: float
) -> Iterator[tuple[float, float, str]]:
    """Yield start, end and label of the segments; where they are too many, of bins with their longest label."""
    if len(segments) <= _BINS // 4:
        yield from ((each.start, each.end, each.label) for each in segments)
        return
    edges = np.linspace(start, end, _BINS + 1)
    seconds = np.zeros((len(labels), _BINS))
    for each in segments:
        overlap = np.minimum(each.end, edges[1:]) - np.maximum(each.start, edges[:-1])
        seconds[labels.index(each.label)] += overlap.clip(0)
    longest = np.where(seconds.max(axis=0) > 0, seconds.argmax(axis=0), -1)
    for index, run in groupby(range(_BINS), key=lambda place: int(longest[place])):
        places = list(run)
        if index >= 0:
            yield float(edges[places[0]]), float(edges[places[-1] + 1]), labels[index]


class SummaryPage:
    """Sink that writes a self-contained HTML page when the run ends.

    Args:
        file: Page to write.
        labels: The emotions, in class order.
        source: Name of the source.
        model: Name of the network; empty to leave it out.
    """

    def __init__(self, file: Path, labels: Sequence[str], source: str, model: str = ""):
        self._file, self._labels = file, (*labels, NOT_SURE)
        self._source, self._model = source, model
        self._segmenter = Segmenter()
        self._segments: list[Segment] = []
        self._frames, self._end = 0, 0.0

    def write(self, result: Result) -> None:
        """Add a frame."""
        self._frames += 1
        self._end = max(self._end, result.frame.time)
        self._segments += self._segmenter.add(result)

    def close(self) -> None:
        """Write the page.

        Raises:
            InputError: the file cannot be written.
        """
        self._segments += self._segmenter.finish()
        seconds = max([self._end, *(segment.end for segment in self._segments)])
        timeline = compute_timeline(self._segments, self._labels, seconds)
        page = render_page(timeline, self._labels, self._frames, self._source, self._model)
        with write_errors(f"--summary {self._file}"), atomic_file(self._file) as temporary:
            temporary.write_text(page, encoding="utf-8")


def render_page(timeline: Timeline, labels: Sequence[str], frames: int, source: str, model: str) -> str:
    """Return the HTML page.

    Args:
        timeline: Content of the page.
        labels: The emotions, in class order, and `unsure`.
        frames: Number of frames.
        source: Name of the source.
        model: Name of the network; empty to leave it out.
    """
    import jinja2  # imported late: a run without a summary starts faster

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"clock": clock, "counted": counted}
    colors = {label: css_color(label) for label in labels}
    names = [f"face {face.track_id}" for face in timeline.faces]
    values = {"timeline": timeline, "face_names": names, "labels": labels, "colors": colors, "ticks": ticks}
    return environment.get_template("summary.html").render(values, frames=frames, source=source, model=model)


def clock(seconds: float) -> str:
    """Return a time as minutes and seconds, with hours where needed: 0:07.5, 12:03, 1:02:03."""
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    digits = f"{rest:04.1f}" if rest % 1 else f"{int(rest):02d}"
    return f"{hours}:{minutes:02d}:{digits}" if hours else f"{minutes}:{digits}"


def ticks(start: float, end: float) -> list[float]:
    """Return at most ten round times between two times, in seconds."""
    days = math.ceil((end - start) / 9 / 86400) * 86400
    step = next((step for step in _TICK_STEPS if (end - start) / step <= 9), days)
    first, last = math.ceil(start / step - 1e-9), math.floor(end / step + 1e-9)
    return [index * step for index in range(first, last + 1)]
