from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import joblib
import numpy as np
import pytest

from common.errors import InputError
from configuration import FACES
from inference import face_detector as face_detector_module
from inference import image_pyramid, mtcnn_networks
from inference.crops import network_input, read_image_rgb
from inference.face_detector import FaceDetector, build_detector
from inference.faces import Face
from inference.haar import HaarDetector
from preprocessing.datasets.sample import PORTRAIT, PORTRAIT_LANDMARKS
from preprocessing.tables import LANDMARKS


@pytest.fixture(scope="module")
def portrait_rgb() -> np.ndarray:
    return read_image_rgb(PORTRAIT)


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector()


@pytest.fixture(scope="module")
def reference() -> Any:
    from mtcnn import MTCNN

    return MTCNN()


def box_of(face: Face) -> np.ndarray:
    return np.array([face.left, face.top, face.width, face.height])


def points_of(face: Face) -> np.ndarray:
    assert face.landmarks is not None
    return face.landmarks


def values_of(faces: list[Face]) -> list:
    return [(*box_of(face), face.confidence, *points_of(face).ravel()) for face in faces]


def intersection_over_union(a, b) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


# ---------------------------------------------------------------- detection


@pytest.mark.parametrize("min_face_size", [20, 28, 100, 200])
def test_face_is_found_at_any_min_face_size(portrait_rgb, min_face_size):
    (face,) = FaceDetector(replace(FACES, min_face_size=min_face_size)).detect(portrait_rgb)
    assert face.confidence > 0.9
    np.testing.assert_allclose(points_of(face), PORTRAIT_LANDMARKS, atol=8)


def test_faces_agree_with_the_reference_implementation(portrait_rgb, reference, shared_data):
    ours = FaceDetector(replace(FACES, min_face_size=20))
    distances = []
    for image_rgb in (portrait_rgb, read_image_rgb(shared_data / "photos" / "multiface.jpg")):
        expected = [face for face in reference.detect_faces(image_rgb) if face["confidence"] >= 0.9]
        found = [face for face in ours.detect(image_rgb) if face.confidence >= 0.9]
        assert len(expected) == len(found) >= 1
        for face in expected:
            best = max(found, key=lambda other: intersection_over_union(face["box"], box_of(other)))
            assert intersection_over_union(face["box"], box_of(best)) >= 0.7
            points = np.array([face["keypoints"][name] for name in LANDMARKS])
            distances.append(np.abs(points_of(best) - points).max() / best.height)
    assert np.median(distances) < 0.02


