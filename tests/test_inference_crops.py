from dataclasses import replace

import cv2
import numpy as np
import pytest

from common.errors import InputError
from configuration import FACES
from inference.crops import TEMPLATE, detect_in_crop, is_face_crop, network_input, read_image_rgb
from inference.face_detector import FaceDetector
from inference.faces import Face, choose_face
from preprocessing.datasets.sample import PORTRAIT


def points_of(face: Face) -> np.ndarray:
    assert face.landmarks is not None
    return face.landmarks


def test_choose_face_takes_the_largest_or_the_most_central_of_similar_ones():
    small, large = Face(45, 45, 10, 10, 0.99), Face(0, 0, 20, 20, 0.7)
    assert choose_face([small, large], (100, 100, 3)) is large
    corner, centre = Face(0, 0, 21, 21, 0.99), Face(40, 40, 20, 20, 0.7)
    assert choose_face([corner, centre], (100, 100)) is centre
    assert choose_face([], (100, 100, 3)) is None


def dotted_image(points: np.ndarray, radius: float) -> np.ndarray:
    """Return a gray 400 x 400 image with smooth bright dots at the points (x, y)."""
    y, x = np.mgrid[:400, :400]
    dots = [np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * radius**2)) for px, py in points]
    return (20 + 200 * np.max(dots, axis=0)).astype(np.uint8)


def rotated_face(roll: float, side: float) -> Face:
    """Return a face whose template square has this side (pixels), rotated by `roll` degrees about (200, 190)."""
    sine, cosine = np.sin(np.radians(roll)), np.cos(np.radians(roll))
    points = ((TEMPLATE - 0.5) * side) @ np.array([[cosine, sine], [-sine, cosine]]) + (200, 190)
    height = side / 0.95
    return Face(200 - 0.4 * height, 190 - height / 2, 0.8 * height, height, 0.99, points.astype(np.float32))


@pytest.mark.parametrize(("roll", "side"), [(0, 200), (-40, 30), (170, 96)])
def test_landmarks_are_aligned_to_the_template(roll, side):
    face = rotated_face(roll, side)
    crop = network_input(dotted_image(points_of(face), side / 30), face)[:, :, 0]
    for x, y in TEMPLATE * 48 - 0.5:
        near_x, near_y = round(x), round(y)
        window = crop[near_y - 3 : near_y + 4, near_x - 3 : near_x + 4].astype(float) - 20
        offsets = np.arange(-3, 4)
        assert (window.sum(0) @ offsets) / window.sum() == pytest.approx(x - near_x, abs=0.35)
        assert (window.sum(1) @ offsets) / window.sum() == pytest.approx(y - near_y, abs=0.35)


def test_landmarks_that_contradict_the_box_are_ignored():
    face = rotated_face(0, 100)
    image_rgb = np.random.default_rng(2).integers(0, 256, (400, 400, 3)).astype(np.uint8)
    wrong = replace(face, landmarks=(points_of(face) - 200) * 40 + 200)
    expected = network_input(image_rgb, face, replace(FACES, align="box"))
    np.testing.assert_array_equal(network_input(image_rgb, wrong), expected)


def test_box_crop_is_a_square_with_095_of_the_box_height():
    image = np.zeros((200, 300), np.uint8)
    image[50:146, 100:196] = np.arange(96)[:, None] + np.arange(96)  # 96 = 2 x 48 pixels
    height = 96 / 0.95
    face = Face(148 - 0.4 * height, 98 - height / 2, 0.8 * height, height, 1.0, None)
    expected = image[50:146, 100:196].reshape(48, 2, 48, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(network_input(image, face)[:, :, 0], expected, atol=1)


def test_crop_does_not_alias_and_repeats_the_pixels_of_the_border():
    checkers = (np.indices((960, 960)).sum(axis=0) % 2 * 255).astype(np.uint8)
    crop = network_input(checkers, Face(130.3, 131.7, 500, 703.1, 1.0, None))
    assert np.abs(crop.astype(int) - 127).max() <= 4
    image = np.full((100, 100), 80, np.uint8)
    image[:, :50] = 200
    assert (network_input(image, Face(-30, 10, 60, 76, 1.0, None)) == 200).all()


def test_crops_of_the_portrait():
    image_rgb, detector = read_image_rgb(PORTRAIT), FaceDetector()
    face = detector.detect(image_rgb)[0]
    points = points_of(face)[[1, 0, 2, 4, 3]] * (-1, 1) + (image_rgb.shape[1] - 1, 0)
    mirrored = replace(face, left=image_rgb.shape[1] - face.left - face.width, landmarks=points)
    crop, other = network_input(image_rgb, face), network_input(image_rgb[:, ::-1], mirrored)
    np.testing.assert_allclose(crop.astype(int), other[:, ::-1].astype(int), atol=2)
    assert is_face_crop(crop) and not is_face_crop(image_rgb)
    (found,) = detect_in_crop(crop, detector)
    np.testing.assert_allclose(points_of(found), TEMPLATE * 48 - 0.5, atol=2.5)


def test_whole_image_keeps_its_pixels_and_colours_and_gives_its_central_square(tmp_path):
    gray = np.random.default_rng(3).integers(0, 256, (48, 48)).astype(np.uint8)
    for same in (gray, gray[:, :, None], np.dstack([gray] * 3)):
        crop = network_input(same, None)
        assert crop.dtype == np.uint8 and not np.shares_memory(crop, same)
        np.testing.assert_array_equal(crop, gray[:, :, None])
    image = np.zeros((60, 100, 4), np.uint8)
    image[:, 20:80] = (0, 0, 255, 7)  # BGR and opacity
    cv2.imwrite(str(tmp_path / "red é.png"), image)
    crop = network_input(read_image_rgb(tmp_path / "red é.png"), None, replace(FACES, size=24, channels=3))
    assert crop.shape == (24, 24, 3) and (crop == (255, 0, 0)).all()


def test_file_that_is_not_an_image_is_refused(tmp_path):
    for content in (None, b"", b"\x89PNG\r\n\x1a\n"):
        if content is not None:
            (tmp_path / "x.png").write_bytes(content)
        with pytest.raises(InputError, match=r"x\.png cannot be read"):
            read_image_rgb(tmp_path / "x.png")
