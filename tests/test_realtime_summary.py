import csv
import random
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from realtime_fakes import LABELS, recognition, result

from common.emotions import COLORS
from realtime.sinks.segments import MAX_INTERVAL, Segmenter, SegmentTable
from realtime.sinks.summary import MAX_FACES, SummaryPage

BLACK = np.zeros((4, 4, 3), np.uint8)


def frame(time, **labels):
    """One frame: `f1="anger"` is face 1 with that label, `f2="unsure"` face 2 below the abstention threshold."""
    seen = [
        recognition(label="anger" if label == "unsure" else label, track_id=int(name[1:]), unsure=label == "unsure")
        for name, label in labels.items()
        if label
    ]
    return result(BLACK, *seen, index=round(time * 10), time=time)


def segments_of(frames):
    segmenter = Segmenter()
    return [segment for each in frames for segment in segmenter.add(each)] + segmenter.finish()


def test_segment_continues_over_a_short_gap_only():
    labels = ["anger"] * 3 + [None] * 3 + ["anger"] * 3 + [None] * 9 + ["anger"] * 2
    first, second = segments_of([frame(index / 10, f1=label) for index, label in enumerate(labels)])
    assert (first.start, first.end, first.frames) == (0.0, pytest.approx(0.9), 6)
    assert (second.start, second.end) == (pytest.approx(1.8), pytest.approx(2.0))
    first, second = segments_of([frame(0.0, f1="anger"), frame(0.1, f1="anger"), frame(60.0, f1="anger")])
    assert first.end == pytest.approx(0.1 + MAX_INTERVAL), "the camera was away"
    assert second.start == 60.0


def test_segments_of_each_track_are_written_when_they_end_and_tentative_faces_have_none(tmp_path):
    file = tmp_path / "segments.csv"
    table = SegmentTable(file)
    for index, label in enumerate(["anger", "anger", "neutral", "unsure"]):
        table.write(frame(index / 10, f7=label, f8="anger", f0="anger"))
    assert len(file.read_text().splitlines()) == 3, "the header and two ended segments"
    table.close()
    with file.open(newline="") as stream:
        rows = [list(row.values()) for row in csv.DictReader(stream)]
    assert sorted(rows) == [
        ["7", "0.000", "0.200", "anger", "0.70000", "2"],
        ["7", "0.200", "0.300", "neutral", "0.70000", "1"],
        ["7", "0.300", "0.400", "unsure", "0.70000", "1"],
        ["8", "0.000", "0.400", "anger", "0.70000", "4"],
    ]


def page_of(tmp_path, frames, source="clip.mp4"):
    file = tmp_path / "out.html"
    file.write_text("before")
    summary = SummaryPage(file, LABELS, source, "net.keras")
    for each in frames:
        summary.write(each)
    assert file.read_text() == "before", "the earlier page stays until the new one is complete"
    summary.close()
    return file.read_text(encoding="utf-8")


def bars_of(page):
    """Return the text labels and the bars of each chart."""
    charts = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    return [
        (chart.get("aria-label", ""), [each.text for each in chart.iter("text")],
         [{**each.attrib, "title": each[0].text} for each in chart.iter("rect") if each.get("class") == "bar"])
        for chart in charts
    ]  # fmt: skip


def test_page_has_timeline_shares_and_changes_of_each_face(tmp_path):
    labels = ["anger"] * 60 + ["neutral"] * 30 + ["unsure"] * 10
    page = page_of(tmp_path, [frame(index / 10, f2=label) for index, label in enumerate(labels)])
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))
    assert "0:10 long, 100 frames, 1 face, network net.keras." in text
    assert "Detected from 0:00 to 0:10, 10.0 s in all; 2 changes of expression (12.0 per minute)" in text
    for label, share in (("anger", "60.0%"), ("neutral", "30.0%"), ("unsure", "10.0%")):
        assert re.search(rf"{label}\s+[\d.]+ s\s+{share}", text)
    (_, _, overview), (description, rows, bars) = bars_of(page)
    assert rows[:4] == [*LABELS, "unsure"] and "mostly anger, 60% of the time" in description
    assert [rows[int(float(bar["y"]) // 18)] for bar in bars] == ["anger", "neutral", "unsure"], (
        "readable without colour"
    )
    widths = [float(bar["width"]) for bar in bars]
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.01)
    assert bars[0]["fill"] == "#{:02x}{:02x}{:02x}".format(*COLORS["anger"])
    assert [bar["title"] for bar in overview] == ["anger 0:00-0:06", "neutral 0:06-0:09", "unsure 0:09-0:10"]


def test_page_escapes_names_and_loads_nothing(tmp_path):
    page = page_of(tmp_path, [frame(0.0, f1="anger")], source="<script>alert('x')</script>&.mp4")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.search(r"https?:|src=|href=|@import|url\(", page)
    assert "No face was detected." in page_of(tmp_path, [frame(0.0), frame(0.1)])


def test_an_hour_of_flicker_gives_a_small_page(tmp_path):
    choose = random.Random(3)
    frames = (frame(index / 5, f1=choose.choice(LABELS), f2="anger") for index in range(18_000))
    page = page_of(tmp_path, frames)
    assert len(page) < 600_000
    assert "1:00:00 long, 18,000 frames, 2 faces" in page
    bars = bars_of(page)[1][2]
    assert max(float(bar["x"]) + float(bar["width"]) for bar in bars) < 900
    assert 100 < len(bars) <= 800


def test_page_shows_the_faces_detected_longest(tmp_path):
    frames = []
    for track_id in range(1, 101):
        seconds = 1 + track_id // 10
        frames += [frame(10 * track_id + step / 10, **{f"f{track_id}": "anger"}) for step in range(seconds)]
        frames.append(frame(10 * track_id + seconds / 10))
    page = page_of(tmp_path, frames)
    assert page.count("<section>") == MAX_FACES
    assert "<h2>Face 100</h2>" in page and "<h2>Face 1</h2>" not in page
    assert "Not shown: 60 faces" in page