def test_left_is_the_viewers_left_at_any_image_size(portrait_rgb, detector):
    large_rgb = cv2.resize(portrait_rgb, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    for image_rgb in (portrait_rgb, portrait_rgb[:, ::-1], large_rgb):
        (face,) = detector.detect(image_rgb)
        left_eye, right_eye, nose, mouth_left, mouth_right = points_of(face)
        assert left_eye[0] < nose[0] < right_eye[0] and mouth_left[0] < nose[0] < mouth_right[0]
        assert left_eye[1] < nose[1] < mouth_left[1]
    (expected,) = detector.detect(portrait_rgb)
    np.testing.assert_allclose(points_of(face), 4 * points_of(expected), atol=0.05 * face.height)


@pytest.mark.parametrize("shape", [(1, 1), (30, 4000), (1, 3000, 3), (64, 64, 1)])
def test_images_without_a_face_give_none(shape):
    image_rgb = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    assert FaceDetector().detect(image_rgb) == HaarDetector().detect(image_rgb) == []


def test_haar_boxes_are_framed_as_those_of_mtcnn(portrait_rgb, detector):
    (face,), expected = HaarDetector().detect(portrait_rgb), detector.detect(portrait_rgb)[0]
    assert face.landmarks is None and 0 < face.confidence < 1
    assert intersection_over_union(box_of(face), box_of(expected)) > 0.75


@pytest.mark.parametrize(
    ("option", "value"),
    [("size", 0), ("channels", 2), ("align", "nose"), ("min_face_size", 5), ("thresholds", [0.5, 0.5, 1.5])],
)
def test_options_out_of_range_are_refused_by_name(option, value):
    options = replace(FACES, **{option: value})
    for build in (FaceDetector, HaarDetector, lambda options: network_input(np.zeros((9, 9), np.uint8), None, options)):
        with pytest.raises(InputError, match=option):
            build(options)
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
    monkeypatch.setattr(mtcnn_networks, "converted", partial(mtcnn_networks.converted, shipped=cache))
    monkeypatch.setattr(face_detector_module, "network_files", partial(mtcnn_networks.network_files.__wrapped__, cache))
    assert len(FaceDetector().detect(portrait_rgb)) == 1
    assert len(list(cache.iterdir())) == 3
    assert not (tmp_path / "sprung").exists()

    from mtcnn.stages import StagePNet

    with pytest.raises(TypeError):
        StagePNet()
    assert (tmp_path / "sprung").exists()


# ---------------------------------------------------------------- threads and tiles


def test_faces_do_not_depend_on_the_number_of_threads(portrait_rgb):
    tiled_rgb = np.vstack([np.hstack([portrait_rgb, portrait_rgb[:, ::-1]])] * 2)[::2, ::2]
    options = replace(FACES, min_face_size=20, thresholds=(0.3, 0.2, 0.1))  # many patches, so that they are shared
    first, *others = (values_of(FaceDetector(options, threads).detect(tiled_rgb)) for threads in (1, 2, 3))
    assert len(first) >= 4 and all(other == first for other in others)


@pytest.mark.parametrize("shape", [(600, 512), (211, 509)])
def test_faces_do_not_depend_on_the_tiles(portrait_rgb, monkeypatch, shape):
    image_rgb = cv2.resize(portrait_rgb, shape[::-1], interpolation=cv2.INTER_AREA)
    detector = FaceDetector(replace(FACES, min_face_size=20, thresholds=(0.3, 0.2, 0.1)))
    found = []
    for pixels in (10**9, 40_000, 3_000):
        monkeypatch.setattr(image_pyramid, "TILE_PIXELS", pixels)
        found.append(values_of(detector.detect(image_rgb)))
    assert len(found[0]) >= 1
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-2)


# ---------------------------------------------------------------- propagation


@pytest.mark.parametrize(("scale", "shift"), [(1.05, (-0.05, 0)), (0.95, (0.05, 0.05))])
def test_propagated_face_agrees_with_detection(portrait_rgb, detector, scale, shift):
    (face,) = detector.detect(portrait_rgb)
    centre_x, centre_y = face.left + face.width / 2, face.top + face.height / 2
    moved = [shift[0] * face.width + (1 - scale) * centre_x, shift[1] * face.height + (1 - scale) * centre_y]
    matrix = np.array([[scale, 0, moved[0]], [0, scale, moved[1]]])
    next_rgb = cv2.warpAffine(portrait_rgb, matrix, portrait_rgb.shape[1::-1])
    (detected,), (propagated,) = detector.detect(next_rgb), detector.propagate(next_rgb, [face])
    assert propagated.confidence > 0.95
    assert intersection_over_union(box_of(detected), box_of(propagated)) >= 0.8
    assert np.abs(points_of(detected) - points_of(propagated)).max() <= 0.03 * detected.height


def test_propagated_faces_keep_their_order(portrait_rgb, detector):
    pair_rgb = np.hstack([portrait_rgb, portrait_rgb[:, ::-1]])
    faces = detector.detect(pair_rgb)
    assert len(faces) == 2
    for known in (faces, faces[::-1], faces * 40):  # 80: more than a batch
        propagated = detector.propagate(pair_rgb, known)
        assert len(propagated) == len(known)
        for before, after in zip(known, propagated, strict=True):
            assert intersection_over_union(box_of(before), box_of(after)) > 0.8
    assert detector.propagate(pair_rgb, []) == []


