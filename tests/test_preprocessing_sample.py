from dataclasses import replace
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest

from common.emotions import CKPLUS_CODES, EMOTIONS
from common.errors import InputError
from inference.crops import read_image_rgb, similarity
from inference.face_detector import FaceDetector
from inference.faces import choose_face
from preprocessing.datasets.sample import EXPRESSIONS, PORTRAIT_LANDMARKS, SAMPLE, write_raw
from preprocessing.tables import LANDMARKS

SMALL = replace(SAMPLE, subjects=2, frames=3, unlabelled=3)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "raw"
    write_raw(folder, SMALL)
    return folder


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector()


def labelled_sequences(raw: Path) -> list[tuple[str, list[Path]]]:
    """Return each labelled sequence's emotion and frames."""
    sequences = []
    for file in sorted((raw / "Emotion").rglob("*_emotion.txt")):
        frames = sorted((raw / "cohn-kanade-images" / file.parent.relative_to(raw / "Emotion")).glob("*.png"))
        assert file.name == f"{frames[-1].stem}_emotion.txt"  # the label names the peak frame
        sequences.append((CKPLUS_CODES[round(float(file.read_text()))], frames))
    return sequences


def test_the_tree_has_the_shape_of_ckplus(raw):
    sequences = sorted((raw / "cohn-kanade-images").glob("S*/*"))
    assert len(sequences) == 2 * 7 + 3
    for folder in sequences:
        subject, number = folder.parts[-2:]
        names = [f"{subject}_{number}_{frame:08d}.png" for frame in (1, 2, 3)]
        assert sorted(file.name for file in folder.iterdir()) == names
    for file in (raw / "Emotion").rglob("*.txt"):
        assert file.read_text() == f"   {float(file.read_text()):.7e}\n"


def test_every_subject_shows_every_emotion_once(raw):
    shown = [(frames[0].parts[-3], emotion) for emotion, frames in labelled_sequences(raw)]
    assert sorted(shown) == sorted((subject, emotion) for subject in ("S001", "S002") for emotion in EMOTIONS[:7])


def test_unlabelled_sequences_have_an_empty_label_folder_or_none(raw):
    kinds = []
    for folder in (raw / "cohn-kanade-images").glob("S*/*"):
        labels = raw / "Emotion" / folder.relative_to(raw / "cohn-kanade-images")
        kinds.append("none" if not labels.exists() else "label" if any(labels.iterdir()) else "empty")
    assert (kinds.count("label"), kinds.count("empty") + kinds.count("none")) == (14, 3)
    assert "empty" in kinds and "none" in kinds


def test_frames_run_from_neutral_to_the_peak(raw, detector):
    """The mouth corners move away from where they are in the first frame, measured against the eyes and the nose."""
    for emotion, frames in labelled_sequences(raw):
        if emotion not in ("happiness", "surprise", "sadness"):  # those that move the corners most
            continue
        corners = []
        for frame in frames:
            points = detector.detect(read_image_rgb(frame))[0].landmarks
            assert points is not None
            to_first = similarity(points[:3], corners[0][0][:3]) if corners else np.eye(2, 3)
            corners.append((points, points[3:] @ to_first[:, :2].T + to_first[:, 2]))
        first, middle, peak = (moved for _, moved in corners)
        distance = np.hypot(*(corners[0][0][1] - corners[0][0][0]))
        assert np.abs(middle - first).max() < np.abs(peak - first).max() > 0.05 * distance, (emotion, frames[0])


def test_expressions_move_the_mouth_as_named(raw, detector):
    """Width and height of the mouth corners, in eye distances, against the same subject's neutral face."""
    mouths = {}
    for emotion, frames in labelled_sequences(raw):
        points = detector.detect(read_image_rgb(frames[-1]))[0].landmarks
        assert points is not None
        left_eye, right_eye, _, mouth_left, mouth_right = points
        across = (right_eye - left_eye) / np.hypot(*(right_eye - left_eye)) ** 2
        down = np.array([-across[1], across[0]])
        drop = ((mouth_left + mouth_right) / 2 - (left_eye + right_eye) / 2) @ down
        mouths[frames[0].parts[-3], emotion] = ((mouth_right - mouth_left) @ across, drop)
    for subject in ("S001", "S002"):
        width, drop = mouths[subject, "neutral"]
        assert mouths[subject, "happiness"][0] > width and mouths[subject, "happiness"][1] < drop
        assert mouths[subject, "surprise"][0] < width
        assert mouths[subject, "sadness"][1] > drop


def test_mtcnn_finds_one_face_in_every_frame(raw, detector):
    frames = sorted(raw.rglob("*.png"))
    assert len(frames) == 3 * 17
    found = [detector.detect(read_image_rgb(frame)) for frame in frames]
    assert [len(faces) for faces in found] == [1] * len(frames)
    assert min(faces[0].confidence for faces in found) > 0.9


def test_the_written_landmarks_are_those_that_mtcnn_finds(detector):
    portrait_rgb = read_image_rgb(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    face = choose_face(detector.detect(portrait_rgb), portrait_rgb.shape)
    assert face is not None and face.landmarks is not None and len(face.landmarks) == len(LANDMARKS)
    np.testing.assert_allclose(face.landmarks, PORTRAIT_LANDMARKS, atol=0.02 * face.height)


def test_pictures_differ_between_subjects_and_frames_and_have_the_configured_size(raw):
    frames = [cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in sorted(raw.rglob("*.png"))]
    assert {frame.shape[:2] for frame in frames if frame is not None} == {(SAMPLE.height, SAMPLE.width)}
    assert len({frame.tobytes() for frame in frames if frame is not None}) == len(frames)


def test_the_same_seed_gives_the_same_files_and_another_seed_others(raw, tmp_path):
    write_raw(tmp_path / "again", SMALL)
    write_raw(tmp_path / "other", replace(SMALL, seed=SMALL.seed + 1))

    def content(root: Path) -> dict[str, bytes]:
        return {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}

    assert content(tmp_path / "again") == content(raw)
    assert content(tmp_path / "other") != content(raw)


def test_a_second_call_writes_nothing_and_other_options_replace_the_sample(tmp_path):
    tiny = replace(SMALL, subjects=1, frames=2, unlabelled=0)
    write_raw(tmp_path / "raw", tiny)
    times = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    write_raw(tmp_path / "raw", tiny)
    assert times == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    write_raw(tmp_path / "raw", replace(tiny, frames=3))
    assert len(list(tmp_path.rglob("*.png"))) == 3 * 7


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "README.txt").write_text("mine")
    with pytest.raises(InputError, match="something else"):
        write_raw(tmp_path / "raw", SMALL)
    assert [file.name for file in tmp_path.rglob("*")] == ["raw", "README.txt"]


@pytest.mark.parametrize("change", [{"subjects": 0}, {"frames": 1}, {"unlabelled": -1}, {"height": 20}])
def test_options_that_cannot_be_made_are_refused(tmp_path, change):
    with pytest.raises(InputError, match="cannot be made"):
        write_raw(tmp_path / "raw", replace(SMALL, **change))
    assert not list(tmp_path.iterdir())


def test_the_folder_says_that_no_score_on_it_means_anything(raw):
    assert "No score measured on it means anything" in (raw / "README.txt").read_text()


def test_its_emotions_are_the_seven_classes():
    assert sorted(EXPRESSIONS) == sorted(EMOTIONS[:7])
