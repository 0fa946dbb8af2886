"""What a run comes to: for each face its expressions as spans of time, as a table and as a page to look at.

A span is a stretch of time in which a face shows one label. Spans are what stays of a long video: they are few where
frames are many, and they can be compared with what people noted down.
"""

import html
import math
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from common.emotions import COLORS, UNSURE
from common.files import atomic_file
from configuration import WEBCAM
from realtime.recognition import NOT_SURE, Result
from realtime.sinks.recording import Rows, csv_text, told

SPAN_COLUMNS = ("track_id", "start", "end", "label", "probability", "frames")


@dataclass(frozen=True)
class Segment:
    """A stretch of time in which a face shows one label.

    Attributes:
        face: The face's number.
        start: Seconds since the source's first frame.
        end: Seconds; the time of the first frame that does not belong to it any more.
        label: An emotion, or `unsure`.
        probability: Mean over its frames of the shown emotion's probability, 0-1.
        frames: Number of frames in which the face was seen.
    """

    face: int
    start: float
    end: float
    label: str
    probability: float
    frames: int


@dataclass
class _Open:
    label: str
    start: float
    last: float
    end: float | None  # None until the frame after the last one has come
    probability: float  # sum
    frames: int


class Spans:
    """Turns results, in the order of their time, into spans. Tentative faces are left out."""

    def __init__(self) -> None:
        self._open: dict[int, _Open] = {}
        self._interval = 0.0  # seconds between the last two frames

    def add(self, result: Result) -> list[Segment]:
        """Take up a frame and return the spans that it ends."""
        now = result.frame.time
        ended = []
        for each in self._open.values():
            if each.end is None:
                each.end = min(now, each.last + WEBCAM.past_gap)
                self._interval = each.end - each.last
        seen = {each.track_id: each for each in result.recognitions if each.track_id}
        for number, each in list(self._open.items()):
            has_changed = number in seen and seen[number].shown != each.label
            if has_changed or now - each.last > WEBCAM.span_gap + self._interval:
                ended.append(self._end(number))
        for number, recognition in seen.items():
            each = self._open.setdefault(number, _Open(recognition.shown, now, now, None, 0.0, 0))
            each.last, each.end = now, None
            each.probability += recognition.probability
            each.frames += 1
        return ended

    def finish(self) -> list[Segment]:
        """Return the spans that are open yet."""
        return [self._end(number) for number in list(self._open)]

    def _end(self, number: int) -> Segment:
        each = self._open.pop(number)
        end = each.last + self._interval if each.end is None else each.end
        return Segment(number, each.start, end, each.label, each.probability / each.frames, each.frames)


class SpanTable:
    """Writes a CSV with one row per span, in the order in which they end. A killed program loses the open ones alone.

    Columns: `track_id`, `start`, `end` (seconds since the first frame), `label` (an emotion, or `unsure`),
    `probability` (mean over the span's frames of the shown emotion's), `frames`.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, file: Path):
        self._spans = Spans()
        self._rows = Rows(f"--segments {file}", file)
        self._rows.write(csv_text([SPAN_COLUMNS]))

    def write(self, result: Result) -> None:
        """Take up a frame."""
        self._rows.write(csv_text(map(_row, self._spans.add(result))))

    def close(self) -> None:
        """Write the spans that are open yet, and close the file."""
        with closing(self._rows):
            self._rows.write(csv_text(map(_row, self._spans.finish())))


def _row(segment: Segment) -> list[object]:
    return [
        segment.face,
        f"{segment.start:.3f}",
        f"{segment.end:.3f}",
        segment.label,
        f"{segment.probability:.5f}",
        segment.frames,
    ]


class _Story:
    """A face's spans, 17 bytes each, so that an hour of flicker fits."""

    def __init__(self) -> None:
        self.starts, self.ends, self.labels = array("d"), array("d"), bytearray()
        self.seconds = 0.0

    def add(self, segment: Segment, label: int) -> None:
        self.starts.append(segment.start)
        self.ends.append(segment.end)
        self.labels.append(label)
        self.seconds += segment.end - segment.start

    def __iter__(self) -> Iterator[tuple[float, float, int]]:
        return zip(self.starts, self.ends, self.labels, strict=True)


