import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import ROOT
from realtime_fakes import FACE, FakeClassifier, FakeDetector, scene, write_video

from configuration import FACES, TRACKING
from inference.crops import read_image_rgb
from inference.face_detector import FaceDetector, build_detector
from preprocessing.datasets.sample import PORTRAIT
from preprocessing.face_crops import crop_face
from realtime.recognition import analyze, recognize, watch
from realtime.sources import Frame, open_source


@pytest.mark.parametrize("name", ["haar", "mtcnn"])
@pytest.mark.parametrize(("channels", "flags"), [(1, cv2.IMREAD_GRAYSCALE), (3, cv2.IMREAD_COLOR_RGB)])
def test_crops_equal_those_of_step_2(tmp_path, name, channels, flags):
    (tmp_path / "portrait.jpg").write_bytes(PORTRAIT.read_bytes())
    options = replace(FACES, channels=channels)
    detector, classifier = build_detector(name, options), FakeClassifier(options)
    row = crop_face(tmp_path, "portrait.jpg", "faces/portrait.png", options, lambda: detector)
    assert row["face_status"] == "found"
    written = cv2.imread(str(tmp_path / "faces" / "portrait.png"), flags).reshape(48, 48, channels)
    (result,) = recognize(open_source(str(tmp_path / "portrait.jpg")), detector, classifier)
    assert len(result.recognitions) == 1
    np.testing.assert_array_equal(classifier.batches[0][0], written)


class ChangingClassifier(FakeClassifier):
    """Predicts happiness for `frames` frames, then anger; every fifth frame the opposite."""

    def __init__(self, frames: int, abstention_threshold: float = 0.0, sure: float = 0.8):
        super().__init__()
        self.count, self.frames, self.abstention_threshold, self.sure = -1, frames, abstention_threshold, sure

    def predict(self, images):
        self.count += 1
        happy = (self.count < self.frames) != (self.count % 5 == 4)
        row = [1 - self.sure, self.sure, 0.0] if happy else [self.sure, 1 - self.sure, 0.0]
        return np.array([row] * len(images), np.float32)


def clip(count):
    return [Frame(np.zeros((64, 96, 3), np.uint8), i, i / 30, "clip.mp4") for i in range(count)]


def test_labels_are_smoothed_and_may_be_unsure_unless_raw():
    smoothed = [r.recognitions[0].label for r in recognize(clip(60), FakeDetector(FACE), ChangingClassifier(30))]
    raw = [r.recognitions[0].label for r in recognize(clip(60), FakeDetector(FACE), ChangingClassifier(30), raw=True)]
    changes = [sum(a != b for a, b in pairwise(labels)) for labels in (smoothed, raw)]
    assert changes == [1, 22]
    assert smoothed[29] == "happiness" and smoothed[30 + 21] == "anger"  # within 0.7 s
    for raw, unsure in ((False, {True}), (True, {False})):  # below the card's threshold
        results = list(recognize(clip(20), FakeDetector(FACE), ChangingClassifier(99, 0.9), raw=raw))
        assert {result.recognitions[0].unsure for result in results} == unsure


def test_watch_gives_every_frame_and_closes_its_own_source(tmp_path, monkeypatch):
    closed = []
    video = write_video(tmp_path / "clip.mp4", frames=12, fps=10)
    monkeypatch.setattr("realtime.sources.video.Video.close", lambda source: closed.append(source.name))
    results = watch(video, FakeClassifier(), FakeDetector(FACE))
    assert [result.frame.index for result in results] == list(range(12)) and len(closed) == 1
    left_early = watch(str(video), FakeClassifier(), FakeDetector(FACE))
    assert next(left_early).frame.index == 0
    left_early.close()
    assert len(closed) == 2
    assert len(list(watch(open_source(str(video)), FakeClassifier(), FakeDetector(FACE)))) == 12 and len(closed) == 2


def test_analyze_accepts_file_and_array(tmp_path):
    image_rgb = np.random.default_rng(2).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "me.png"), image_rgb[:, :, ::-1])
    predictions, batches = [], []
    for image in (image_rgb, tmp_path / "me.png", str(tmp_path / "me.png")):
        classifier = FakeClassifier()
        predictions.append(analyze(image, classifier, FakeDetector(FACE)))
        batches.append(classifier.batches[0])
    assert predictions[0] == predictions[1] == predictions[2]
    assert [(r.label, r.track_id, r.unsure) for r in predictions[0]] == [("happiness", 0, False)]
    np.testing.assert_array_equal(batches[0], batches[1])


def test_api_does_not_import_tensorflow(tmp_path):
    code = f"""
import sys
from realtime import analyze, watch
(face,) = analyze({str(PORTRAIT)!r})
((result,),) = [list(watch({str(PORTRAIT)!r}))]
assert result.recognitions[0].probabilities == face.probabilities
print(*{{"tensorflow", "keras", "pandas", "matplotlib", "scipy", "mtcnn"}} & set(sys.modules))
"""
    analyze(PORTRAIT)  # converts the networks where they are not converted yet
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": "torch"},  # torch is not installed
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ""


def test_slow_detection_of_live_source_runs_in_background():
    class Source:
        name, still, live, fps, size, count, warning = "camera 0", False, True, 30.0, (640, 480), None, ""

        def __init__(self, live):
            self.live = live

        def __iter__(self):
            return (Frame(portrait_bgr, i, i / 30, self.name) for i in range(12))

        def close(self):
            pass

    def threads():
        return [thread for thread in threading.enumerate() if thread.name.startswith("detector")]

    portrait_bgr = cv2.cvtColor(read_image_rgb(PORTRAIT), cv2.COLOR_RGB2BGR)[::2, ::2].copy()

    class SlowDetector(FaceDetector):
        def detect(self, image_rgb):
            time.sleep(2 * TRACKING.background_after)
            return super().detect(image_rgb)

    detector, counts = SlowDetector(FACES), []
    for live, synchronous in ((True, False), (True, True), (False, False)):
        camera: Any = Source(live)
        results = watch(camera, FakeClassifier(), detector, synchronous=synchronous)
        for result in results:
            assert [each.track_id for each in result.recognitions] == [int(result.frame.index > 1)]
            if result.frame.index == 8:
                counts.append(len(threads()))
                break
        results.close()
        assert threads() == []
    assert counts == [1, 0, 0]


def test_smoothing_restarts_after_cut():
    shown = [scene(0)] * 10 + [scene(1)] * 3
    frames = [Frame(image_bgr, i, i / 30, "clip.mp4") for i, image_bgr in enumerate(shown)]
    results = list(recognize(frames, FakeDetector(FACE), ChangingClassifier(10)))
    happiness = [result.recognitions[0].probabilities["happiness"] for result in results]
    assert happiness[0] == pytest.approx(0.8)
    assert happiness[4] == pytest.approx((4 * 0.8 + 0.2) / 5)  # a plain average at first, the tentative frame included
    assert happiness[10] == pytest.approx(0.2), "nothing is left of the face before the cut"
    assert [result.recognitions[0].track_id for result in results] == [0] + [1] * 9 + [0] + [2] * 2
