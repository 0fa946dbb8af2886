import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import joblib
import matplotlib
import numpy as np
import pytest

from configuration import FACES, ROOT
from preprocessing.errors import InputError
from preprocessing.faces import (
    TEMPLATE,
    Face,
    FaceDetector,
    HaarDetector,
    build_detector,
    choose_face,
    detect_in_crop,
    is_face_crop,
    network_input,
    pyramid,
    read_image_rgb,
    similarity,
    suppress,
)
from preprocessing.image_tables import LANDMARKS
from preprocessing.sample import PORTRAIT_LANDMARKS

PORTRAIT = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"


@pytest.fixture(scope="module")
def portrait_rgb() -> np.ndarray:
    return read_image_rgb(PORTRAIT)


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector()


def box_of(face: Face) -> np.ndarray:
    return np.array([face.left, face.top, face.width, face.height])


def points_of(face: Face) -> np.ndarray:
    assert face.landmarks is not None
    return face.landmarks


def intersection_over_union(a, b) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


# ---------------------------------------------------------------- detection


@pytest.mark.parametrize("smallest_face", [20, 40, 80, 120, 200])
def test_the_face_is_found_whatever_the_smallest_face(portrait_rgb, smallest_face):
    faces = FaceDetector(replace(FACES, smallest_face=smallest_face)).detect(portrait_rgb)
    assert len(faces) == 1 and faces[0].confidence > 0.9
    np.testing.assert_allclose(points_of(faces[0]), PORTRAIT_LANDMARKS, atol=8)


def test_no_face_is_looked_for_above_the_size_of_the_picture(portrait_rgb):
    assert FaceDetector(replace(FACES, smallest_face=700)).detect(portrait_rgb) == []


def test_faces_agree_with_stock_mtcnn(portrait_rgb, shared_data):
    from mtcnn import MTCNN

    stock: Any = MTCNN()
    ours = FaceDetector(replace(FACES, smallest_face=20))
    distances = []
    for image_rgb in (portrait_rgb, read_image_rgb(shared_data / "photos" / "multiface.jpg")):
        expected = [face for face in stock.detect_faces(image_rgb) if face["confidence"] >= 0.9]
        found = [face for face in ours.detect(image_rgb) if face.confidence >= 0.9]
        assert len(expected) == len(found) >= 1
        for face in expected:
            best = max(found, key=lambda other: intersection_over_union(face["box"], box_of(other)))
            assert intersection_over_union(face["box"], box_of(best)) >= 0.7
            points = np.array([face["keypoints"][name] for name in LANDMARKS])
            distances.append(np.abs(points_of(best) - points).max() / best.height)
    assert np.median(distances) < 0.02


def test_left_is_the_viewers_left_also_in_the_mirror(portrait_rgb, detector):
    for image_rgb in (portrait_rgb, portrait_rgb[:, ::-1]):
        left_eye, right_eye, nose, mouth_left, mouth_right = points_of(detector.detect(image_rgb)[0])
        assert left_eye[0] < nose[0] < right_eye[0]
        assert mouth_left[0] < nose[0] < mouth_right[0]
        assert left_eye[1] < nose[1] < mouth_left[1]


def test_gray_pictures_are_searched_as_rgb_ones_of_the_same_pixels(portrait_rgb, detector):
    gray = cv2.cvtColor(portrait_rgb, cv2.COLOR_RGB2GRAY)
    flat, deep, rgb = (detector.detect(image) for image in (gray, gray[:, :, None], np.dstack([gray] * 3)))
    assert box_of(flat[0]).tolist() == box_of(deep[0]).tolist() == box_of(rgb[0]).tolist()


def test_a_large_picture_is_searched_reduced_and_answered_in_its_own_pixels(portrait_rgb, detector):
    large_rgb = cv2.resize(portrait_rgb, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    face, expected = detector.detect(large_rgb)[0], detector.detect(portrait_rgb)[0]
    assert intersection_over_union(box_of(face), 4 * box_of(expected)) > 0.75
    np.testing.assert_allclose(points_of(face), 4 * points_of(expected), atol=0.05 * face.height)


@pytest.mark.parametrize("shape", [(1, 1), (12, 12), (30, 4000), (4000, 30), (1, 3000, 3), (39, 39, 3), (64, 64, 1)])
@pytest.mark.parametrize("name", ["mtcnn", "haar"])
def test_pictures_of_odd_sizes_without_a_face_give_none(shape, name):
    image_rgb = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    assert build_detector(name).detect(image_rgb) == []


def test_the_same_picture_gives_the_same_faces_as_plain_numbers(portrait_rgb, detector):
    first, second = (detector.detect(portrait_rgb)[0] for _ in range(2))
    assert json.dumps([first.left, first.top, first.width, first.height, first.confidence])
    assert box_of(first).tolist() == box_of(second).tolist()
    assert points_of(first).shape == (5, 2) and points_of(first).dtype == np.float32


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((50, 50, 3), np.float32),
        np.zeros((50, 50, 4), np.uint8),
        np.zeros((1, 50, 50, 3), np.uint8),
        np.zeros((0, 50, 3), np.uint8),
        np.zeros((50, 50, 3), np.int32),
    ],
    ids=["float", "RGBA", "batch", "empty", "int32"],
)
def test_what_is_no_picture_is_refused(image, detector):
    for use in (detector.detect, HaarDetector().detect, lambda image: network_input(image, None)):
        with pytest.raises(ValueError, match="Received"):
            use(image)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("size", 0), ("channels", 2), ("align", "nose"), ("smallest_face", 5), ("largest_side", 0),
        ("thresholds", (0.5, 0.5)), ("thresholds", [0.5, 0.5, 1.5]), ("scale_factor", 1.0), ("enlarge", 0),
        ("crop_side", -1),
    ],
)  # fmt: skip
def test_nonsense_options_are_refused_by_name(option, value):
    options = replace(FACES, **{option: value})
    for build in (FaceDetector, HaarDetector, lambda options: network_input(np.zeros((9, 9), np.uint8), None, options)):
        with pytest.raises(InputError, match=option):
            build(options)


