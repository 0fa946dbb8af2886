from dataclasses import replace

import cv2
import numpy as np
import pytest
from conftest import PORTRAIT

from common.errors import InputError
from configuration import FACES
from inference.crops import TEMPLATE, detect_in_crop, is_face_crop, network_input, read_image_rgb, similarity
from inference.face_detector import FaceDetector
from inference.faces import Face, choose_face


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


@pytest.mark.parametrize(("roll", "side"), [(0, 48), (0, 200), (25, 120), (-40, 30), (170, 96)])
def test_landmarks_are_aligned_to_the_template(roll, side):
    face = rotated_face(roll, side)
    crop = network_input(dotted_image(points_of(face), side / 30), face)[:, :, 0]
    for x, y in TEMPLATE * 48 - 0.5:
        near_x, near_y = round(x), round(y)
        window = crop[near_y - 3 : near_y + 4, near_x - 3 : near_x + 4].astype(float) - 20
        offsets = np.arange(-3, 4)
        assert (window.sum(0) @ offsets) / window.sum() == pytest.approx(x - near_x, abs=0.35)
        assert (window.sum(1) @ offsets) / window.sum() == pytest.approx(y - near_y, abs=0.35)


def test_similarity_is_the_least_squares_solution():
    random = np.random.default_rng(1)
    points, targets = random.normal(50, 20, (5, 2)), random.normal(24, 10, (5, 2))
    (x, y), ones, zeros = points.T, np.ones(5), np.zeros(5)
    rows = np.vstack([np.stack([x, -y, ones, zeros], 1), np.stack([y, x, zeros, ones], 1)])
    a, b, shift_x, shift_y = np.linalg.lstsq(rows, targets.T.ravel(), rcond=None)[0]
    np.testing.assert_allclose(similarity(points, targets), [[a, -b, shift_x], [b, a, shift_y]], rtol=1e-9)


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


def test_pixels_beyond_the_border_repeat_the_outermost_ones():
    image = np.full((100, 100), 80, np.uint8)
    image[:, :50] = 200
    crop = network_input(image, Face(-30, 10, 60, 76, 1.0, None))[:, :, 0]
    assert (crop == 200).all()


def test_large_face_does_not_alias():
    checkers = (np.indices((960, 960)).sum(axis=0) % 2 * 255).astype(np.uint8)
    crop = network_input(checkers, Face(130.3, 131.7, 500, 703.1, 1.0, None))
    assert np.abs(crop.astype(int) - 127).max() <= 4


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


def test_gray_crop_of_the_right_size_keeps_its_pixels():
    image = np.random.default_rng(3).integers(0, 256, (48, 48)).astype(np.uint8)
    for same in (image, image[:, :, None], np.dstack([image] * 3)):
        crop = network_input(same, None)
        assert crop.shape == (48, 48, 1) and crop.dtype == np.uint8 and not np.shares_memory(crop, same)
        np.testing.assert_array_equal(crop[:, :, 0], image)


def test_central_square_of_an_image_is_cropped():
    image = np.zeros((60, 100, 3), np.uint8)
    image[:, 20:80] = (10, 20, 30)
    crop = network_input(image, None, replace(FACES, size=24, channels=3))
    assert crop.shape == (24, 24, 3) and (crop == (10, 20, 30)).all()


def test_colour_is_read_in_rgb_order_without_transparency(tmp_path):
    cv2.imwrite(str(tmp_path / "red é.png"), np.full((48, 48, 4), (0, 0, 255, 7), np.uint8))  # BGR and opacity
    crop = network_input(read_image_rgb(tmp_path / "red é.png"), None, replace(FACES, channels=3))
    assert (crop == (255, 0, 0)).all()


@pytest.mark.parametrize("content", [None, b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_file_that_is_not_an_image_is_refused(tmp_path, content):
    file = tmp_path / "x.png"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.png cannot be read"):
        read_image_rgb(file)
