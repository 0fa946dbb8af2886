"""The images of a network's lineage: their hashes, and the list beside the network."""

import shutil
from typing import Any

import cv2
import numpy as np
import pytest

from common.errors import InputError
from common.images import pixel_hash, read_gray_or_bgr
from configuration import PATHS
from inference.lineage import ImageHashes, hash_codes, hashes_file, lineage_hashes, read_hashes, write_hashes


def test_gray_image_has_one_hash_in_every_file_format(tmp_path):
    gray = np.random.default_rng(1).integers(0, 256, (9, 7), dtype=np.uint8)
    colour = cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR)
    changed = colour.copy()
    changed[0, 0, 0] ^= 1
    alpha, deep = cv2.cvtColor(gray, cv2.COLOR_GRAY2BGRA), gray.astype(np.uint16) * 256
    hashes = []
    for image in (gray, colour, alpha, deep, changed, gray.T):
        cv2.imwrite(str(tmp_path / "image.png"), image)
        pixels = read_gray_or_bgr(tmp_path / "image.png")
        assert pixels is not None
        hashes.append(pixel_hash(pixels))
    assert len(set(hashes[:4])) == 1 and len(set(hashes)) == 3


def test_damaged_list_or_list_of_another_network_is_refused(tiny_model):
    model = tiny_model()
    other = tiny_model(name="other.keras", labels=("anger", "fear"))
    file = hashes_file(model)
    shutil.copy(hashes_file(other), file)
    with pytest.raises(InputError, match=r"tiny\.hashes\.npz.*belongs to another file"):
        read_hashes(model)
    for content in (b"", b"junk", hashes_file(other).read_bytes()[:-40]):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"tiny\.hashes\.npz.*damaged"):
            read_hashes(model)


def test_list_includes_the_images_of_the_lineage(tiny_model):
    teacher = tiny_model(name="teacher.keras")
    write_hashes(teacher, ImageHashes.of(["0123456789abcdef", "b"], ["c"]))
    both = lineage_hashes(ImageHashes.of(["d"], ["e"]), [teacher])
    assert sorted(both.training) == sorted(hash_codes(["0123456789abcdef", "b", "d"]))
    assert sorted(both.selection) == sorted(hash_codes(["c", "e"])) and both.complete


def test_released_networks_list_the_images_of_fer2013(shared_data):
    def images(usage):
        labels = np.load(shared_data / "fer2013" / f"{usage}_labels.npz")
        atlas: Any = cv2.imread(str(shared_data / "fer2013" / f"{usage}.webp"), cv2.IMREAD_GRAYSCALE)
        tiles = atlas.reshape(-1, 48, int(labels["columns"]), 48).swapaxes(1, 2).reshape(-1, 48, 48)
        usable = tiles[: len(labels["row"])]
        return hash_codes({pixel_hash(tile) for tile in usable if tile.std() > 0})

    training, dev = images("Training"), images("PublicTest")
    hashes = read_hashes(PATHS.pretrained.with_name("fer2013.keras"))
    assert hashes.complete and sorted(hashes.training) == sorted(training) and sorted(hashes.selection) == sorted(dev)
    by_votes = read_hashes(PATHS.pretrained)  # images without annotator votes or without a majority are excluded
    assert by_votes.complete and np.isin(by_votes.training, training).all() and np.isin(by_votes.selection, dev).all()
    assert len(by_votes.training) > 27_000 and len(by_votes.selection) > 3_000