def test_an_unknown_detector_is_refused():
    with pytest.raises(InputError, match="mtcnn or haar"):
        build_detector("yolo")


def test_importing_is_cheap_and_weights_in_the_current_folder_are_not_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    for name in ("pnet.lz4", "rnet.lz4", "onet.lz4"):
        joblib.dump(Trap(), tmp_path / name)
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from typing import Any
from preprocessing import faces
assert not {{"tensorflow", "keras", "mtcnn"}} & set(sys.modules), "a heavy import"
print(len(faces.FaceDetector().detect(faces.read_image_rgb(Path({str(PORTRAIT)!r})))), "face")
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout == "1 face\n", run.stderr
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("smallest_face", [12, 20, 24, 33, 100, 480, 481])
@pytest.mark.parametrize("shape", [(640, 480), (480, 640), (4000, 30), (13, 13)])
def test_the_pyramid_runs_from_the_smallest_face_to_the_whole_picture(shape, smallest_face):
    width, height = shape
    sizes = pyramid(width, height, smallest_face, 0.709)
    if smallest_face > min(shape):
        assert sizes == []
        return
    shortest = [min(size) for size in sizes]
    assert shortest[0] == round(min(shape) * 12 / smallest_face)
    assert 12 <= shortest[-1] <= 12 / 0.709 + 1
    np.testing.assert_allclose(np.array(shortest[1:]) / shortest[:-1], 0.709, atol=0.06)


def test_suppression_keeps_the_best_of_overlapping_boxes():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [2, 2, 6, 6]], float)
    scores = np.array([0.8, 0.9, 0.7, 0.6])
    assert suppress(boxes, scores, 0.7).tolist() == [1, 2, 3]  # 0 and 1: 0.9; 1 and 3: 16 / 90
    assert suppress(boxes, scores, 0.7, of_smaller=True).tolist() == [1, 2]  # 3 lies within 1
    assert suppress(boxes, scores, 0.95).tolist() == [1, 0, 2, 3]
    assert suppress(boxes[:0], scores[:0], 0.5).size == 0


def test_the_cascades_faces_are_framed_as_mtcnns(portrait_rgb, detector):
    (face,), expected = HaarDetector().detect(portrait_rgb), detector.detect(portrait_rgb)[0]
    assert face.landmarks is None and 0 < face.confidence < 1
    assert intersection_over_union(box_of(face), box_of(expected)) > 0.75


def test_a_face_crop_is_searched_enlarged_and_answered_in_its_own_pixels(portrait_rgb, detector):
    crop = network_input(portrait_rgb, detector.detect(portrait_rgb)[0])
    assert is_face_crop(crop) and not is_face_crop(portrait_rgb)
    (face,) = detect_in_crop(crop, detector)
    np.testing.assert_allclose(points_of(face), TEMPLATE * 48 - 0.5, atol=2.5)


# ---------------------------------------------------------------- the chosen face


def test_the_largest_face_is_chosen():
    small, large = Face(45, 45, 10, 10, 0.99), Face(0, 0, 20, 20, 0.7)
    assert choose_face([small, large], (100, 100, 3)) is large


def test_of_faces_about_as_large_the_most_central_is_chosen():
    corner, centre = Face(0, 0, 21, 21, 0.99), Face(40, 40, 20, 20, 0.7)
    assert choose_face([corner, centre], (100, 100)) is centre


def test_no_face_is_chosen_from_none():
    assert choose_face([], (100, 100, 3)) is None


# ---------------------------------------------------------------- the network's input


