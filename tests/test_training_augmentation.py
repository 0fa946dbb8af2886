from dataclasses import replace

import cv2
import numpy as np
import pytest

from configuration import NO_AUGMENTATION, SMALL_ERASING_ONLY, AugmentationConfig
from training.augmentation import build_augmentation

SHAPE = (48, 48, 1)
RANDOM = np.random.default_rng(2)


def augmented(options: AugmentationConfig, images: np.ndarray, training: bool = True) -> np.ndarray:
    return np.asarray(build_augmentation(options, SHAPE, seed=1)(images, training=training)[0])


def test_identity_without_augmentation_and_outside_training():
    images = RANDOM.integers(0, 256, (4, *SHAPE)).astype(np.uint8)
    np.testing.assert_array_equal(augmented(AugmentationConfig(), images, training=False), images)
    np.testing.assert_array_equal(augmented(NO_AUGMENTATION, images), images)


def test_pixels_differ_between_images_and_calls():
    images = np.repeat(RANDOM.integers(0, 256, (1, *SHAPE)), 4, axis=0).astype(np.uint8)
    model = build_augmentation(AugmentationConfig(), SHAPE, seed=1)
    first, second = (np.asarray(model(images, training=True)[0]) for _ in range(2))
    assert first.dtype == np.uint8
    assert len({image.tobytes() for image in [*first, *second]}) == 8


def test_erased_boxes_are_at_most_two_with_at_most_6x2_pixels_in_either_orientation():
    white = np.full((600, *SHAPE), 255, np.uint8)
    results = augmented(replace(SMALL_ERASING_ONLY, small_erasing_count=1), white)[..., 0]
    sizes = set()
    for image in results:
        assert set(np.unique(image)) <= {0, 255}
        rows, columns = np.nonzero(image == 0)
        size = (int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1) if len(rows) else (0, 0)
        assert len(rows) == size[0] * size[1]  # a filled box
        sizes.add(size)
    boxes = {(height, width) for height in range(1, 7) for width in range(1, 3)}
    boxes |= {(width, height) for height, width in boxes}
    assert sizes <= boxes | {(0, 0)} and {(0, 0), (6, 2), (2, 6)} <= sizes
    assert 0.4 < np.mean([not (image == 0).any() for image in results]) < 0.6
    results = augmented(SMALL_ERASING_ONLY, white)[..., 0]
    pieces = [cv2.connectedComponents((image == 0).astype(np.uint8))[0] - 1 for image in results]
    assert max(pieces) == 2 and min(pieces) == 0


def test_flip_gives_image_or_mirror_image():
    image = RANDOM.integers(0, 256, SHAPE).astype(np.uint8)
    results = augmented(replace(NO_AUGMENTATION, flip=True), np.repeat(image[None], 40, axis=0))
    mirrored = [np.array_equal(result, image[:, ::-1]) for result in results]
    assert all(mirror or np.array_equal(result, image) for mirror, result in zip(mirrored, results, strict=True))
    assert 5 < sum(mirrored) < 35


def test_rotation_shift_and_zoom_keep_their_limits():
    def positions(options: AugmentationConfig) -> np.ndarray:
        """Return where the blob at 16 pixels right of the center goes, relative to the center."""
        images = np.zeros((200, *SHAPE), np.uint8)
        images[:, 22:26, 38:42] = 255
        results = augmented(options, images)[..., 0].astype(float)
        grid = np.mgrid[:48, :48] - 23.5
        return np.stack([(results * axis).sum((1, 2)) / results.sum((1, 2)) for axis in grid[::-1]], axis=1)

    turned = positions(replace(NO_AUGMENTATION, rotation=20.0))
    angles = np.degrees(np.arctan2(turned[:, 1], turned[:, 0]))
    np.testing.assert_allclose(np.hypot(*turned.T), 16, atol=0.5)
    assert 15 < np.abs(angles).max() < 20.5 and angles.min() < -10 and angles.max() > 10
    shifted = positions(replace(NO_AUGMENTATION, shift=4.0)) - [16, 0]
    assert 3 < np.abs(shifted).max() < 4.2
    zoomed = positions(replace(NO_AUGMENTATION, zoom=0.2))[:, 0] / 16
    assert zoomed.min() == pytest.approx(1 / 1.2, abs=0.05) and zoomed.max() == pytest.approx(1 / 0.8, abs=0.08)


def test_light_changes_are_one_gain_and_offset_per_image():
    images = RANDOM.integers(100, 150, (50, *SHAPE)).astype(np.uint8)
    results = augmented(replace(NO_AUGMENTATION, contrast=0.2, brightness=20.0), images)
    for image, result in zip(images, results, strict=True):
        gain, offset = np.polyfit(image.ravel().astype(float), result.ravel().astype(float), 1)
        assert np.abs(gain * image + offset - result).max() <= 1
        assert 0.78 < gain < 1.22 and abs(result.mean() - image.mean()) < 21


def test_teachers_see_the_same_views_without_boxes_noise_and_blur():
    images = RANDOM.integers(0, 256, (8, *SHAPE)).astype(np.uint8)
    options = AugmentationConfig(noise=20.0, blur=1.0, cutout_max_size=8, crop=0.5)
    views, clean = build_augmentation(options, SHAPE, seed=1)(images, training=True)
    plain = AugmentationConfig(small_erasing_count=0, crop=0.5)
    without = build_augmentation(plain, SHAPE, seed=1)(images, training=True)
    np.testing.assert_array_equal(np.asarray(clean), np.asarray(without[0]))
    assert np.asarray(views).shape == (8, 24, 24, 1)
    assert (np.asarray(views) != np.asarray(clean)).any()


def test_noise_is_on_half_of_the_images_up_to_the_limit():
    results = augmented(replace(NO_AUGMENTATION, noise=20.0), np.full((400, *SHAPE), 128, np.uint8))
    strengths = results[..., 0].astype(np.float64).std(axis=(1, 2))
    assert 0.4 < (strengths == 0).mean() < 0.6
    assert 18 < strengths.max() < 21  # 2,304 pixels estimate a standard deviation within 1.5 %
    assert strengths[strengths > 0].mean() == pytest.approx(10, abs=1)  # uniform strengths
    noisy = results[strengths > 5].astype(np.float64)
    assert abs(noisy.mean() - 128) < 0.2
    assert abs(np.corrcoef(noisy[0].ravel(), noisy[1].ravel())[0, 1]) < 0.1  # independent noise


def test_crop_gives_center_in_training_only():
    images = RANDOM.integers(0, 256, (4, *SHAPE)).astype(np.uint8)
    crop = replace(NO_AUGMENTATION, crop=5 / 6)
    np.testing.assert_array_equal(augmented(crop, images), images[:, 4:44, 4:44])
    np.testing.assert_array_equal(augmented(crop, images, training=False), images)
