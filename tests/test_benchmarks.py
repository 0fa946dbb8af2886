"""Benchmarks on tiny inputs: their counts are checked where the result is known."""

import json

import numpy as np
import pytest
from realtime_fakes import FACE, FakeClassifier, write_video

from benchmarks import realtime, soak_test
from inference.faces import Face
from realtime.tracking import TrackedFace


def test_tracking_is_compared_with_full_detection(tmp_path, monkeypatch):
    """Full detection has two faces; tracking has one of them and a box without a face."""
    first, second, false = Face(0, 0, 10, 10, 0.9), Face(50, 0, 10, 10, 0.9), Face(50, 40, 10, 10, 0.9)

    class Fake:
        def __init__(self, *_):
            pass

        def detect(self, image_rgb):
            return [first, second]

        def update(self, image_rgb, time):
            return [TrackedFace(1, first, 1), TrackedFace(2, false, 2)]

    monkeypatch.setattr(realtime, "FaceDetector", Fake)
    monkeypatch.setattr(realtime, "Tracker", Fake)
    rows = realtime.measure_tracking([write_video(tmp_path / f"{name}.mp4", frames=6) for name in "ab"])
    assert [list(row.values())[1:] for row in rows] == [[12, 6, 12, 6], [12, 6, 12, 6], [24, 12, 24, 12]]


def test_soak_test_has_flat_memory_and_equal_counts(tmp_path, capsys, monkeypatch):
    class Detector:
        """Detects a face in two of three frames, and none in every third second."""

        count = -1

        def detect(self, image_rgb):
            self.count += 1
            return [] if self.count % 3 == 2 or self.count % 90 >= 60 else [FACE]

    class Classifier(FakeClassifier):
        def predict(self, images):
            probabilities = super().predict(images)
            self.batches.clear()
            return probabilities

    monkeypatch.setattr(soak_test, "REPORTS", 10)
    video = write_video(tmp_path / "clip.mp4", frames=50, fps=30)
    result = soak_test.soak(video, 3000, tmp_path, Detector(), Classifier())
    seen = np.arange(3000)
    faces = int(((seen % 3 != 2) & (seen % 90 < 60) & (seen % 90 > 0)).sum())  # the first frame is tentative
    assert (result.frames, result.faces) == ((3000,) * 3, (faces,) * 2) and result.agrees
    assert list(result.megabytes) == list(range(0, 3001, 300))
    assert result.megabytes[3000] - result.megabytes[900] < 10
    assert f"clip.mp4: frames: 3000, faces: {faces}, " in capsys.readouterr().out


@pytest.mark.system
def test_training_input_and_quantization_are_measured(make_dataset, tiny_model, tmp_path, run_step, monkeypatch):
    folder, model, file = make_dataset(size=48), tiny_model(size=48), tmp_path / "new" / "rows.json"
    places = ["--dataset", folder.name, "--data", folder.parent, "--json", file]
    for name in ("ROUNDS", "BATCHES", "STEPS"):
        monkeypatch.setattr(f"benchmarks.training_input.{name}", 2)
    monkeypatch.setattr("benchmarks.quantization.ROUNDS", 3)
    done = run_step("benchmarks.training_input", *places)
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())
    assert len(rows) == 3 and all(row["ratio"] > 0 for row in rows) and 0 < rows[2]["input_share"] < 1
    done = run_step("benchmarks.quantization", *places, "--model", model)
    assert done.returncode == 0, done.stderr
    rows = {row["work"]: row for row in json.loads(file.read_text())}
    assert list(rows) == ["float32", "float16 weights", "int8 weights", "int8"]
    assert rows["float32"]["agrees_with_float32"] == rows["float16 weights"]["agrees_with_float32"] == 1.0
    assert all(row["kilobytes"] > 0 and row["ours_ms"] > 0 for row in rows.values())
    done = run_step("benchmarks.quantization", *places, "--model", "none.keras")
    assert done.returncode == 2 and "none.keras does not exist" in done.stderr