def test_lost_face_has_a_low_confidence(portrait_rgb, detector):
    known = detector.detect(portrait_rgb)
    noise_rgb = np.random.default_rng(6).integers(0, 256, portrait_rgb.shape).astype(np.uint8)
    for empty_rgb in (np.zeros_like(portrait_rgb), np.full_like(portrait_rgb, 255), noise_rgb, portrait_rgb[::-1]):
        (lost,) = detector.propagate(empty_rgb, known)
        assert lost.confidence < FACES.thresholds[2]


@pytest.mark.parametrize(
    "box", [(-30, -30, 100, 120), (5000, 5000, 50, 60), (200, 200, 0, 0), (200, 200, 0.01, 300), (-5e4, -5e4, 1e5, 1e5)]
)
def test_boxes_of_any_place_and_size_are_accepted(portrait_rgb, detector, box):
    for image_rgb in (portrait_rgb, portrait_rgb[:1, :1], portrait_rgb[:3]):
        (face,) = detector.propagate(image_rgb, [Face(*box, confidence=0.9)])
        assert np.isfinite(box_of(face)).all() and np.isfinite(points_of(face)).all() and 0 <= face.confidence <= 1
        if box[3] > 0:
            assert network_input(image_rgb, Face(*box, confidence=0.9)).shape == (48, 48, 1)


@pytest.mark.parametrize("box", [(float("nan"), 0, 9, 9), (0, 0, 9, float("inf")), (0, 0, 1e12, 1e12)])
def test_boxes_that_are_not_finite_are_refused(portrait_rgb, detector, box):
    for use in (lambda image, face: detector.propagate(image, [face]), network_input):
        with pytest.raises(ValueError, match="Received: Face"):
            use(portrait_rgb, Face(*box, confidence=0.9))
    with pytest.raises(ValueError, match="height"):
        network_input(portrait_rgb, Face(10, 10, 9, 0, 0.9))


# ---------------------------------------------------------------- any input


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
@pytest.mark.parametrize("layout", ["strided", "columns first"])
def test_results_do_not_depend_on_the_memory_layout(portrait_rgb, detector, channels, layout):
    image = cv2.resize(portrait_rgb, (128, 150), interpolation=cv2.INTER_AREA)
    if channels != (3,):
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).reshape(150, 128, *channels)
    wide = image.repeat(2, axis=0).repeat(3, axis=1)
    other = wide[::2, ::3] if layout == "strided" else np.asfortranarray(image)
    other.flags.writeable = False
    faces = detector.detect(other)
    assert len(faces) == 1 and values_of(faces) == values_of(detector.detect(image))
    known = [*faces, Face(5, 5, 80, 100, 0.9)]
    assert values_of(detector.propagate(other, known)) == values_of(detector.propagate(image, known))
    for each in (None, *known):
        crop = network_input(other, each)
        assert crop.shape == (48, 48, 1) and crop.dtype == np.uint8
        np.testing.assert_array_equal(crop, network_input(image, each))
    np.testing.assert_array_equal(other, image)  # the image is not changed


@pytest.mark.parametrize(
    "image",
    [
        *(np.zeros(shape, np.uint8) for shape in [(), (0, 9), (9, 9, 2), (9, 9, 4), (1, 9, 9, 3), (1, 40_000)]),
        *(np.zeros((50, 50, 3), dtype) for dtype in ("f4", "u2", "?", "O")),
        *(None, Path("image.png"), [[1, 2], [3, 4]]),
    ],
    ids=repr,
)
def test_anything_but_an_image_is_refused_in_one_line(detector, image):
    for use in (
        detector.detect,
        HaarDetector().detect,
        lambda image: detector.propagate(image, [Face(5, 5, 80, 100, 0.9)]),
        lambda image: network_input(image, None),
    ):
        with pytest.raises(ValueError, match=r"^an image must be [^\n]* Received: [^\n]*$"):
            use(image)
