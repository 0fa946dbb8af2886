import json
from dataclasses import replace

import cv2
import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from configuration import EVALUATION, FACES
from evaluation.perturbations import (
    PERTURBATIONS,
    blur,
    crop_landmarks,
    darkness,
    low_resolution,
    noise,
    perturb,
    random_box,
)
from evaluation.sections.robustness import robustness_section
from inference.crops import TEMPLATE, network_input
from inference.faces import Face
from preprocessing.tables import BOX_COLUMNS, LANDMARK_COLUMNS

LABELS = ("anger", "happiness")
QUICK = replace(EVALUATION, resamples=200)
POINTS = TEMPLATE * 48 - 0.5
BY_NAME = {perturbation.name: perturbation for perturbation in PERTURBATIONS}


def random_source(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def gray(value: int = 200, size: int = 48) -> np.ndarray:
    return np.full((size, size, 1), value, np.uint8)


def at(mask: np.ndarray, point: np.ndarray) -> bool:
    x, y = np.round(point).astype(int)
    return bool(mask[y, x])


@pytest.mark.parametrize("channels", [1, 3])
def test_perturbations_change_a_copy_and_depend_on_seed_and_position_only(channels):
    images = random_source().integers(60, 200, (3, 48, 48, channels)).astype(np.uint8)
    points, before = np.stack([POINTS] * 3), images.copy()
    for perturbation in PERTURBATIONS:
        changed = perturb(perturbation, images, points, 7)
        assert changed.shape == images.shape and changed.dtype == np.uint8
        assert (changed != images).any() and (images == before).all()
        np.testing.assert_array_equal(changed[:2], perturb(perturbation, images[:2], points[:2], 7))


# Whether left eye, right eye, nose, left and right corner of the mouth are occluded; ? on the edge.
OCCLUDED = {
    "eyes": "11000",
    "mouth": "00011",
    "nose and mouth (black)": "00111",
    "nose and mouth (mask)": "00111",
    "left half": "10?10",
    "right half": "01?01",
}


@pytest.mark.parametrize("name", OCCLUDED)
@pytest.mark.parametrize("turn", [0, 25])
def test_parts_of_the_face_are_occluded_where_the_landmarks_are(name, turn):
    matrix = cv2.getRotationMatrix2D((50.0, 44.0), turn, 1.3)
    points = ((TEMPLATE * 60) @ matrix[:, :2].T + matrix[:, 2] - 2).astype(np.float32)
    mask = (BY_NAME[name].apply(gray(size=96), points, random_source()) != 200)[:, :, 0]
    for point, expected in zip(points, OCCLUDED[name], strict=True):
        assert expected == "?" or at(mask, point) == (expected == "1")


def test_one_eye_is_left_or_right_and_never_both():
    masks = [(BY_NAME["one eye"].apply(gray(), POINTS, random_source(seed)) != 200)[:, :, 0] for seed in range(20)]
    assert {(at(mask, POINTS[0]), at(mask, POINTS[1])) for mask in masks} == {(True, False), (False, True)}


def test_corruptions_have_the_stated_strength():
    assert noise(gray(128, 200), POINTS, random_source(), 10).std() == pytest.approx(10, abs=0.3)
    areas = [(random_box(gray(), POINTS, random_source(seed), 0.3) == 0).mean() for seed in range(50)]
    np.testing.assert_allclose(areas, 0.3, atol=0.03)
    assert (darkness(gray(200), POINTS, random_source(), 0.75) == 50).all()
    checkerboard = np.indices((48, 48)).sum(axis=0)[:, :, None].astype(np.uint8) % 2 * 255
    assert low_resolution(checkerboard, POINTS, random_source(), 24).std() < 2
    edge = np.where(np.arange(96) < 48, 0, 255).astype(np.uint8)[None, :, None].repeat(96, axis=0)
    spread = np.diff(blur(edge, POINTS, random_source(), 1)[48, :, 0] / 255)
    assert np.sqrt((spread * (np.arange(95) - 47) ** 2).sum()) == pytest.approx(2, abs=0.6)  # 1 px of 48


def face_row(face: Face) -> dict[str, float]:
    assert face.landmarks is not None
    row = dict(zip(LANDMARK_COLUMNS, face.landmarks.ravel(), strict=True))
    return row | dict(zip(BOX_COLUMNS, (face.left, face.top, face.width, face.height), strict=True))


def test_landmarks_follow_the_pixels_into_the_crop():
    picture = np.full((300, 400, 3), 90, np.uint8)
    matrix = cv2.getRotationMatrix2D((0.0, 0.0), 20, 150)
    points = (TEMPLATE @ matrix[:, :2].T + (120, 130)).astype(np.float32)
    for number, (x, y) in enumerate(points):
        cv2.circle(picture, (round(float(x)), round(float(y))), 7, (255, 255, 255) if number < 2 else (0, 0, 0), -1)
    face = Face(float(points[:, 0].min() - 40), float(points[:, 1].min() - 60), 150.0, 160.0, 0.99, points)
    rows = pd.DataFrame([face_row(face)]).assign(face_status="found")
    for options in (FACES, replace(FACES, align="box", size=64)):
        crop = network_input(picture, face, options)[:, :, 0].astype(int)
        found, known = crop_landmarks(rows, options)
        assert known.all()
        for number, (x, y) in enumerate(np.round(found[0]).astype(int)):
            assert (crop[y, x] > 150) if number < 2 else (crop[y, x] < 50)


def test_template_replaces_unknown_and_implausible_landmarks():
    known = face_row(Face(10.0, 0.0, 80.0, 105.0, 1.0, TEMPLATE * 100))
    unknown = dict.fromkeys([*LANDMARK_COLUMNS, *BOX_COLUMNS], np.nan)
    implausible = {**known, **dict.fromkeys(LANDMARK_COLUMNS, 50.0), "left_eye_x": 49.0}
    table = pd.DataFrame([known, unknown, implausible]).assign(face_status=["found", "whole_image", "found"])
    points, from_table = crop_landmarks(table, FACES)
    np.testing.assert_allclose(points, np.stack([POINTS] * 3), atol=0.01)
    assert from_table[0] and not from_table[1]


def dataset(count: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Make images that are bright at the mouth for happiness, and alike elsewhere."""
    truth = random_source().integers(2, size=count)
    images = np.full((count, 48, 48, 1), 100, np.uint8)
    images[:, 34:42, 16:32] += (80 * truth).astype(np.uint8)[:, None, None, None]
    rows = pd.DataFrame({"emotion": np.array(LABELS)[truth], "face_status": "whole_image"})
    return rows.assign(**dict.fromkeys([*BOX_COLUMNS, *LANDMARK_COLUMNS], np.nan)), images


def mouth_model(images: np.ndarray) -> np.ndarray:
    """Predict happiness from the brightness of the mouth."""
    bright = images[:, 35:41, 18:30, 0].mean(axis=(1, 2)) / 255
    return np.stack([np.full(len(images), 0.55), bright], axis=1)


@pytest.mark.figures
def test_model_of_the_mouth_fails_when_the_mouth_is_occluded(tmp_path):
    rows, images = dataset(120)
    models = {"mouth": mouth_model, "constant": lambda images: np.tile([1.0, 0.0], (len(images), 1))}
    section = robustness_section(models, rows, images, LABELS, FACES, tmp_path, 90, QUICK)
    assert json.loads(json.dumps(section.values, allow_nan=False)) == section.values
    found = pd.DataFrame(section.values["perturbations"]).set_index(["model", "perturbation"])["accuracy"]
    accuracy = found["mouth"]
    assert accuracy["none"] == accuracy["eyes"] == accuracy["one eye"] == 1
    assert accuracy["mouth"] == accuracy["nose and mouth (black)"] == found["constant"]["none"]
    assert accuracy["random box 10%"] > accuracy["random box 60%"]
    assert section.tables[0].frame["mouth: accuracy, %"]["eyes"] == "100.0 (95.9 to 100.0)"
    assert section.values["n"] == 90 and "sample of 120" in section.sentences[0]
    assert "constant is more robust" in section.sentences[-1]
    for figure in section.figures:
        assert matplotlib.image.imread(figure.file).shape[1] > 500
        assert figure.shows_faces == (figure.file.stem == "perturbations")
        assert figure.shows_faces or len(pd.read_csv(figure.file.with_suffix(".csv"))) >= 10