def dotted_picture(points: np.ndarray, radius: float) -> np.ndarray:
    """Return a gray 400 x 400 picture with smooth bright dots at the points (x, y)."""
    y, x = np.mgrid[:400, :400]
    dots = [np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * radius**2)) for px, py in points]
    return (20 + 200 * np.max(dots, axis=0)).astype(np.uint8)


def turned_face(roll: float, side: float) -> Face:
    """Return a face whose template square has this side (pixels), turned by `roll` degrees about (200, 190)."""
    sine, cosine = np.sin(np.radians(roll)), np.cos(np.radians(roll))
    points = ((TEMPLATE - 0.5) * side) @ np.array([[cosine, sine], [-sine, cosine]]) + (200, 190)
    height = side / 0.95
    return Face(200 - 0.4 * height, 190 - height / 2, 0.8 * height, height, 0.99, points.astype(np.float32))


@pytest.mark.parametrize(("roll", "side"), [(0, 48), (0, 200), (25, 120), (-40, 30), (170, 96)])
def test_landmarks_come_to_lie_on_the_template(roll, side):
    face = turned_face(roll, side)
    crop = network_input(dotted_picture(points_of(face), side / 30), face)[:, :, 0]
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


def test_landmarks_that_contradict_the_box_are_not_followed():
    face = turned_face(0, 100)
    image_rgb = np.random.default_rng(2).integers(0, 256, (400, 400, 3)).astype(np.uint8)
    wrong = replace(face, landmarks=(points_of(face) - 200) * 40 + 200)
    expected = network_input(image_rgb, face, replace(FACES, align="box"))
    np.testing.assert_array_equal(network_input(image_rgb, wrong), expected)


def test_a_box_is_cut_as_a_square_of_its_height():
    image = np.zeros((200, 300), np.uint8)
    image[50:146, 100:196] = np.arange(96)[:, None] + np.arange(96)  # 96 = 2 x 48 pixels
    height = 96 / 0.95
    face = Face(148 - 0.4 * height, 98 - height / 2, 0.8 * height, height, 1.0, None)
    expected = image[50:146, 100:196].reshape(48, 2, 48, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(network_input(image, face)[:, :, 0], expected, atol=1)


def test_beyond_the_border_the_outermost_pixels_go_on():
    image = np.full((100, 100), 80, np.uint8)
    image[:, :50] = 200
    crop = network_input(image, Face(-30, 10, 60, 76, 1.0, None))[:, :, 0]
    assert (crop == 200).all()


def test_a_large_face_does_not_alias():
    checkers = (np.indices((960, 960)).sum(axis=0) % 2 * 255).astype(np.uint8)
    crop = network_input(checkers, Face(130.3, 131.7, 500, 703.1, 1.0, None))
    assert np.abs(crop.astype(int) - 127).max() <= 4


def test_a_mirrored_picture_gives_the_mirrored_input(portrait_rgb, detector):
    face = detector.detect(portrait_rgb)[0]
    points = points_of(face)[[1, 0, 2, 4, 3]] * (-1, 1) + (portrait_rgb.shape[1] - 1, 0)
    mirrored = replace(face, left=portrait_rgb.shape[1] - face.left - face.width, landmarks=points)
    crop, other = network_input(portrait_rgb, face), network_input(portrait_rgb[:, ::-1], mirrored)
    np.testing.assert_allclose(crop.astype(int), other[:, ::-1].astype(int), atol=2)


def test_a_gray_crop_of_the_right_size_keeps_its_pixels():
    image = np.random.default_rng(3).integers(0, 256, (48, 48)).astype(np.uint8)
    for same in (image, image[:, :, None], np.dstack([image] * 3)):
        crop = network_input(same, None)
        assert crop.shape == (48, 48, 1) and crop.dtype == np.uint8
        np.testing.assert_array_equal(crop[:, :, 0], image)


def test_of_a_picture_that_is_not_square_the_middle_is_taken_whole():
    image = np.zeros((60, 100, 3), np.uint8)
    image[:, 20:80] = (10, 20, 30)
    crop = network_input(image, None, replace(FACES, size=24, channels=3))
    assert crop.shape == (24, 24, 3) and (crop == (10, 20, 30)).all()


def test_the_input_does_not_share_memory_with_the_picture():
    image_rgb = np.zeros((48, 48, 3), np.uint8)
    assert not np.shares_memory(network_input(image_rgb, None, replace(FACES, channels=3)), image_rgb)


def test_color_is_kept_in_rgb_order_from_the_file(tmp_path):
    cv2.imwrite(str(tmp_path / "red é.png"), np.full((48, 48, 4), (0, 0, 255, 7), np.uint8))  # BGR and opacity
    crop = network_input(read_image_rgb(tmp_path / "red é.png"), None, replace(FACES, channels=3))
    assert (crop == (255, 0, 0)).all()


@pytest.mark.parametrize("content", [None, b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_picture_is_refused(tmp_path, content):
    file = tmp_path / "x.png"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.png cannot be read"):
        read_image_rgb(file)
