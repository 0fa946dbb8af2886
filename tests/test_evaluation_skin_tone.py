import cv2
import numpy as np
import pandas as pd
import pytest

from configuration import GROUPS
from evaluation.skin_tone import BINS, COLUMN, estimate_angle, skin_tones, tone, typology_angle
from preprocessing.faces import TEMPLATE, Face
from preprocessing.image_tables import BOX_COLUMNS, LANDMARK_COLUMNS

LABELS = ("anger", "happiness")
# L*, b* and the angle that they make, by hand: tan(45 degrees) = 1, tan(-45) = -1, and so on.
KNOWN = [(70, 20, 45.0), (50, 20, 0.0), (30, 20, -45.0), (60, 10 * np.sqrt(3), 30.0), (30, 20 / np.sqrt(3), -60.0)]


def lab_picture(lightness: float, blue_yellow: float, size: int = 80) -> np.ndarray:
    lab = np.full((size, size, 3), (lightness, 8, blue_yellow), np.float32)
    return np.round(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB) * 255).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("lightness", "blue_yellow", "angle"), KNOWN)
def test_the_angle_is_that_of_the_formula_and_is_read_from_a_picture(lightness, blue_yellow, angle):
    assert typology_angle(lightness, blue_yellow) == pytest.approx(angle)
    read = estimate_angle(lab_picture(lightness, blue_yellow), None)
    assert read == pytest.approx(angle, abs=2.5)


@pytest.mark.parametrize(
    ("angle", "name"),
    [(56, "very light"), (55, "light"), (42, "light"), (41, "intermediate"), (28, "tan"), (10, "brown"), (-30, "dark")],
)
def test_bins_begin_above_their_published_limits(angle, name):
    assert tone(angle) == name and tone(float("nan")) == ""


def test_only_the_cheeks_are_read_wherever_the_face_is():
    picture = np.full((300, 300, 3), (20, 60, 200), np.uint8)  # a blue room
    points = (TEMPLATE * 120 + (90, 60)).astype(np.float32)
    eyes, nose, mouth = points[:2], points[2], points[3:]
    for eye, corner in zip(eyes, mouth, strict=True):
        x, y = np.round((eye + nose + corner) / 3).astype(int)
        cv2.circle(picture, (int(x) + (10 if x > 150 else -10), int(y)), 17, lab_picture(70, 20, 1)[0, 0].tolist(), -1)
    face = Face(90, 60, 120, 126, 0.99, points)
    assert estimate_angle(picture, face) == pytest.approx(45, abs=4)
    assert np.isnan(estimate_angle(picture, Face(5, 5, 80, 84, 0.9)) or 0)  # the room: too blue for skin


def test_gray_dark_and_blue_pictures_give_no_tone():
    assert estimate_angle(np.full((60, 60, 3), 128, np.uint8), None) is None
    assert np.isnan(estimate_angle(lab_picture(2, 2), None) or 0)
    assert np.isnan(estimate_angle(lab_picture(60, -15), None) or 0)


def dataset(folder, count: int, gray: bool) -> pd.DataFrame:
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(count):
        lightness = (72.0, 35.0)[number % 2] + random.normal(0, 1)
        image_rgb = lab_picture(lightness, 18.0, 24)
        if gray:
            image_rgb = np.repeat(cv2.cvtColor(image_rgb, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2)
        cv2.imwrite(str(folder / f"images/{number}.png"), image_rgb[:, :, ::-1])
        rows.append({"path": f"images/{number}.png", "emotion": LABELS[number // 2 % 2]})
    columns = dict.fromkeys([*BOX_COLUMNS, *LANDMARK_COLUMNS], np.nan)
    return pd.DataFrame(rows).assign(face_status="whole_image", subject="", **columns)


def test_a_model_that_fails_dark_skin_is_found_out_and_labelled_an_estimate(tmp_path):
    rows = dataset(tmp_path, 160, gray=False)
    prediction = rows["emotion"].to_numpy(copy=True)
    prediction[1::2] = "anger"
    section = skin_tones(rows, prediction.tolist(), LABELS, tmp_path, tmp_path / "report")
    assert section.values[COLUMN]["alarm"] and set(BINS) >= {row["group"] for row in section.values[COLUMN]["scores"]}
    assert "ESTIMATED" in section.sentences[0] and "Chardon" in section.sentences[0]
    assert "estimates" in section.warnings[0]


def test_on_gray_pictures_it_declines_and_says_why(tmp_path):
    rows = dataset(tmp_path, 80, gray=True)
    section = skin_tones(rows, ["anger"] * 80, LABELS, tmp_path, tmp_path / "report", GROUPS)
    assert "NOT measured" in section.sentences[0] and "pictures are gray" in section.sentences[0]
    assert "--group-table" in section.sentences[0]
    assert section.values["measured"] is False and not section.tables and not section.figures


def test_one_tone_alone_is_not_compared(tmp_path):
    rows = dataset(tmp_path, 80, gray=False).iloc[::2]
    section = skin_tones(rows, ["anger"] * 40, LABELS, tmp_path, tmp_path / "report")
    assert "the only tone found is light (40)" in section.sentences[1] or "very light" in section.sentences[1]
