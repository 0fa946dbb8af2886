import os
import time
from concurrent.futures import ThreadPoolExecutor

import matplotlib.image
import numpy as np
import pytest

from common.errors import InputError
from preprocessing.tables import read_table
from training import data as datasets
from training.data import flow_from_dataframe

SIZE = (24, 24)


def test_serves_the_files_pixels_and_labels_in_the_class_order_given(make_dataset):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    classes = ["neutral", "anger", "happiness"]
    flow = flow_from_dataframe(table, folder, target_size=SIZE, classes=classes, batch_size=7, shuffle=False)
    batches = [flow[index] for index in range(len(flow))]
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    assert len(flow) == -(-len(table) // 7) and images.dtype == np.uint8
    for row, image, label in zip(table.itertuples(), images, labels, strict=True):
        expected = matplotlib.image.imread(folder / str(row.face_path)) * 255
        np.testing.assert_array_equal(image[..., 0], expected.round())
        assert classes[label.argmax()] == row.emotion and label.sum() == 1


def test_every_epoch_shows_each_image_once_in_its_own_reproducible_order(make_dataset):
    folder = make_dataset()
    table = read_table(folder, "split.csv")

    def epoch_of(number: int) -> list[bytes]:
        flow = flow_from_dataframe(table, folder, target_size=SIZE, batch_size=5, seed=11)
        flow.epoch = number
        return [image.tobytes() for index in range(len(flow)) for image in flow[index][0]]

    first, second = epoch_of(0), epoch_of(1)
    assert first != second and sorted(first) == sorted(second)
    assert second == epoch_of(1)


def test_decodes_each_file_once_and_again_only_when_it_changed(make_dataset, monkeypatch):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    before = flow_from_dataframe(table, folder, target_size=SIZE).images
    decoded = []
    read_image = datasets.read_image
    monkeypatch.setattr(datasets, "read_image", lambda *a: decoded.append(a) or read_image(*a))
    np.testing.assert_array_equal(flow_from_dataframe(table, folder, target_size=SIZE).images, before)
    assert not decoded
    file = folder / table["face_path"][0]
    file.write_bytes((folder / table["face_path"][1]).read_bytes())
    after = flow_from_dataframe(table, folder, target_size=SIZE).images
    assert decoded
    np.testing.assert_array_equal(after[0], before[1])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"",
        lambda content: content[:60],
        lambda content: content[:3000],
        lambda content: b"\x00" * len(content),
        lambda content: b"PK\x03\x04" + content,
        lambda content: content.replace(b"|u1", b"|i1", 1),
        lambda content: content.replace(b", 24, 24, 1)", b", 99999999,)", 1),
    ],
)
def test_a_damaged_cache_is_made_anew_and_named(make_dataset, capsys, spoil):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    before = flow_from_dataframe(table, folder, target_size=SIZE).images
    (cache,) = folder.glob("cache/*.npy")
    content = cache.read_bytes()
    assert spoil(content) != content
    cache.write_bytes(spoil(content))
    capsys.readouterr()
    np.testing.assert_array_equal(flow_from_dataframe(table, folder, target_size=SIZE).images, before)
    assert capsys.readouterr().out == f"{cache} is damaged; it is made anew\n" and cache.read_bytes() == content


def test_colour_images_come_as_rgb(make_dataset):
    import cv2

    folder = make_dataset()
    table = read_table(folder, "split.csv").head(1)
    red_bgr = np.zeros((24, 24, 3), np.uint8)
    red_bgr[..., 2] = 200
    cv2.imwrite(str(folder / table["face_path"][0]), red_bgr)
    images = flow_from_dataframe(table, folder, target_size=SIZE, color_mode="rgb").images
    assert images.shape == (1, 24, 24, 3) and images[0, 0, 0].tolist() == [200, 0, 0]


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (lambda file: file.unlink(), {}, "is missing"),
        (lambda file: file.write_bytes(b"no picture"), {}, "not a readable image"),
        (lambda file: file.write_bytes(b""), {}, "not a readable image"),
        (lambda file: None, {"target_size": (48, 48)}, "24x24 pixels, not 48x48"),
        (lambda file: None, {"classes": ["anger", "fear"]}, "'happiness' is not one of the classes"),
        (lambda file: None, {"color_mode": "cmyk"}, "'cmyk' is not one of"),
    ],
)
def test_refuses_what_it_cannot_serve(make_dataset, spoil, arguments, message):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    spoil(folder / table["face_path"][2])
    with pytest.raises(InputError, match=message):
        flow_from_dataframe(table, folder, **{"target_size": SIZE, **arguments})
    assert not list((folder / "cache").glob("*.npy")) if (folder / "cache").exists() else True


def test_refuses_an_empty_table(make_dataset):
    folder = make_dataset()
    with pytest.raises(InputError, match="no rows"):
        flow_from_dataframe(read_table(folder, "split.csv").head(0), folder)


def test_mixup_mixes_image_target_and_weight_of_two_images_in_one_share(make_dataset):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    table = table.assign(weight=np.linspace(1, 2, len(table)))
    arguments = {"target_size": SIZE, "batch_size": len(table), "shuffle": False, "weight_col": "weight", "seed": 3}
    plain, targets, weights = flow_from_dataframe(table, folder, **arguments)[0]
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


def test_mixup_needs_targets_that_can_be_mixed(make_dataset):
    folder = make_dataset()
    with pytest.raises(InputError, match="'sparse' gives no targets that mixup can mix"):
        flow_from_dataframe(read_table(folder, "split.csv"), folder, target_size=SIZE, class_mode="sparse", mixup=0.2)


def test_two_trainings_at_once_decode_the_images_once(make_dataset, monkeypatch):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    write_decoded, decoded = datasets._write_decoded, []

    def write_slowly(stream, files, *arguments):
        decoded.append(len(files))
        write_decoded(stream, files[:1], *arguments)
        time.sleep(0.2)
        write_decoded(stream, files[1:], *arguments)

    monkeypatch.setattr(datasets, "_write_decoded", write_slowly)
    with ThreadPoolExecutor() as pool:
        one, other = pool.map(lambda _: flow_from_dataframe(table, folder, target_size=SIZE, shuffle=False), range(2))
    assert decoded == [len(table)]
    np.testing.assert_array_equal(one.images, other.images)


def test_crops_that_change_while_they_are_read_are_refused(make_dataset, monkeypatch):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    write_decoded = datasets._write_decoded

    def write_and_change(stream, files, *arguments):
        write_decoded(stream, files, *arguments)
        os.utime(files[3], (1, 1))

    monkeypatch.setattr(datasets, "_write_decoded", write_and_change)
    with pytest.raises(InputError, match="changed while they were read"):
        flow_from_dataframe(table, folder, target_size=SIZE)
