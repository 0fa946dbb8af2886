import json
from types import SimpleNamespace
from typing import Any, cast

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score, confusion_matrix

from realtime.sinks.segments import SEGMENT_COLUMNS, SegmentTable

# face, start, end, label: two faces with unsure time, gaps, an early, a late and a missing change; a third, unlabelled.
SPANS = [
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
    (1, 5.0, 9.0, "happiness"),  # goes on: no change
    (1, 9.5, 21.0, "surprise"),
    (1, 22.0, 29.5, "sad"),
]


def write(file, columns, rows):
    pd.DataFrame(rows, columns=columns).to_csv(file, index=False)
    return file


@pytest.fixture
def compare(run_step, tmp_path):
    def run(segments=SPANS, labels=LABELS, columns=("track_id", "start", "end", "emotion")):
        told = [(*row, 0.9, 1) for row in segments]
        files = write(tmp_path / "spans.csv", SEGMENT_COLUMNS, told), write(tmp_path / "labels.csv", columns, labels)
        places = ("--segments", files[0], "--truth", files[1], "--report", tmp_path / "out")
        return run_step("evaluation.segments", *places)

    return run


def sampled(rows, face, until=31.0):
    """What is said of a face at the middle of every millisecond."""
    said = np.full(round(1000 * until), "", dtype=object)
    names = {"Angry": "anger", "happy": "happiness", "sad": "sadness"}
    for number, start, end, label in rows:
        if number == face:
            said[round(1000 * start) : round(1000 * end)] = names.get(label, label)
    return said


def test_the_figures_are_those_of_sampling_every_millisecond(compare, tmp_path):
    done = compare()
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "time_spans.json").read_text())
    truth, shown = (np.concatenate([sampled(rows, face) for face in (1, 2)]) for rows in (LABELS, SPANS))
    shown[shown == ""] = "no face"
    is_seen, is_labelled = shown != "no face", truth != ""
    sure = is_labelled & is_seen & (shown != "unsure")
    seconds = {
        "labelled": is_labelled,
        "labelled_and_seen": is_labelled & is_seen,
        "agree": truth == shown,
        "unsure": is_labelled & (shown == "unsure"),
        "no_face": is_labelled & ~is_seen,
        "unlabelled": ~is_labelled & is_seen,
    }
    assert found["seconds"] == pytest.approx({name: each.sum() / 1000 for name, each in seconds.items()})
    values, agree = found["values"], truth == shown
    assert values["accuracy"] == pytest.approx(agree[is_labelled & is_seen].mean(), abs=1e-6)
    assert values["accuracy_when_sure"] == pytest.approx(agree[sure].mean(), abs=1e-6)
    assert values["kappa"] == pytest.approx(cohen_kappa_score(truth[sure], shown[sure]), abs=1e-6)
    assert values["unlabelled"] == pytest.approx((~is_labelled)[is_seen].mean(), abs=1e-6)
    matrix = pd.read_csv(tmp_path / "out" / "time_spans_confusion.csv", index_col="truth")
    names = list(matrix.columns)
    counted = confusion_matrix(truth[is_labelled], shown[is_labelled], labels=names)[:-2]
    assert list(matrix.index) == names[:-2]
    np.testing.assert_allclose(matrix.to_numpy(), counted / 1000, atol=1e-6)
    for row in pd.read_csv(tmp_path / "out" / "time_spans_emotions.csv").itertuples():
        is_true, is_shown = truth == row.emotion, shown == row.emotion
        recall, precision = agree[is_true & is_seen], agree[is_shown & is_labelled]
        for value, hits in ((row.recall, recall), (row.precision, precision)):
            assert value == pytest.approx(hits.mean() if len(hits) else np.nan, abs=1e-6, nan_ok=True)
    assert found["seconds_of_faces_without_labels"] == {"3": 1.5} and "face 3, 1.5 s" in done.stdout
    assert "only 7 labelled spans" in done.stdout


def test_delays_run_from_a_change_until_it_shows(compare, tmp_path):
    done = compare()
    changes = pd.read_csv(tmp_path / "out" / "time_spans_changes.csv")
    assert list(changes["time"]) == [3.0, 9.5, 22.0, 12.0, 25.0]
    assert list(changes["emotion"]) == ["happiness", "surprise", "sadness", "contempt", "anger"]
    np.testing.assert_allclose(changes["delay"], [0.7, 0.5, 0.0, 0.6, np.nan])
    values = json.loads((tmp_path / "out" / "time_spans.json").read_text())["values"]
    assert (values["delay"], values["already"], values["never"]) == pytest.approx((0.55, 0.2, 0.2))
    assert "changes: 5; shown after 0.55 s (median)" in done.stdout