class Summary:
    """Writes an HTML page, complete in itself, when the run ends: who was seen when, and with what expressions.

    Args:
        file: The page to write.
        labels: The emotions, in class order.
        source: What a person calls the source.
        model: What a person calls the network.
    """

    def __init__(self, file: Path, labels: Sequence[str], source: str, model: str = ""):
        self._file, self._source, self._model = file, source, model
        self._labels = (*labels, NOT_SURE)
        self._spans = Spans()
        self._stories: dict[int, _Story] = {}
        self._frames, self._end = 0, 0.0

    def write(self, result: Result) -> None:
        """Take up a frame."""
        self._frames += 1
        self._end = max(self._end, result.frame.time)
        self._keep(self._spans.add(result))

    def close(self) -> None:
        """Write the page.

        Raises:
            InputError: the file cannot be written.
        """
        self._keep(self._spans.finish())
        with told(f"--summary {self._file}"), atomic_file(self._file) as temporary:
            temporary.write_text(self._page(), encoding="utf-8")

    def _keep(self, segments: list[Segment]) -> None:
        for segment in segments:
            self._end = max(self._end, segment.end)
            self._stories.setdefault(segment.face, _Story()).add(segment, self._labels.index(segment.label))

    def _page(self) -> str:
        longest = sorted(self._stories, key=lambda number: self._stories[number].seconds, reverse=True)
        shown = sorted(longest[: WEBCAM.summary_faces])
        left_out = longest[WEBCAM.summary_faces :]
        facts = [f"{clock(self._end)} long", _count(self._frames, "frame"), _count(len(self._stories), "face")]
        facts += [f"network {self._model}"] if self._model else []
        parts = [f"<h1>Expressions in {html.escape(self._source)}</h1>", f"<p>{html.escape(', '.join(facts))}.</p>"]
        if not shown:
            parts.append("<p>No face was seen.</p>")
        else:
            parts.append(self._legend())
            parts.append("<h2>Who was seen when</h2>" + self._overview(shown))
        if left_out:
            most = self._stories[left_out[0]].seconds
            parts.append(f"<p>Not shown: {_count(len(left_out), 'face')} more, each seen for {most:.1f} s or less.</p>")
        parts += [self._face(number) for number in shown]
        parts.append(
            "<p class='note'>A face's number stays while the face is followed; somebody who leaves and comes back gets "
            "another one. The labels say what faces look like to a network, not what people feel.</p>"
        )
        title = html.escape(f"Expressions in {self._source}")
        return (
            "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
            "<meta name='viewport' content='width=device-width, initial-scale=1'>"
            f"<title>{title}</title><style>{_STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
        )

    def _legend(self) -> str:
        items = [f"<span><i style='background:{_color(label)}'></i>{label}</span>" for label in self._labels]
        return f"<p class='legend'>{' '.join(items)}</p>"

    def _overview(self, numbers: list[int]) -> str:
        start, end = 0.0, max(self._end, 1e-3)
        rows = [f"face {number}" for number in numbers]
        bars = [
            (row, left, right, label)
            for row, number in enumerate(numbers)
            for left, right, label in self._columns(self._stories[number], start, end)
        ]
        return self._chart(rows, bars, start, end, "When each face was seen; the colour is its expression.")

    def _face(self, number: int) -> str:
        story = self._stories[number]
        start, end = story.starts[0], max(story.ends[-1], story.starts[0] + 1e-3)
        changes = sum(before != after for before, after in zip(story.labels, story.labels[1:], strict=False))
        seconds = [0.0] * len(self._labels)
        for left, right, label in story:
            seconds[label] += right - left
        total = max(story.seconds, 1e-9)
        bars = [(label, left, right, label) for left, right, label in self._columns(story, start, end)]
        main = max(range(len(seconds)), key=seconds.__getitem__)
        told_of = f"Face {number}: mostly {self._labels[main]}, {seconds[main] / total:.0%} of the time."
        rows = "".join(
            f"<tr><th scope='row'><i style='background:{_color(label)}'></i>{label}</th>"
            f"<td>{spent:.1f} s</td><td>{spent / total:.1%}</td></tr>"
            for label, spent in zip(self._labels, seconds, strict=True)
            if spent > 0
        )
        per_minute = f" ({60 * changes / total:.1f} per minute)" if total >= 10 else ""
        return (
            f"<section><h2>Face {number}</h2>"
            f"<p>Seen from {clock(story.starts[0])} to {clock(story.ends[-1])}, {story.seconds:.1f} s in all; "
            f"{_count(changes, 'change')} of expression{per_minute}.</p>"
            f"{self._chart(list(self._labels), bars, start, end, told_of)}"
            f"<table><thead><tr><th>Expression</th><th>Time</th><th>Share</th></tr></thead>"
            f"<tbody>{rows}</tbody></table></section>"
        )

    def _columns(self, story: _Story, start: float, end: float) -> Iterator[tuple[float, float, int]]:
        """Yield a story's spans, those too short to be seen merged: per step the label shown longest in it."""
        step = (end - start) / _STEPS
        if len(story.starts) <= _STEPS // 4:
            yield from story
            return
        shares = [[0.0] * len(self._labels) for _ in range(_STEPS)]
        for left, right, label in story:
            first, last = int((left - start) / step), min(_STEPS - 1, int((right - start) / step))
            for index in range(first, last + 1):
                overlap = min(right, start + (index + 1) * step) - max(left, start + index * step)
                shares[index][label] += max(0.0, overlap)
        merged: list[tuple[float, float, int]] = []
        for index, share in enumerate(shares):
            label = max(range(len(share)), key=share.__getitem__)
            left, right = start + index * step, start + (index + 1) * step
            if share[label] <= 0:
                continue
            if merged and merged[-1][2] == label and math.isclose(merged[-1][1], left, abs_tol=step / 1000):
                merged[-1] = (merged[-1][0], right, label)
            else:
                merged.append((left, right, label))
        yield from merged

    def _chart(
        self, rows: list[str], bars: list[tuple[int, float, float, int]], start: float, end: float, description: str
    ) -> str:
        """Draw bars in named rows over time: what a bar says is told by its row, its colour says it again."""
        height = _ROW * len(rows)
        scale = (_WIDTH - _MARGIN - 10) / (end - start)
        parts = []
        for index, row in enumerate(rows):
            y = index * _ROW
            parts.append(
                f"<rect x='{_MARGIN}' y='{y + 1}' width='{_WIDTH - _MARGIN - 10}' height='{_ROW - 2}' class='lane'/>"
            )
            parts.append(f"<text x='{_MARGIN - 6}' y='{y + _ROW - 5}' text-anchor='end'>{html.escape(row)}</text>")
        for row, left, right, label in bars:
            x, width = _MARGIN + (left - start) * scale, max((right - left) * scale, 0.8)
            name = self._labels[label]
            parts.append(
                f"<rect x='{x:.1f}' y='{row * _ROW + 2}' width='{width:.1f}' height='{_ROW - 4}' class='bar' "
                f"fill='{_color(name)}'><title>{name} {clock(left)}-{clock(right)}</title></rect>"
            )
        for tick in ticks(start, end):
            x = _MARGIN + (tick - start) * scale
            parts.append(f"<path d='M{x:.1f} {height}v4' class='tick'/>")
            if x > _WIDTH - 25:  # centred, it would be cut by the picture's edge
                x, anchor = _WIDTH - 1, "end"
            else:
                anchor = "middle"
            parts.append(f"<text x='{x:.1f}' y='{height + 17}' text-anchor='{anchor}'>{clock(tick)}</text>")
        return (
            f"<svg viewBox='0 0 {_WIDTH} {height + 24}' role='img' aria-label='{html.escape(description)}'>"
            f"{''.join(parts)}</svg>"
        )


