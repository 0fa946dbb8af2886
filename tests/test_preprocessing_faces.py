import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import joblib
import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from configuration import FACES, ROOT, FaceConfig
from inference import face_detector as face_detector_module
from inference.crops import TEMPLATE, detect_in_crop, is_face_crop, network_input, read_image_rgb, similarity
from inference.face_detector import FaceDetector, build_detector, pyramid
from inference.face_detector import nms as suppress
from inference.face_detector import nms_min as suppress_inner
from inference.faces import Face, choose_face
from inference.haar import HaarDetector
from preprocessing.datasets.sample import PORTRAIT_LANDMARKS
from preprocessing.tables import LANDMARKS

PORTRAIT = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"


@pytest.fixture(scope="module")
def portrait_rgb() -> np.ndarray:
    return read_image_rgb(PORTRAIT)


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector()


@pytest.fixture(scope="module")
def stock() -> Any:
    from mtcnn import MTCNN

    return MTCNN()


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


@pytest.mark.parametrize("min_face_size", [20, 24, 28, 40, 100, 200])
def test_the_face_is_found_whatever_the_min_face_size(portrait_rgb, stock, min_face_size):
    if min_face_size >= 28:  # mtcnn itself finds nothing; on some processors it fails in an empty convolution
        with contextlib.suppress(ValueError):
            assert stock.detect_faces(portrait_rgb, min_face_size=min_face_size) == []
    faces = FaceDetector(replace(FACES, min_face_size=min_face_size)).detect(portrait_rgb)
    assert len(faces) == 1 and faces[0].confidence > 0.9
    np.testing.assert_allclose(points_of(faces[0]), PORTRAIT_LANDMARKS, atol=8)


def test_no_face_is_looked_for_above_the_size_of_the_picture(portrait_rgb):
    assert FaceDetector(replace(FACES, min_face_size=700)).detect(portrait_rgb) == []


def test_faces_agree_with_stock_mtcnn(portrait_rgb, stock, shared_data):
    ours = FaceDetector(replace(FACES, min_face_size=20))
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
        ("size", 0), ("channels", 2), ("align", "nose"), ("min_face_size", 5), ("largest_side", 0),
        ("thresholds", (0.5, 0.5)), ("thresholds", [0.5, 0.5, 1.5]),
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


