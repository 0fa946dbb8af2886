import json
from dataclasses import replace

import cv2
import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from configuration import FACES, ROBUSTNESS
from evaluation.sections.face_regions import faces_of, points_in_crops
from evaluation.sections.robustness import (
    PARTS,
    Candidate,
    apply_cover,
    blur,
    build_covers,
    compare,
    covered_faces,
    darkness,
    describe,
    low_resolution,
    noise,
    random_box,
    small_erasing_count,
)
from inference.crops import TEMPLATE, network_input
from inference.faces import Face
from preprocessing.tables import BOX_COLUMNS, LANDMARK_COLUMNS

LABELS = ("anger", "happiness")
FEW = replace(
    ROBUSTNESS,
    resamples=200,
    small_erasing_count=(2,),
    boxes=(0.1, 0.3, 0.6),
    blur=(1.0,),
    noise=(10,),
    darkness=(0.5,),
    jpeg=(20,),
    resolution=(12,),
)
POINTS = TEMPLATE * 48 - 0.5


def random_source(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def gray(value: int = 200, size: int = 48) -> np.ndarray:
    return np.full((size, size, 1), value, np.uint8)


def is_covered(apply, points: np.ndarray, size: int = 48) -> np.ndarray:
    """Return which pixels a cover changes."""
    return (apply(gray(size=size), points, random_source()) != 200)[:, :, 0]


def at(mask: np.ndarray, point: np.ndarray) -> bool:
    x, y = np.round(point).astype(int)
    return bool(mask[y, x])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("cover", build_covers(), ids=lambda cover: cover.name)
def test_every_cover_gives_another_image_of_the_same_form_and_leaves_the_given_one(cover, channels):
    image = random_source().integers(60, 200, (48, 48, channels)).astype(np.uint8)
    before = image.copy()
    first, again = (cover.apply(image, POINTS, random_source(3)) for _ in range(2))
    assert first.shape == image.shape and first.dtype == np.uint8
    assert (first != image).any() and (image == before).all()
    np.testing.assert_array_equal(first, again)


# Which of the landmarks (left eye, right eye, nose, left and right corner of the mouth) a cover hides.
HIDDEN = {
    "eyes": "11000",
    "mouth": "00011",
    "nose and mouth (black)": "00111",
    "nose and mouth (mask)": "00111",
    "dark glasses": "11000",
    "rimmed glasses": "00000",
    "left half": "10?10",
    "right half": "01?01",
}


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("turn", [0, 25])
def test_a_part_is_covered_where_the_landmarks_are(name, turn):
    matrix = cv2.getRotationMatrix2D((50.0, 44.0), turn, 1.3)
    points = (TEMPLATE * 60) @ matrix[:, :2].T + matrix[:, 2] - 2
    mask = is_covered(PARTS[name], points.astype(np.float32), size=96)
    for point, expected in zip(points, HIDDEN[name], strict=True):
        assert expected == "?" or at(mask, point) == (expected == "1")


def test_one_eye_is_either_one_and_never_both():
    hidden = set()
    for seed in range(20):
        mask = (PARTS["one eye"](gray(), POINTS, random_source(seed)) != 200)[:, :, 0]
        hidden.add((at(mask, POINTS[0]), at(mask, POINTS[1])))
    assert hidden == {(True, False), (False, True)}


def test_a_beard_leaves_the_lips_free_and_hides_chin_and_cheek():
    mask = is_covered(PARTS["beard"], POINTS)
    lips, chin, cheek = POINTS[3:].mean(axis=0), np.array([23.5, 46]), np.array([8, 34])
    assert not at(mask, lips) and at(mask, chin) and at(mask, cheek)
    assert not at(mask, POINTS[2])


def test_scars_are_boxes_of_six_by_two_pixels():
    for seed in range(10):
        rows, columns = np.nonzero(small_erasing_count(1)(gray(), POINTS, random_source(seed))[:, :, 0] == 0)
        assert sorted([np.ptp(rows) + 1, np.ptp(columns) + 1]) == [2, 6] and len(rows) == 12
    large = small_erasing_count(1)(gray(size=96), POINTS, random_source())
    assert (large == 0).sum() == 48


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_a_random_box_has_the_share_of_the_area_that_its_name_says(share):
    areas = [(random_box(share)(gray(), POINTS, random_source(seed)) == 0).mean() for seed in range(50)]
    np.testing.assert_allclose(areas, share, atol=0.03)


def test_picture_quality_changes_by_the_stated_amounts():
    middle = gray(128, 200)
    assert noise(10)(middle, POINTS, random_source()).std() == pytest.approx(10, abs=0.3)
    assert (darkness(0.75)(gray(200), POINTS, random_source()) == 50).all()
    fine = np.indices((48, 48)).sum(axis=0)[:, :, None].astype(np.uint8) % 2 * 255
    assert low_resolution(24)(fine, POINTS, random_source()).std() < 2  # a checkerboard of pixels is gone
    edge = np.where(np.arange(96) < 48, 0, 255).astype(np.uint8)[None, :, None].repeat(96, axis=0)
    profile = blur(1)(edge, POINTS, random_source())[48, :, 0] / 255
    spread = np.diff(profile)
    assert np.sqrt((spread * (np.arange(95) - 47) ** 2).sum()) == pytest.approx(2, abs=0.6)  # 1 px of 48


def test_landmarks_go_into_the_crop_as_the_pixels_do():
    picture = np.full((300, 400, 3), 90, np.uint8)
    matrix = cv2.getRotationMatrix2D((0.0, 0.0), 20, 150)
    points = (TEMPLATE @ matrix[:, :2].T + (120, 130)).astype(np.float32)
    for number, (x, y) in enumerate(points):
        cv2.circle(picture, (round(float(x)), round(float(y))), 7, (255, 255, 255) if number < 2 else (0, 0, 0), -1)
    box = (float(points[:, 0].min() - 40), float(points[:, 1].min() - 60), 150.0, 160.0)
    for options in (FACES, replace(FACES, align="box", size=64)):
        face = Face(*box, 0.99, points)
        crop = network_input(picture, face, options)[:, :, 0].astype(int)
        (found,) = points_in_crops([face], options)
        for number, point in enumerate(found):
            x, y = np.round(point).astype(int)
            assert (crop[y, x] > 150) if number < 2 else (crop[y, x] < 50)


def test_faces_come_from_the_table_and_the_template_stands_in():
    row = dict(zip(LANDMARK_COLUMNS, (TEMPLATE * 100).ravel(), strict=True))
    row |= dict(zip(BOX_COLUMNS, (10.0, 0.0, 80.0, 105.0), strict=True))
    empty = dict.fromkeys([*LANDMARK_COLUMNS, *BOX_COLUMNS], np.nan)
    wild = {**row, **dict.fromkeys(LANDMARK_COLUMNS, 50.0), "left_eye_x": 49.0}
    table = pd.DataFrame([row, empty, wild]).assign(face_status=["found", "whole_image", "found"])
    faces = faces_of(table)
    assert faces[0] is not None and faces[1] is None
    points = points_in_crops(faces, FACES)
    np.testing.assert_allclose(points, np.stack([POINTS] * 3), atol=0.01)


# ---------------------------------------------------------------- the measurement


def dataset(count: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Make images that are bright at the mouth for happiness, and all alike elsewhere."""
    truth = random_source().integers(2, size=count)
    images = np.full((count, 48, 48, 1), 100, np.uint8)
    images[:, 34:42, 16:32] += (80 * truth).astype(np.uint8)[:, None, None, None]
    rows = pd.DataFrame({"emotion": np.array(LABELS)[truth], "face_status": "whole_image"})
    return rows.assign(**dict.fromkeys([*BOX_COLUMNS, *LANDMARK_COLUMNS], np.nan)), images


def looks_at(top: int, bottom: int):
    """Return a model that takes brightness between two rows for happiness."""

    def predict(images: np.ndarray) -> np.ndarray:
        bright = images[:, top:bottom, 18:30, 0].mean(axis=(1, 2)) / 255
        return np.stack([np.full(len(images), 0.55), bright], axis=1)

    return predict


def card(scar_count: int, **settings) -> dict:
    return {
        "hyperparameters": {
            "network": "vgg",
            **settings,
            "augmentation": {"small_erasing_count": scar_count, "flip": True},
        }
    }


def test_a_model_that_looks_at_the_mouth_fails_when_the_mouth_is_covered(tmp_path):
    rows, images = dataset(120)
    section = covered_faces({"mouth": Candidate(looks_at(35, 41))}, rows, images, LABELS, FACES, tmp_path, FEW)
    table = {row["cover"]: row["accuracy"] for row in section.values["covers"]}
    assert section.tables[0].frame["mouth: accuracy, %"]["eyes"] == "100.0 (96.9 to 100.0)"
    happy = (rows["emotion"] == "happiness").mean()
    assert table["none"] == 1 and table["eyes"] == 1 and table["one eye"] == 1
    assert table["mouth"] == table["nose and mouth (black)"] == pytest.approx(1 - happy)
    boxes = [table[f"random box {share:.0%}"] for share in FEW.boxes]
    assert json.loads(json.dumps(section.values, allow_nan=False)) == section.values
    assert boxes[0] > boxes[-1] and section.values["n"] == 120
    assert "uncovered" in section.sentences[1] and "mouth" in section.sentences[1]
    for figure in section.figures:
        assert matplotlib.image.imread(figure.file).shape[1] > 500
        assert figure.shows_faces == (figure.file.stem == "covers")
        assert figure.shows_faces or len(pd.read_csv(figure.file.with_suffix(".csv"))) >= 10


def test_the_sample_is_seeded_and_the_same_for_all_models(tmp_path):
    rows, images = dataset(90)
    options = replace(FEW, images=40)
    first, again = (
        covered_faces({"a": Candidate(looks_at(35, 41))}, rows, images, LABELS, FACES, tmp_path, options)
        for _ in range(2)
    )
    pd.testing.assert_frame_equal(first.tables[0].frame, again.tables[0].frame)
    assert first.values["n"] == 40 and "sample of 90" in first.sentences[0]


def test_intervals_are_those_of_resampled_images_and_paired_between_models(tmp_path):
    random = random_source(1)
    first = random.random((400, 3)) < (0.8, 0.5, 0.6)
    second = first.copy()
    second[:, 2] = random.random(400) < 0.3
    covers = [replace(build_covers()[0], name="same"), replace(build_covers()[1], name="worse")]
    draws = random_source(2).integers(400, size=(4000, 400))
    means = first[draws].mean(axis=1), second[draws].mean(axis=1)
    rows = compare(*means, first, second, covers, 0.95).itertuples(index=False)
    found = {name: figures for name, *figures in rows}
    assert found["same"] == [0, 0, 0]  # paired: the very same answers
    difference = second[:, 2].astype(float) - first[:, 2]
    value, low, high = found["worse"]
    width = 1.96 * difference.std() / 20
    assert value == pytest.approx(difference.mean())
    assert [value - low, high - value] == pytest.approx([width, width], rel=0.1)
    assert found["mean: all covers"][0] == pytest.approx(difference.mean() / 2)


def test_does_the_first_projects_idea_work(tmp_path):
    rows, images = dataset(150)

    def robust(images: np.ndarray) -> np.ndarray:
        # Looks for any brightness in the whole lower face, so a small black box does not decide.
        bright = np.quantile(images[:, 35:41, 18:30, 0].reshape(len(images), -1), 0.9, axis=1) / 255
        return np.stack([np.full(len(images), 0.55), bright], axis=1)

    models = {"a": Candidate(robust, card(2)), "b": Candidate(looks_at(35, 41), card(0))}
    section = covered_faces(models, rows, images, LABELS, FACES, tmp_path, FEW)
    comparison = section.tables[1].frame.reset_index()
    gain = -section.tables[1].frame["difference of drops"]["mean: random box"]
    assert gain > 0 and not section.warnings
    answer = section.sentences[-1]
    assert "Does the first project's idea work" in answer and "kept by a (with)" in answer
    assert f"random box: {100 * gain:.1f} (" in answer and "it helps" in answer

    # The same numbers, were it the second model that had the scars.
    turned, _ = describe("a", card(0), "b", card(2), comparison)
    assert "kept by b (with)" in turned and f"random box: {-100 * gain:.1f} (" in turned and "it harms" in turned
    nothing, _ = describe("a", card(2), "b", card(0), comparison.assign(low=-1.0, high=1.0))
    assert nothing.count("not shown either way") == 5
    larger = {"hyperparameters": {"augmentation": {"small_erasing_count": 2, "cutout_max_size": 16}}}
    none = {"hyperparameters": {"augmentation": {"small_erasing_count": 2, "cutout_max_size": 0}}}
    told, warnings = describe("a", none, "b", larger, comparison)
    assert "a larger black box" in told and "kept by b (with)" in told and not warnings
    _, (warning,) = describe("a", card(2, network="big"), "b", card(0), comparison)
    assert "network" in warning and "twin" in warning
    for cards in ((card(2), card(2)), (card(0), card(0)), ({}, card(2))):
        assert "cannot be told" in describe("a", cards[0], "b", cards[1], comparison)[0]


def test_random_numbers_of_an_image_do_not_depend_on_the_others():
    images = random_source().integers(0, 255, (5, 48, 48, 1)).astype(np.uint8)
    points = np.stack([POINTS] * 5)
    for cover in build_covers():
        np.testing.assert_array_equal(
            apply_cover(cover, images, points, 7)[:2], apply_cover(cover, images[:2], points[:2], 7)
        )
