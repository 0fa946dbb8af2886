import os

import cv2
import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from common.errors import InputError
from inference.emotion_classifier import EmotionClassifier
from preprocessing.tables import read_table, usable, write_table
from training.data import FaceBatches, crops, flow_from_dataframe, read_crops
from training.data.balancing import sample_weights

SIZE = (24, 24)


def pixels(table, folder, **arguments) -> np.ndarray:
    flow = flow_from_dataframe(table, folder, target_size=SIZE, shuffle=False, **arguments)
    return flow.images[flow.rows]


def test_serves_pixels_and_labels_in_given_class_order(make_dataset):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    classes = ["neutral", "anger", "happiness"]
    flow = flow_from_dataframe(table, folder, target_size=SIZE, classes=classes, batch_size=7, shuffle=False)
    batches = [flow[index] for index in range(len(flow))]
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert len(flow) == -(-len(table) // 7) and images.dtype == np.uint8
    for row, image, label in zip(table.itertuples(), images, labels, strict=True):
        expected = matplotlib.image.imread(folder / str(row.face_path)) * 255
        np.testing.assert_array_equal(image[..., 0], expected.round())
        assert classes[label.argmax()] == row.emotion and label.sum() == 1


def test_every_epoch_has_each_image_once_in_a_reproducible_order(make_dataset):
    folder = make_dataset()
    table = read_table(folder, "split.csv")

    def epoch_of(number: int) -> list[bytes]:
        flow = flow_from_dataframe(table, folder, target_size=SIZE, batch_size=5, seed=11)
        flow.epoch = number
        return [image.tobytes() for index in range(len(flow)) for image in flow[index][0]]

    first, second = epoch_of(0), epoch_of(1)
    assert first != second and sorted(first) == sorted(second)
    assert second == epoch_of(1)


def test_all_splits_share_one_array_that_is_decoded_once(make_dataset, monkeypatch):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    decoded = []
    read_image = crops.read_image
    monkeypatch.setattr(crops, "read_image", lambda *a: decoded.append(a) or read_image(*a))
    by_split = {split: pixels(rows, folder) for split, rows in table.groupby("split")}
    assert len(decoded) == len(table) and [file.suffix for file in folder.glob("cache/*.npy")] == [".npy"]
    for split, rows in table.groupby("split"):
        expected = [cv2.imread(str(folder / path), cv2.IMREAD_GRAYSCALE) for path in rows["face_path"]]
        np.testing.assert_array_equal(by_split[split][..., 0], expected)
    file = folder / table["face_path"][0]
    file.write_bytes((folder / table["face_path"][1]).read_bytes())
    (folder / table["face_path"][5]).unlink()  # not requested below
    after = pixels(table.head(3), folder)
    assert len(decoded) == len(table) + 1  # only the changed file
    np.testing.assert_array_equal(after[0], after[1])
    np.testing.assert_array_equal(pixels(table.tail(2), folder), by_split["test"][-2:])


@pytest.mark.parametrize(
    ("damage", "arguments", "message"),
    [
        (lambda file: file.unlink(), {}, "is missing"),
        (lambda file: file.write_bytes(b""), {}, "not a readable image"),
        (lambda file: None, {"target_size": (48, 48)}, "24x24 pixels, not 48x48"),
        (lambda file: None, {"classes": ["anger", "fear"]}, "'happiness' is not one of the classes"),
        (lambda file: None, {"color_mode": "cmyk"}, "'cmyk' is not one of"),
        (lambda file: None, {"class_mode": "sparse"}, "'sparse' is not one of"),
    ],
)
def test_refuses_images_and_arguments_that_cannot_be_used(make_dataset, damage, arguments, message):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    damage(folder / table["face_path"][2])
    with pytest.raises(InputError, match=message):
        flow_from_dataframe(table, folder, **{"target_size": SIZE, **arguments})
    assert not list(folder.glob("cache/*.npy"))
    with pytest.raises(InputError, match="no rows"):
        flow_from_dataframe(table.head(0), folder)


def test_damaged_cache_is_made_again(make_dataset, capsys):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    before = pixels(table, folder)
    (cache,) = folder.glob("cache/*.npy")
    content = cache.read_bytes()
    for damaged in (b"", content[:3000], b"\x00" * len(content), content.replace(b"(60,)", b"(99,)", 1)):
        cache.write_bytes(damaged)
        np.testing.assert_array_equal(pixels(table, folder), before)
        assert f"{cache} is damaged; it is made again\n" in capsys.readouterr().out and cache.read_bytes() == content


def test_large_cache_is_memory_mapped_and_colour_images_are_rgb(make_dataset, monkeypatch):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    before = pixels(table, folder)
    crops._load.cache_clear()
    monkeypatch.setattr(crops, "MEMORY_LIMIT", 100)
    flow = flow_from_dataframe(table, folder, target_size=SIZE, shuffle=False)
    assert isinstance(flow.images, np.memmap)
    np.testing.assert_array_equal(flow.images[flow.rows], before)
    crops._load.cache_clear()
    cv2.imwrite(str(folder / table["face_path"][0]), np.full((24, 24, 3), (0, 0, 200), np.uint8))
    images = pixels(table.head(1), folder, color_mode="rgb")
    assert images.shape == (1, 24, 24, 3) and images[0, 0, 0].tolist() == [200, 0, 0]


def test_refuses_crops_that_change_while_they_are_read(make_dataset, tiny_model, monkeypatch):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    classifier = EmotionClassifier.load(tiny_model())
    assert read_crops(classifier, folder, table).shape == (len(table), *SIZE, 1)
    write_table(table.assign(pixel_hash="new"), folder / "split.csv")
    with pytest.raises(InputError, match="changed while they were read; wait for steps 1 to 3, then run"):
        read_crops(classifier, folder, usable(table))
    read_image = crops.read_image

    def read_and_change(file, *arguments):
        image = read_image(file, *arguments)
        os.utime(file, (1, 1))
        return image

    monkeypatch.setattr(crops, "read_image", read_and_change)
    os.utime(folder / table["face_path"][3])
    with pytest.raises(InputError, match="changed while they were read"):
        pixels(table, folder)


# ---------------------------------------------------------------- mixup and loss weights


def test_mixup_mixes_image_target_and_weight_with_one_share(make_dataset):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    table = table.assign(weight=np.linspace(1, 2, len(table)))
    arguments = {"target_size": SIZE, "batch_size": len(table), "shuffle": False, "weight_col": "weight", "seed": 3}
    plain, targets, weights = flow_from_dataframe(table, folder, **arguments)[0]
    np.testing.assert_allclose(weights, table["weight"])
    flow = flow_from_dataframe(table, folder, mixup=0.4, **arguments)
    mixed, mixed_targets, mixed_weights = flow[0]
    assert mixed.dtype == np.uint8 and mixed_targets.shape == targets.shape
    shares = set()
    for first, (image, target, weight) in enumerate(zip(mixed, mixed_targets, mixed_weights, strict=True)):
        for partner in range(len(plain)):  # one share of one other image explains all three
            gap = weights[first] - weights[partner]
            share = (weight - weights[partner]) / gap if gap else 1.0
            weighted = weights[:, None] * targets  # each part's target keeps its own weight
            mixture = [share * part[first] + (1 - share) * part[partner] for part in (plain, weighted)]
            mixture[1] /= weight
            if np.abs(mixture[0] - image).max() <= 0.51 and np.allclose(mixture[1], target, atol=1e-4):
                shares.add(round(float(share), 3))
                break
        else:
            raise AssertionError(f"no pair of images gives image {first}")
    assert len(shares) > 3 and all(0 <= share <= 1 for share in shares)
    np.testing.assert_array_equal(flow[0][0], mixed)  # a resumed epoch is the same
    flow.epoch = 1
    assert (flow[0][0] != mixed).any()


def balanced_table() -> pd.DataFrame:
    groups = ["f"] * 60 + ["m"] * 40
    emotions = ["anger"] * 10 + ["happiness"] * 50 + ["anger"] * 30 + ["happiness"] * 10
    return pd.DataFrame({"gender": groups, "emotion": emotions})


def shares(rows: pd.DataFrame, weights: np.ndarray, by: list[str]) -> pd.Series:
    totals = rows.assign(weight=weights.astype(float)).groupby(by)["weight"].sum()
    return totals / totals.sum()


def test_balance_gives_equal_shares_or_makes_group_and_emotion_independent():
    rows, balance = balanced_table(), "gender+emotion"
    for column in ("emotion", "gender"):
        weights = sample_weights(rows, column)
        assert weights.dtype == np.float32 and weights.mean() == pytest.approx(1)
        np.testing.assert_allclose(shares(rows, weights, [column]), 0.5, rtol=1e-6)
    weights = sample_weights(rows, balance)
    np.testing.assert_array_equal(weights, sample_weights(rows, "emotion+gender"))
    found = shares(rows, weights, ["gender", "emotion"]).unstack()
    np.testing.assert_allclose(found, np.outer([0.6, 0.4], [0.4, 0.6]), rtol=1e-6)
    assert weights[0] == pytest.approx(0.6 * 0.4 / 0.1)  # the formula of Kamiran and Calders
    rows.loc[::4, "gender"] = ""
    weights = sample_weights(rows, balance)
    known = rows["gender"] != ""
    assert (weights[::4] == 1).all() and weights.mean() == pytest.approx(1)
    np.testing.assert_array_equal(weights[known], sample_weights(rows[known], balance))


@pytest.mark.parametrize(
    ("balance", "words"),
    [
        *((text, "not accepted") for text in ("gender+race", "emotion+emotion")),
        ("age", "no column 'age'"),
        ("one", "only x in one"),
        ("none", "no value in none"),
    ],
)
def test_refuses_balance_that_is_not_possible(balance, words):
    with pytest.raises(InputError, match=words):
        sample_weights(balanced_table().assign(one="x", none=""), balance)


@pytest.mark.parametrize("mixup", [0.2, 1.0])
def test_mixup_keeps_the_balance(mixup):
    """Nine images of anger and one of fear with nine times the weight: both keep half of the loss."""
    labels = np.array([0] * 9 + [1])
    weights = sample_weights(pd.DataFrame({"emotion": np.array(["anger", "fear"])[labels]}), "emotion")
    images = np.zeros((10, 1, 1, 1), np.uint8)
    batches = FaceBatches(images, labels, ("anger", "fear"), 10, seed=1, weights=weights, mixup=mixup)
    totals = []
    for batches.epoch in range(3000):
        _, targets, mixed_weights = batches[0]
        totals.append(mixed_weights @ targets)
    # Targets mixed without the weights would give fear 0.44 and 0.37 of the loss.
    np.testing.assert_allclose(np.mean(totals, axis=0) / 10, [0.5, 0.5], atol=0.01)
