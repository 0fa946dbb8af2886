from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.emotions import CKPLUS_CODES, EMOTIONS
from inference.crops import read_image_rgb
from inference.face_detector import FaceDetector
from preprocessing.datasets.sample import SAMPLE, write_raw

SMALL = replace(SAMPLE, subjects=2, frames=3, unlabelled=3)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "raw"
    write_raw(folder, SMALL)
    return folder


@pytest.fixture(scope="module")
def landmarks(raw) -> dict[Path, np.ndarray]:
    """The landmarks of every frame, each with exactly one face."""
    found = {}
    for frame in sorted(raw.rglob("*.png")):
        (face,) = FaceDetector().detect(read_image_rgb(frame))
        assert face.confidence > 0.9 and face.landmarks is not None
        found[frame] = face.landmarks
    return found


def labelled_sequences(raw: Path) -> list[tuple[str, list[Path]]]:
    """Return each labelled sequence's emotion and frames."""
    sequences = []
    for file in sorted((raw / "Emotion").rglob("*_emotion.txt")):
        frames = sorted((raw / "cohn-kanade-images" / file.parent.relative_to(raw / "Emotion")).glob("*.png"))
        assert file.name == f"{frames[-1].stem}_emotion.txt"  # the label names the peak frame
        sequences.append((CKPLUS_CODES[round(float(file.read_text()))], frames))
    return sequences


def test_tree_has_the_shape_of_ckplus(raw):
    sequences = sorted((raw / "cohn-kanade-images").glob("S*/*"))
    assert len(sequences) == 2 * 7 + 3
    kinds = []
    for folder in sequences:
        subject, number = folder.parts[-2:]
        names = [f"{subject}_{number}_{frame:08d}.png" for frame in (1, 2, 3)]
        assert sorted(file.name for file in folder.iterdir()) == names
        labels = raw / "Emotion" / subject / number
        kinds.append("none" if not labels.exists() else "label" if any(labels.iterdir()) else "empty")
    assert kinds.count("label") == 14 and {"empty", "none"} < {*kinds}
    shown = [(frames[0].parts[-3], emotion) for emotion, frames in labelled_sequences(raw)]
    assert sorted(shown) == sorted((subject, emotion) for subject in ("S001", "S002") for emotion in EMOTIONS[:7])
    assert "Scores\non it are meaningless" in (raw / "README.txt").read_text()


def test_expressions_move_the_mouth_as_named_and_grow_up_to_the_peak(raw, landmarks):
    """Width and height of the mouth corners, in eye distances."""

    def mouth(frame: Path) -> np.ndarray:
        left_eye, right_eye, _, mouth_left, mouth_right = landmarks[frame]
        across = (right_eye - left_eye) / np.hypot(*(right_eye - left_eye)) ** 2
        middle = (mouth_left + mouth_right) / 2 - (left_eye + right_eye) / 2
        return np.array([(mouth_right - mouth_left) @ across, middle @ (-across[1], across[0])])

    mouths = {(frames[0].parts[-3], emotion): [*map(mouth, frames)] for emotion, frames in labelled_sequences(raw)}
    for subject in ("S001", "S002"):
        width, drop = mouths[subject, "neutral"][-1]
        happiness, surprise, sadness = (mouths[subject, name] for name in ("happiness", "surprise", "sadness"))
        assert happiness[-1][0] > width and happiness[-1][1] < drop
        assert surprise[-1][0] < width and sadness[-1][1] > drop
        for first, middle, peak in (happiness, surprise, sadness):
            assert np.abs(middle - first).max() < np.abs(peak - first).max() > 0.05