def test_weights_in_the_current_folder_are_not_opened(portrait_rgb, tmp_path, monkeypatch):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    for name in ("pnet.lz4", "rnet.lz4", "onet.lz4"):
        joblib.dump(Trap(), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    cache = tmp_path / "cache"
    monkeypatch.setattr(face_detector_module, "converted", partial(face_detector_module.converted, folder=cache))
    monkeypatch.setattr(face_detector_module, "network_files", face_detector_module.network_files.__wrapped__)
    assert len(FaceDetector().detect(portrait_rgb)) == 1
    assert len(list(cache.iterdir())) == 3
    assert not (tmp_path / "sprung").exists()

    from mtcnn.stages import StagePNet

    with pytest.raises(TypeError):
        StagePNet()
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("backend", [None, "torch"])  # torch: not even installed
def test_faces_are_found_without_tensorflow(tmp_path, detector, backend):
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from typing import Any
from inference import face_detector, crops
heavy = {{"tensorflow", "keras", "mtcnn"}}
assert not heavy & set(sys.modules) and "ai_edge_litert" not in sys.modules, "importing is not cheap"
print(len(face_detector.FaceDetector().detect(crops.read_image_rgb(Path({str(PORTRAIT)!r})))), "face")
assert not heavy & set(sys.modules), "a heavy import"
"""
    environment = os.environ | ({"KERAS_BACKEND": backend} if backend else {})
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.stdout == "1 face\n" and run.returncode == 0, run.stderr


@pytest.mark.parametrize("min_face_size", [12, 20, 24, 33, 100, 480, 481])
@pytest.mark.parametrize("shape", [(640, 480), (480, 640), (4000, 30), (13, 13)])
def test_the_pyramid_runs_from_the_min_face_size_to_the_whole_picture(shape, min_face_size):
    width, height = shape
    sizes = pyramid(width, height, min_face_size, 0.709)
    if min_face_size > min(shape):
        assert sizes == []
        return
    shortest = [min(size) for size in sizes]
    assert shortest[0] == round(min(shape) * 12 / min_face_size)
    assert 12 <= shortest[-1] <= 12 / 0.709 + 1
    np.testing.assert_allclose(np.array(shortest[1:]) / shortest[:-1], 0.709, atol=0.06)


def test_suppression_keeps_the_best_of_overlapping_boxes():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [2, 2, 6, 6]], float)
    scores = np.array([0.8, 0.9, 0.7, 0.6])
    assert suppress(boxes, scores, 0.7).tolist() == [1, 2, 3]  # 0 and 1: 0.9; 1 and 3: 16 / 90
    assert suppress_inner(boxes, scores, 0.7).tolist() == [1, 2]  # 3 lies within 1
    assert suppress(boxes, scores, 0.95).tolist() == [1, 0, 2, 3]
    assert suppress(boxes[:0], scores[:0], 0.5).size == suppress_inner(boxes[:0], scores[:0], 0.5).size == 0


def test_what_stock_mtcnn_takes_for_no_face_or_ignores_is_refused(portrait_rgb, stock, detector, tmp_path):
    assert stock.detect_faces(str(tmp_path / "missing.png")) == []
    with pytest.raises(InputError, match="missing"):
        read_image_rgb(tmp_path / "missing.png")
    with pytest.raises(ValueError, match="Received: str"):
        detector.detect("missing.png")  # pyright: ignore[reportArgumentType]

    assert stock.detect_faces(portrait_rgb / 255) == []
    with pytest.raises(ValueError, match=r"must be uint8 .* Received: ndarray float64"):
        detector.detect(portrait_rgb / 255)

    assert len(stock.detect_faces(portrait_rgb, min_fase_size=300)) == 1
    with pytest.raises(TypeError, match="smalest_face"):
        FaceConfig(smalest_face=300)  # pyright: ignore[reportCallIssue]


def test_a_face_is_ready_for_json_where_stocks_is_not(portrait_rgb, stock, detector):
    with pytest.raises(TypeError, match="not JSON serializable"):
        json.dumps(stock.detect_faces(portrait_rgb)[0]["keypoints"])
    json.dumps(points_of(detector.detect(portrait_rgb)[0]).tolist())


# ---------------------------------------------------------------- batches and threads


def facts_of(faces: list[Face]) -> list:
    return [(*box_of(face), face.confidence, *points_of(face).ravel()) for face in faces]


def test_a_batch_of_different_sizes_gives_what_single_pictures_give(portrait_rgb, stock, detector):
    blank_rgb = np.zeros((300, 700, 3), np.uint8)
    small = cv2.cvtColor(portrait_rgb[:400, :420:2], cv2.COLOR_RGB2GRAY)
    noise_rgb = np.random.default_rng(5).integers(0, 256, (90, 1400, 3)).astype(np.uint8)
    pictures = [blank_rgb, portrait_rgb, noise_rgb, portrait_rgb[:400], portrait_rgb[:9, :9], small, portrait_rgb]
    alone = [facts_of(detector.detect(picture)) for picture in pictures]
    assert [len(faces) for faces in alone] == [0, 1, 0, 1, 0, 1, 1]
    assert [facts_of(faces) for faces in detector.detect_batch(pictures)] == alone
    assert [facts_of(faces) for faces in detector.detect_batch(iter(pictures[::-1]))] == alone[::-1]
    assert detector.detect_batch([]) == []

    nothing, (moved,) = stock.detect_faces([blank_rgb, portrait_rgb])
    assert nothing == [] and intersection_over_union(moved["box"], alone[1][0][:4]) < 0.7


def test_faces_do_not_depend_on_the_number_of_threads(portrait_rgb):
    tiled_rgb = np.vstack([np.hstack([portrait_rgb, portrait_rgb[:, ::-1]])] * 2)[::2, ::2]
    options = replace(FACES, min_face_size=20, thresholds=(0.3, 0.2, 0.1))  # many patches, so that they are shared
    first, *others = (facts_of(FaceDetector(options, threads).detect(tiled_rgb)) for threads in (1, 2, 3))
    assert len(first) >= 4 and all(other == first for other in others)


@pytest.mark.parametrize("shape", [(600, 512), (211, 509), (600, 171)])
def test_faces_do_not_depend_on_the_strips_in_which_a_picture_is_searched(portrait_rgb, monkeypatch, shape):
    picture_rgb = cv2.resize(portrait_rgb, shape[::-1], interpolation=cv2.INTER_AREA)
    detector = FaceDetector(replace(FACES, min_face_size=20, thresholds=(0.3, 0.2, 0.1)))
    found = []
    for pixels in (10**9, 40_000, 3_000):
        monkeypatch.setattr(face_detector_module, "STRIP_PIXELS", pixels)
        found.append(facts_of(detector.detect(picture_rgb)))
    assert len(found[0]) >= 1
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-2)


# ---------------------------------------------------------------- following


@pytest.mark.parametrize("scale", [0.95, 1.0, 1.05])
@pytest.mark.parametrize("shift", [(0, 0), (-0.05, 0), (0, -0.05), (0.05, 0.05)])
def test_a_followed_face_is_where_a_search_finds_it(portrait_rgb, detector, scale, shift):
    (face,) = detector.detect(portrait_rgb)
    centre_x, centre_y = face.left + face.width / 2, face.top + face.height / 2
    moved = [shift[0] * face.width + (1 - scale) * centre_x, shift[1] * face.height + (1 - scale) * centre_y]
    matrix = np.array([[scale, 0, moved[0]], [0, scale, moved[1]]])
    next_rgb = cv2.warpAffine(portrait_rgb, matrix, portrait_rgb.shape[1::-1])
    (fresh,), (followed,) = detector.detect(next_rgb), detector.propagate(next_rgb, [face])
    assert followed.confidence > 0.95
    assert intersection_over_union(box_of(fresh), box_of(followed)) >= 0.8
    assert np.abs(points_of(fresh) - points_of(followed)).max() <= 0.03 * fresh.height


def test_several_faces_are_followed_in_their_order(portrait_rgb, detector):
    pair_rgb = np.hstack([portrait_rgb, portrait_rgb[:, ::-1]])
    faces = detector.detect(pair_rgb)
    assert len(faces) == 2
    for known in (faces, faces[::-1], faces * 40):  # 80: more than a batch
        followed = detector.propagate(pair_rgb, known)
        assert len(followed) == len(known)
        for before, after in zip(known, followed, strict=True):
            assert intersection_over_union(box_of(before), box_of(after)) > 0.8
    assert detector.propagate(pair_rgb, []) == []


def test_a_face_that_has_gone_is_told_by_its_confidence(portrait_rgb, detector):
    known = detector.detect(portrait_rgb)
    noise_rgb = np.random.default_rng(6).integers(0, 256, portrait_rgb.shape).astype(np.uint8)
    for empty_rgb in (np.zeros_like(portrait_rgb), np.full_like(portrait_rgb, 255), noise_rgb, portrait_rgb[::-1]):
        (lost,) = detector.propagate(empty_rgb, known)
        assert lost.confidence < FACES.thresholds[2]


@pytest.mark.parametrize(
    "box",
    [
        (-30, -30, 100, 120), (450, 500, 200, 250), (-900, 40, 50, 60), (5000, 5000, 50, 60), (200, 200, 1, 1),
        (511, 599, 1, 1), (200, 200, 0, 0), (200, 200, 0.01, 300), (200, 200, 300, 1), (-5e4, -5e4, 1e5, 1e5),
    ],
)  # fmt: skip
@pytest.mark.parametrize("crop", [(600, 512), (1, 1), (600, 2), (3, 512)])
def test_boxes_of_any_place_and_size_can_be_followed(portrait_rgb, detector, box, crop):
    height, width = crop
    (face,) = detector.propagate(portrait_rgb[:height, :width], [Face(*box, confidence=0.9)])
    assert np.isfinite(box_of(face)).all() and np.isfinite(points_of(face)).all() and 0 <= face.confidence <= 1
    if box[3] > 0:
        assert network_input(portrait_rgb[:height, :width], Face(*box, confidence=0.9)).shape == (48, 48, 1)


@pytest.mark.parametrize("box", [(float("nan"), 0, 9, 9), (0, 0, 9, float("inf")), (1e30, 0, 9, 9), (0, 0, 1e12, 1e12)])
def test_boxes_that_are_no_place_in_a_picture_are_refused(portrait_rgb, detector, box):
    for use in (lambda image, face: detector.propagate(image, [face]), network_input):
        with pytest.raises(ValueError, match="Received: Face"):
            use(portrait_rgb, Face(*box, confidence=0.9))
    with pytest.raises(ValueError, match="height"):
        network_input(portrait_rgb, Face(10, 10, 9, 0, 0.9))


# ---------------------------------------------------------------- any input


SIDES = st.integers(1, 150) | st.sampled_from([1, 12, 30, 40, 320])
LARGE = st.sampled_from([(150, 128), (151, 900), (333, 200), (4000, 30), (30, 4000), (1, 4000), (4000, 1)])
SHAPES = st.tuples(SIDES, SIDES) | LARGE
CHANNELS = st.sampled_from([(), (1,), (3,)])
LAYOUTS = st.sampled_from(
    ["contiguous", "read-only", "mirrored", "upside down", "BGR view", "columns first", "strided"]
)


def laid_out(image: np.ndarray, layout: str) -> np.ndarray:
    """Return the same picture as a view or copy of another memory layout."""
    if layout == "strided":
        wide = np.full((2 * image.shape[0], 3 * image.shape[1], *image.shape[2:]), 77, np.uint8)
        wide[::2, ::3] = image
        return wide[::2, ::3]
    if layout == "columns first":
        return np.asfortranarray(image)
    axis = {"mirrored": 1, "upside down": 0, "BGR view": image.ndim - 1}.get(layout)
    other = image.copy() if axis is None else np.flip(np.ascontiguousarray(np.flip(image, axis)), axis)
    other.flags.writeable = layout != "read-only"
    return other


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(shape=SHAPES, channels=CHANNELS, layout=LAYOUTS, seed=st.integers(0, 99), with_face=st.booleans())
def test_every_picture_is_searched_followed_and_cropped_whatever_its_shape_and_layout(
    portrait_rgb, detector, shape, channels, layout, seed, with_face
):
    image = np.random.default_rng(seed).integers(0, 60, (*shape, 3)).astype(np.uint8)
    portrait_rgb = cv2.resize(portrait_rgb, (128, 150), interpolation=cv2.INTER_AREA)
    with_face = with_face and shape[0] >= 150 and shape[1] >= 128
    if with_face:
        image[:150, :128] = portrait_rgb
    if channels != (3,):
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).reshape(*shape, *channels)
    other = laid_out(image, layout)
    np.testing.assert_array_equal(other, image)
    faces = detector.detect(other)
    assert facts_of(faces) == facts_of(detector.detect(image))
    assert len(faces) == with_face
    known = [*faces, Face(5, 5, 80, 100, 0.9)]
    assert facts_of(detector.propagate(other, known)) == facts_of(detector.propagate(image, known))
    for face in (None, *known):
        crop = network_input(other, face)
        assert crop.shape == (48, 48, 1) and crop.dtype == np.uint8
        np.testing.assert_array_equal(crop, network_input(image, face))
    np.testing.assert_array_equal(other, image)  # nobody writes to a caller's picture


NO_SHAPES = st.sampled_from([(), (7,), (0, 9), (9, 0, 3), (9, 9, 0), (9, 9, 2), (9, 9, 4), (9, 9, 5), (2, 9, 9, 3)])
NO_PICTURES = st.one_of(
    st.builds(np.zeros, NO_SHAPES, st.just(np.uint8)),
    st.builds(
        np.full, SHAPES, st.sampled_from([0.0, 0.5, 255.0, np.nan, np.inf]), st.sampled_from(["f2", "f4", "f8", "c8"])
    ),
    st.builds(np.zeros, SHAPES, st.sampled_from(["i1", "u2", "i4", "i8", "?", "O", "U3"])),
    st.sampled_from([None, "picture.png", Path("picture.png"), b"", [[1, 2], [3, 4]], 7]),
    st.builds(np.zeros, st.sampled_from([(1, 40_000), (40_000, 2, 3)]), st.just(np.uint8)),
)


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(image=NO_PICTURES)
def test_whatever_is_no_picture_is_refused_in_one_line(detector, image):
    face = Face(5, 5, 80, 100, 0.9)
    for use in (
        detector.detect,
        lambda image: detector.detect_batch([image]),
        lambda image: detector.propagate(image, [face]),
        lambda image: network_input(image, face),
        lambda image: network_input(image, None),
    ):
        with pytest.raises(ValueError, match=r"^a picture must be [^\n]* Received: [^\n]*$"):
            use(image)


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
