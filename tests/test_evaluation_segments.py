import json
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score, confusion_matrix

from realtime.sinks.segments import SEGMENT_COLUMNS, SegmentTable

# track_id, start, end, label: two faces with gaps, an early, a late and a missing change; a third without labels.
SEGMENTS = [
    (1, 0.0, 3.3, "neutral"),
    (1, 3.3, 3.7, "unsure"),
    (1, 3.7, 8.25, "happiness"),
    (1, 10.0, 20.0, "surprise"),
    (1, 20.0, 30.0, "sadness"),
    (2, 5.0, 12.6, "anger"),
    (2, 12.6, 25.0, "contempt"),
    (2, 25.0, 29.0, "disgust"),
    (3, 1.0, 2.5, "fear"),
]
LABELS = [
    (2, 4.0, 12.0, "Angry"),
    (2, 12.0, 25.0, "contempt"),
    (2, 25.0, 28.0, "anger"),
    (1, 0.0, 3.0, "neutral"),
    (1, 3.0, 5.0, "happy"),
    (1, 5.0, 9.0, "happiness"),  # the same emotion: no change
    (1, 9.5, 21.0, "surprise"),
    (1, 22.0, 29.5, "sad"),
]


def write(file, columns, rows):
    pd.DataFrame(rows, columns=columns).to_csv(file, index=False)
    return file


@pytest.fixture
def compare(run_step, tmp_path):
    def run(segments=SEGMENTS, labels=LABELS, columns=("track_id", "start", "end", "emotion")):
        rows = [(*row, 0.9, 1) for row in segments]
        predicted = write(tmp_path / "segments.csv", SEGMENT_COLUMNS, rows)
        truth = write(tmp_path / "labels.csv", columns, labels)
        return run_step("evaluation.segments", "--segments", predicted, "--truth", truth, "--reports", tmp_path / "out")

    return run


def sampled(rows, track_id, until=31.0):
    """Return the label of a face at the middle of every millisecond."""
    labels = np.full(round(1000 * until), "", dtype=object)
    names = {"Angry": "anger", "happy": "happiness", "sad": "sadness"}
    for number, start, end, label in rows:
        if number == track_id:
            labels[round(1000 * start) : round(1000 * end)] = names.get(label, label)
    return labels


def test_scores_are_those_of_sampling_every_millisecond(compare, tmp_path):
    done = compare()
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out/segments/segments-labels" / "segments.json").read_text())
    truth, shown = (np.concatenate([sampled(rows, track) for track in (1, 2)]) for rows in (LABELS, SEGMENTS))
    shown[shown == ""] = "no face"
    is_seen, is_labelled, agree = shown != "no face", truth != "", truth == shown
    sure = is_labelled & is_seen & (shown != "unsure")
    seconds = {
        "labelled": is_labelled,
        "labelled_and_seen": is_labelled & is_seen,
        "agree": agree,
        "unsure": is_labelled & (shown == "unsure"),
        "no_face": is_labelled & ~is_seen,
        "unlabelled": ~is_labelled & is_seen,
    }
    assert found["seconds"] == pytest.approx({name: each.sum() / 1000 for name, each in seconds.items()})
    expected = {
        "accuracy": agree[is_labelled & is_seen].mean(),
        "accuracy_when_sure": agree[sure].mean(),
        "kappa": cohen_kappa_score(truth[sure], shown[sure]),
        "unlabelled": (~is_labelled)[is_seen].mean(),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    matrix = pd.DataFrame(found["confusion"]).T
    counted = confusion_matrix(truth[is_labelled], shown[is_labelled], labels=[*matrix.columns])
    for name, row in zip(matrix.columns, counted, strict=True):
        assert name not in matrix.index or list(matrix.loc[name]) == pytest.approx(row / 1000)
    assert found["unlabelled_faces"] == [3]
    changes = pd.read_csv(tmp_path / "out/segments/segments-labels" / "segments_changes.csv").sort_values("time")
    assert list(changes["time"]) == [3.0, 9.5, 12.0, 22.0, 25.0]
    assert list(changes["emotion"]) == ["happiness", "surprise", "contempt", "sadness", "anger"]
    np.testing.assert_allclose(changes["delay"], [0.7, 0.5, 0.6, 0.0, np.nan])
    assert (found["delay"], found["already"], found["never"]) == pytest.approx((0.55, 0.2, 0.2))
    assert "changes of emotion: 5; median delay 0.55 s" in done.stdout


@pytest.mark.parametrize("shown", ["neutral", "anger"])
def test_labels_without_a_change_are_scored(compare, tmp_path, shown):
    done = compare([(1, 0.0, 8.0, shown)], [(1, 0.0, 10.0, "neutral")])
    assert done.returncode == 0 and not done.stderr, done.stderr
    found = json.loads((tmp_path / "out/segments/segments-labels" / "segments.json").read_text())
    assert (found["changes"], found["delay"], found["accuracy"]) == (0, None, float(shown == "neutral"))
    assert found["kappa"] == (None if shown == "neutral" else 0)  # undefined where all has one label


def test_table_of_the_webcam_is_read(run_step, tmp_path):
    table = SegmentTable(tmp_path / "segments.csv")
    for index in range(40):
        shown = "unsure" if index >= 30 else "happiness"
        face = SimpleNamespace(track_id=1, label="happiness", shown=shown, probability=0.8, unsure=index >= 30)
        table.write(cast(Any, SimpleNamespace(frame=SimpleNamespace(time=index / 10), recognitions=[face])))
    table.close()
    truth = write(tmp_path / "labels.csv", ("start", "end", "emotion"), [(0, 2, "happiness"), (2, 4, "neutral")])
    files = ("--segments", tmp_path / "segments.csv", "--truth", truth, "--reports", tmp_path)
    done = run_step("evaluation.segments", *files)
    assert done.returncode == 0, done.stderr
    assert "accuracy 50.0\u00a0% " in done.stdout and "unsure 25.0\u00a0%, no face 0.0\u00a0%" in done.stdout


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([(1, 0, 4, "happy"), (1, 3, 5, "sad")], "the segment of face 1 at 3 to 5 s overlaps"),
        ([(1, 0, 4, "hungry")], "line 2: unknown emotion 'hungry'; accepted are anger, "),
        ([(1, 40, 44, "happy")], "share no moment of any face"),
        ([(7, 0, 4, "happy")], "with its track IDs (1, 2, 3)"),
        ([(1, "0:10", 4, "happy")], "line 2: times are seconds such as 12.5"),
    ],
)
def test_invalid_labels_are_refused_in_one_line(compare, tmp_path, labels, message):
    done = compare(labels=labels)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_files_are_refused_in_one_line(compare, run_step, tmp_path):
    done = compare(labels=[row[1:] for row in LABELS[3:]], columns=("start", "end", "emotion"))
    assert done.returncode == 2 and "several faces (1, 2, 3): add a column track_id" in done.stderr
    done = compare(columns=("track_id", "from", "to", "emotion"))
    assert done.returncode == 2 and "lacks the columns start, end" in done.stderr
    log = write(tmp_path / "log.csv", ("time", "track_id", "label", "unsure"), [(0.0, 1, "anger", 0)])
    done = run_step("evaluation.segments", "--segments", log, "--truth", tmp_path / "labels.csv")
    assert done.returncode == 2 and "was written with --log" in done.stderr and done.stderr.count("\n") == 1
