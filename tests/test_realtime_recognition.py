from dataclasses import replace
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
from realtime_fakes import FACE, FakeClassifier, FakeDetector

from configuration import FACES
from preprocessing.faces import build_detector, network_input
from preprocessing.step2_face_crops import crop_face
from realtime.recognition import recognize
from realtime.sources import Frame, open_source


@pytest.fixture
def frames():
    noise = np.random.default_rng(3)
    return [Frame(noise.integers(0, 256, (64, 96, 3), np.uint8), i, i / 10, "clip.mp4") for i in range(3)]


def test_all_faces_of_a_frame_go_through_the_classifier_in_one_batch(frames):
    faces = [FACE, replace(FACE, left=50.0)]
    classifier = FakeClassifier()
    results = list(recognize(frames, FakeDetector(*faces), classifier))
    assert [len(batch) for batch in classifier.batches] == [2, 2, 2]
    assert [result.frame for result in results] == frames
    assert [recognition.face for recognition in results[0].recognitions] == faces
    assert [recognition.label for recognition in results[0].recognitions] == ["happiness", "anger"]
    assert [recognition.probability for recognition in results[0].recognitions] == pytest.approx([0.7, 0.6])
    assert results[0].recognitions[0].probabilities == pytest.approx({"anger": 0.1, "happiness": 0.7, "neutral": 0.2})


@pytest.mark.parametrize(("size", "channels"), [(48, 1), (32, 3)])
def test_the_classifier_gets_the_crops_that_it_was_trained_on(frames, size, channels):
    options = replace(FACES, size=size, channels=channels, align="box")
    detector, classifier = FakeDetector(FACE), FakeClassifier(options)
    next(recognize(frames, detector, classifier))
    image_rgb = frames[0].image_bgr[:, :, ::-1]
    np.testing.assert_array_equal(detector.seen[0], image_rgb)
    np.testing.assert_array_equal(classifier.batches[0][0], network_input(image_rgb, FACE, options))


def test_a_frame_without_a_face_gives_a_result_without_recognitions(frames):
    classifier = FakeClassifier()
    results = list(recognize(frames, FakeDetector(), classifier))
    assert [result.recognitions for result in results] == [[], [], []]
    assert classifier.batches[0].shape == (0, 48, 48, 1)


def test_frames_are_taken_one_by_one(frames):
    taken = []

    def telling():
        for frame in frames:
            taken.append(frame.index)
            yield frame

    results = recognize(telling(), FakeDetector(FACE), FakeClassifier())
    next(results)
    assert taken == [0]


def test_a_face_over_the_border_is_recognized(frames):
    faces = [replace(FACE, left=-10.0, top=-8.0), replace(FACE, left=85.0, top=50.0)]
    (first, *_) = recognize(frames, FakeDetector(*faces), FakeClassifier())
    assert len(first.recognitions) == 2


@pytest.mark.parametrize("name", ["haar", "mtcnn"])
@pytest.mark.parametrize(("channels", "flags"), [(1, cv2.IMREAD_GRAYSCALE), (3, cv2.IMREAD_COLOR_RGB)])
def test_the_webcam_gives_the_network_the_very_pixels_that_step_2_writes_for_training(tmp_path, name, channels, flags):
    portrait = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    (tmp_path / "portrait.jpg").write_bytes(portrait.read_bytes())
    options = replace(FACES, channels=channels)
    detector, classifier = build_detector(name, options), FakeClassifier(options)
    row = crop_face(tmp_path, "portrait.jpg", "faces/portrait.png", options, lambda: detector)
    assert row["face_status"] == "found"
    written = cv2.imread(str(tmp_path / "faces" / "portrait.png"), flags).reshape(48, 48, channels)
    (result,) = recognize(open_source(str(tmp_path / "portrait.jpg")), detector, classifier)
    assert len(result.recognitions) == 1
    np.testing.assert_array_equal(classifier.batches[0][0], written)
