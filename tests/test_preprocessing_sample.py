from dataclasses import replace
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest

from common.emotions import CKPLUS_CODES, EMOTIONS
from inference.crops import read_image_rgb, similarity
from inference.face_detector import FaceDetector
from inference.faces import choose_face
from preprocessing.datasets.sample import PORTRAIT_LANDMARKS, SAMPLE, write_raw
from preprocessing.tables import LANDMARKS

SMALL = replace(SAMPLE, subjects=2, frames=3, unlabelled=3)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "raw"
    write_raw(folder, SMALL)
    return folder


@pytest.fixture(scope="module")
def landmarks(raw) -> dict[Path, np.ndarray]:
    """The landmarks of every frame, after checking that mtcnn finds exactly one face."""
    detector, found = FaceDetector(), {}
    for frame in sorted(raw.rglob("*.png")):
        (face,) = detector.detect(read_image_rgb(frame))
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
        labels = raw / "Emotion" / folder.relative_to(raw / "cohn-kanade-images")
        kinds.append("none" if not labels.exists() else "label" if any(labels.iterdir()) else "empty")
    assert (kinds.count("label"), kinds.count("empty") + kinds.count("none")) == (14, 3)
    assert "empty" in kinds and "none" in kinds
    for file in (raw / "Emotion").rglob("*.txt"):
        assert file.read_text() == f"   {float(file.read_text()):.7e}\n"
    shown = [(frames[0].parts[-3], emotion) for emotion, frames in labelled_sequences(raw)]
    assert sorted(shown) == sorted((subject, emotion) for subject in ("S001", "S002") for emotion in EMOTIONS[:7])
    assert "Scores\non it are meaningless" in (raw / "README.txt").read_text()


def test_frames_run_from_neutral_to_the_peak(raw, landmarks):
    """The mouth corners move away from the first frame, measured against the eyes and the nose."""
    for emotion, frames in labelled_sequences(raw):
        if emotion not in ("happiness", "surprise", "sadness"):  # those that move the corners most
            continue
        first, *others = (landmarks[frame] for frame in frames)
        to_first = [similarity(points[:3], first[:3]) for points in others]
        moved = [points[3:] @ matrix[:, :2].T + matrix[:, 2] for points, matrix in zip(others, to_first, strict=True)]
        middle, peak = (np.abs(corners - first[3:]).max() for corners in moved)
        assert middle < peak > 0.05 * np.hypot(*(first[1] - first[0])), (emotion, frames[0])


def test_expressions_move_the_mouth_as_named(raw, landmarks):
    """Width and height of the mouth corners, in eye distances, against the same subject's neutral face."""
    mouths = {}
    for emotion, frames in labelled_sequences(raw):
        left_eye, right_eye, _, mouth_left, mouth_right = landmarks[frames[-1]]
        across = (right_eye - left_eye) / np.hypot(*(right_eye - left_eye)) ** 2
        down = np.array([-across[1], across[0]])
        drop = ((mouth_left + mouth_right) / 2 - (left_eye + right_eye) / 2) @ down
        mouths[frames[0].parts[-3], emotion] = ((mouth_right - mouth_left) @ across, drop)
    for subject in ("S001", "S002"):
        width, drop = mouths[subject, "neutral"]
        assert mouths[subject, "happiness"][0] > width and mouths[subject, "happiness"][1] < drop
        assert mouths[subject, "surprise"][0] < width
        assert mouths[subject, "sadness"][1] > drop


def test_constant_landmarks_are_those_of_the_detector():
    portrait_rgb = read_image_rgb(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    face = choose_face(FaceDetector().detect(portrait_rgb), portrait_rgb.shape)
    assert face is not None and face.landmarks is not None and len(face.landmarks) == len(LANDMARKS)
    np.testing.assert_allclose(face.landmarks, PORTRAIT_LANDMARKS, atol=0.02 * face.height)


def test_files_depend_on_the_seed_and_differ_from_each_other(raw, tmp_path):
    frames = [cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in sorted(raw.rglob("*.png"))]
    assert {frame.shape[:2] for frame in frames if frame is not None} == {(SAMPLE.height, SAMPLE.width)}
    assert len({frame.tobytes() for frame in frames if frame is not None}) == len(frames)
    write_raw(tmp_path / "again", SMALL)
    write_raw(tmp_path / "other", replace(SMALL, seed=SMALL.seed + 1))

    def content(root: Path) -> dict[str, bytes]:
        return {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}

    assert content(tmp_path / "again") == content(raw)
    assert content(tmp_path / "other") != content(raw)