_WIDTH, _MARGIN, _ROW = 900, 90, 18  # of a chart: its width, the place of the rows' names, a row's height
_STEPS = 800  # of the time axis, where there are more spans than can be seen
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;"
    "background:#fff}h2{margin:2rem 0 .3rem}svg{width:100%;height:auto}svg text{font-size:12px;fill:#222}"
    ".lane{fill:#f1f1f1}.bar{stroke:#444;stroke-width:.4}.tick{stroke:#222}table{border-collapse:collapse}"
    "th,td{padding:.1rem .9rem .1rem 0;text-align:left;font-weight:normal}td{text-align:right}"
    "i{display:inline-block;width:.9em;height:.9em;margin-right:.4em;border:1px solid #444}"
    ".legend span{margin-right:1rem;white-space:nowrap}.note{color:#555;margin-top:2rem}"
)


def _color(label: str) -> str:
    red, green, blue = COLORS.get(label, UNSURE)
    return f"#{red:02x}{green:02x}{blue:02x}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def clock(seconds: float) -> str:
    """Return a time as one reads it on a clock: 0:07.5, 12:03, 1:02:03."""
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    digits = f"{rest:04.1f}" if rest % 1 else f"{int(rest):02d}"
    return f"{hours}:{minutes:02d}:{digits}" if hours else f"{minutes}:{digits}"


def ticks(start: float, end: float) -> list[float]:
    """Return round times between two, about eight of them."""
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)
    step = next((step for step in steps if (end - start) / step <= 9), math.ceil((end - start) / 9 / 86400) * 86400)
    first, last = math.ceil(start / step - 1e-9), math.floor(end / step + 1e-9)
    return [index * step for index in range(first, last + 1)]