def test_intervals_are_those_of_drawing_whole_labelled_spans(compare, tmp_path):
    compare()
    low, high = json.loads((tmp_path / "out" / "time_spans.json").read_text())["intervals"]["accuracy"]
    # seconds that agree, and that have a label and a face, of each labelled span, read off the tables above
    segments = np.array([(3, 3), (4.55, 5.25), (10, 11), (7.5, 7.5), (7, 7), (12.4, 13), (0, 3)])
    drawn = segments[np.random.default_rng(1).integers(len(segments), size=(20_000, len(segments)))].sum(axis=1)
    expected = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    np.testing.assert_allclose([low, high], expected, atol=0.03)


def test_the_picture_shows_both_time_lines_in_the_webcams_colours(compare, tmp_path):
    compare([(1, 0.0, 10.0, "happiness")], [(1, 0.0, 5.0, "happiness"), (1, 5.0, 10.0, "anger")])
    picture_bgr = cv2.imread(str(tmp_path / "out" / "time_spans.png"))
    assert picture_bgr is not None
    areas = [int((np.abs(picture_bgr.astype(int) - color[::-1]).max(axis=2) < 3).sum())
             for color in ((240, 228, 66), (213, 94, 0))]  # fmt: skip
    assert areas[1] > 5000 and areas[0] / areas[1] == pytest.approx(3, rel=0.1)


def test_it_reads_what_the_webcam_writes(run_step, tmp_path):
    table = SegmentTable(tmp_path / "spans.csv")
    for index in range(40):
        shown = "unsure" if index >= 30 else "happiness"
        face = SimpleNamespace(track_id=1, label="happiness", shown=shown, probability=0.8, unsure=index >= 30)
        frame = SimpleNamespace(time=index / 10)
        table.write(cast(Any, SimpleNamespace(frame=frame, recognitions=[face])))
    table.close()
    truth = write(tmp_path / "labels.csv", ("start", "end", "emotion"), [(0, 2, "happiness"), (2, 4, "neutral")])
    done = run_step("evaluation.segments", "--segments", tmp_path / "spans.csv", "--truth", truth, "--report", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "agree: 50.0\u00a0% " in done.stdout and "unsure 25.0\u00a0%, no face 0.0\u00a0%" in done.stdout


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([(1, 0, 4, "happy"), (1, 3, 5, "sad")], "spans of face 1 at 0 to 4 s and 3 to 5 s overlap"),
        ([(1, 0, 4, "happy"), (1, 6, 5, "sad")], "line 3: the span ends at 5 s, not after its start at 6 s"),
        ([(1, 0, 4, "hungry")], "line 2: unknown emotion 'hungry'; accepted are anger, "),
        ([(1, 40, 44, "happy")], "share no moment of any face"),
        ([(7, 0, 4, "happy")], "the program's track IDs (1, 2, 3)"),
        ([(1, "0:10", 4, "happy")], "line 2: start '0:10' is no time; give seconds"),
        ([("ann", 0, 4, "happy")], "line 2: face 'ann' is no whole number"),
        ([], "holds no span"),
    ],
)
def test_labels_that_make_no_sense_are_refused_in_one_line(compare, tmp_path, labels, message):
    done = compare(labels=labels)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_files_of_another_kind_are_refused_in_one_line(compare, run_step, tmp_path):
    done = compare(labels=[row[1:] for row in LABELS[3:]], columns=("start", "end", "emotion"))
    assert done.returncode == 2 and "holds 3 faces (1, 2, 3)" in done.stderr and "add a column track_id" in done.stderr
    done = compare(columns=("track_id", "from", "to", "emotion"))
    assert done.returncode == 2 and "lacks the columns start, end" in done.stderr
    log = write(tmp_path / "log.csv", ("time", "track_id", "label", "unsure"), [(0.0, 1, "anger", 0)])
    done = run_step("evaluation.segments", "--segments", log, "--truth", tmp_path / "labels.csv")
    assert done.returncode == 2 and "was written with --log" in done.stderr and done.stderr.count("\n") == 1
