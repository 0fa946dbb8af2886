import csv
import itertools
import random
import re
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import ROOT
from realtime_fakes import LABELS, recognition, result

from common.emotions import COLORS
from configuration import WEBCAM
from realtime.sinks.summary import Spans, SpanTable, Summary, clock, ticks

BLACK = np.zeros((4, 4, 3), np.uint8)


def frame(time, **labels):
    """One frame; `f1="anger"` is face 1 with that label, `f2="unsure"` face 2 without a sure one."""
    seen = [
        recognition(label="anger" if label == "unsure" else label, track_id=int(name[1:]), unsure=label == "unsure")
        for name, label in labels.items()
        if label
    ]
    return result(BLACK, *seen, index=round(time * 10), time=time)


def spans_of(frames):
    segments = Spans()
    return [segment for each in frames for segment in segments.add(each)] + segments.finish()


def test_spans_end_where_the_label_changes_and_where_the_face_goes():
    labels = ["anger"] * 4 + ["neutral"] * 3 + ["unsure"] * 2 + [None] * 11
    first, second, third = spans_of([frame(index / 10, f1=label) for index, label in enumerate(labels)])
    assert (first.face, first.label, first.start, first.frames) == (1, "anger", 0.0, 4)
    assert [segment.label for segment in (first, second, third)] == ["anger", "neutral", "unsure"]
    assert [segment.end for segment in (first, second, third)] == pytest.approx([0.4, 0.7, 0.9])
    assert [second.start, third.start] == pytest.approx([0.4, 0.7])
    assert first.probability == pytest.approx(0.7)


def test_an_expression_goes_on_over_a_short_gap_but_not_over_a_long_one():
    labels = ["anger"] * 3 + [None] * 3 + ["anger"] * 3 + [None] * 9 + ["anger"] * 2
    first, second = spans_of([frame(index / 10, f1=label) for index, label in enumerate(labels)])
    assert (first.start, first.end, first.frames) == (0.0, pytest.approx(0.9), 6)
    assert (second.start, second.end) == (pytest.approx(1.8), pytest.approx(2.0))


def test_a_camera_that_was_away_does_not_make_an_expression_last():
    first, second = spans_of([frame(0.0, f1="anger"), frame(0.1, f1="anger"), frame(60.0, f1="anger")])
    assert first.end == pytest.approx(0.1 + WEBCAM.past_gap)
    assert second.start == 60.0


def test_faces_have_their_own_spans_and_those_without_a_number_none():
    frames = [frame(index / 10, f1="anger", f2="neutral" if index % 2 else "anger", f0="anger") for index in range(6)]
    segments = spans_of(frames)
    assert sorted({segment.face for segment in segments}) == [1, 2]
    assert [segment.frames for segment in segments if segment.face == 1] == [6]
    assert [segment.frames for segment in segments if segment.face == 2] == [1] * 6


def test_the_seconds_of_all_spans_are_those_in_which_the_face_was_seen():
    choose = random.Random(5)
    labels = [choose.choice([*LABELS, "unsure"]) for _ in range(300)]
    segments = spans_of([frame(index / 10, f1=label) for index, label in enumerate(labels)])
    for label in (*LABELS, "unsure"):
        seconds = sum(segment.end - segment.start for segment in segments if segment.label == label)
        assert seconds == pytest.approx(labels.count(label) / 10)
    assert len(segments) == 1 + sum(a != b for a, b in itertools.pairwise(labels))


def test_each_span_is_written_as_it_ends(tmp_path):
    file = tmp_path / "spans.csv"
    table = SpanTable(file)
    for index, label in enumerate(["anger", "anger", "neutral", "unsure"]):
        table.write(frame(index / 10, f7=label))
    assert len(file.read_text().splitlines()) == 3, "the header and the two that have ended"
    table.close()
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["face"], row["label"], row["frames"]) for row in rows] == [
        ("7", "anger", "2"),
        ("7", "neutral", "1"),
        ("7", "unsure", "1"),
    ]
    assert [(row["start"], row["end"]) for row in rows] == [("0.000", "0.200"), ("0.200", "0.300"), ("0.300", "0.400")]


def page_of(tmp_path, frames, source="clip.mp4", labels=LABELS):
    summary = Summary(tmp_path / "out.html", labels, source, "net.keras")
    for each in frames:
        summary.write(each)
    summary.close()
    return (tmp_path / "out.html").read_text(encoding="utf-8")


def charts(page):
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def test_the_page_tells_of_each_face_when_it_was_seen_how_often_it_changed_and_what_share_each_label_has(tmp_path):
    labels = ["anger"] * 60 + ["neutral"] * 30 + ["unsure"] * 10
    page = page_of(tmp_path, [frame(index / 10, f2=label) for index, label in enumerate(labels)])
    text = re.sub(r"<[^>]*>", " ", page)
    assert "Seen from 0:00 to 0:10, 10.0 s in all; 2 changes of expression (12.0 per minute)" in text
    for label, share in (("anger", "60.0%"), ("neutral", "30.0%"), ("unsure", "10.0%")):
        assert re.search(rf"{label}\s+[\d.]+ s\s+{share}", text)
    assert "100 frames, 1 face" in text


def test_what_a_chart_shows_can_be_read_without_its_colours(tmp_path):
    labels = ["anger"] * 60 + ["neutral"] * 30
    page = page_of(tmp_path, [frame(index / 10, f2=label) for index, label in enumerate(labels)])
    overview, chart = charts(page)
    bars = [each for each in chart.iter("rect") if each.get("class") == "bar"]
    rows = [each.text for each in chart.iter("text")][: len(LABELS) + 1]
    assert rows == [*LABELS, "unsure"]
    heights = [float(bar.get("y", 0)) for bar in bars]
    assert [rows[int(height // 18)] for height in heights] == ["anger", "neutral"], "the row says what the colour says"
    filters = [float(bar.get("width", 0)) for bar in bars]
    assert filters[0] / filters[1] == pytest.approx(2, rel=0.01)
    red, green, blue = COLORS["anger"]
    assert bars[0].get("fill") == f"#{red:02x}{green:02x}{blue:02x}"
    assert "mostly anger, 67% of the time" in (chart.get("aria-label") or "")
    assert len([each for each in overview.iter("rect") if each.get("class") == "bar"]) == 2


def test_names_are_escaped_and_nothing_is_fetched(tmp_path):
    page = page_of(tmp_path, [frame(0.0, f1="anger")], source="<script>alert('x')</script>&.mp4")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.search(r"https?:|src=|href=|@import|url\(", page)


def test_a_run_without_a_face_gives_a_page_that_says_so(tmp_path):
    assert "No face was seen." in page_of(tmp_path, [frame(0.0), frame(0.1)])
    assert "No face was seen." in page_of(tmp_path, [])


def test_an_hour_of_flicker_gives_a_small_page(tmp_path):
    choose = random.Random(3)
    frames = (frame(index / 5, f1=choose.choice(LABELS), f2="anger") for index in range(18_000))
    page = page_of(tmp_path, frames)
    assert len(page) < 600_000
    assert "1:00:00 long, 18,000 frames, 2 faces" in page
    chart = charts(page)[1]
    bars = [each for each in chart.iter("rect") if each.get("class") == "bar"]
    assert max(float(bar.get("x", 0)) + float(bar.get("width", 0)) for bar in bars) < 900
    assert 100 < len(bars) <= 800


def test_of_very_many_faces_those_seen_longest_are_shown_and_the_others_counted(tmp_path):
    frames = []
    for number in range(1, 101):
        frames += [frame(10 * number + step / 10, **{f"f{number}": "anger"}) for step in range(1 + number // 10)]
        frames.append(frame(10 * number + (1 + number // 10) / 10))
    page = page_of(tmp_path, frames)
    assert page.count("<section>") == WEBCAM.summary_faces
    assert "<h2>Face 100</h2>" in page and "<h2>Face 1</h2>" not in page
    assert "Not shown: 60 faces more" in page


def test_the_page_stays_as_it_was_until_the_new_one_is_whole(tmp_path):
    (tmp_path / "out.html").write_text("before")
    summary = Summary(tmp_path / "out.html", LABELS, "clip.mp4")
    summary.write(replace(frame(0.0, f1="anger")))
    assert (tmp_path / "out.html").read_text() == "before"
    summary.close()
    assert "Face 1" in (tmp_path / "out.html").read_text()


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0:00"), (7.5, "0:07.5"), (59.97, "1:00"), (723, "12:03"), (3723, "1:02:03")]
)
def test_times_read_as_on_a_clock(seconds, words):
    assert clock(seconds) == words


@pytest.mark.parametrize(("start", "end"), [(0, 0.05), (3.2, 4.9), (0, 30), (100, 700), (0, 3600), (0, 2e6)])
def test_a_time_axis_has_a_few_round_times(start, end):
    times = ticks(start, end)
    assert len(times) <= 10 and all(start - 1e-6 <= time <= end + 1e-6 for time in times)
    steps = {round(after - before, 6) for before, after in itertools.pairwise(times)}
    assert len(steps) <= 1


def test_a_page_is_written_without_matplotlib():
    code = "import realtime.sinks.summary, sys; print('matplotlib' in sys.modules, 'pandas' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False", "False"]
