from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from common.errors import InputError
from inference.face_detector import FaceDetector
from inference.litert import Network, converted


def never() -> None:
    raise AssertionError("converted again")


@pytest.mark.parametrize(
    ("name", "shape"), [("PNet", (1, 37, 150, 3)), ("RNet", (8, 24, 24, 3)), ("ONet", (8, 48, 48, 3))]
)
def test_converted_mtcnn_networks_give_what_keras_gives(name, shape):
    import mtcnn
    from mtcnn import stages

    FaceDetector()  # converts the networks
    weights = Path(mtcnn.__file__).parent / "assets" / "weights" / f"{name.lower()}.lz4"
    network = Network(converted(name.lower(), [weights], never))
    batch = np.random.default_rng(len(shape)).integers(0, 256, shape).astype(np.uint8)
    expected = getattr(stages, f"Stage{name}")().model((batch.astype(np.float32) - 127.5) / 128)
    expected = sorted((np.asarray(output) for output in expected), key=lambda output: output.shape[-1])
    for output, other in zip(network(batch), expected, strict=True):
        assert output.dtype == np.float32
        np.testing.assert_allclose(output, other, atol=1e-4)


class Source:
    """A file that a network of one layer is made from, and a count of its conversions."""

    def __init__(self, folder: Path):
        self.file, self.cache, self.builds = folder / "source", folder / "cache", 0
        self.write(2.0)

    def write(self, factor: float) -> None:
        self.file.write_text(str(factor))

    def build(self):
        import keras

        self.builds += 1
        inputs = keras.Input((None, None, 3), dtype="uint8")
        return keras.Model(inputs, keras.layers.Rescaling(float(self.file.read_text()))(inputs))

    def convert(self, **options) -> Path:
        return converted("tiny", [self.file], self.build, self.cache, **options)

    def factor(self) -> float:
        """Return the factor of the converted network."""
        (output,) = Network(self.convert())(np.ones((1, 2, 2, 3), np.uint8))
        return float(output.mean())


@pytest.fixture
def source(tmp_path) -> Source:
    return Source(tmp_path)


def test_network_is_converted_once_for_each_source_and_variant(source):
    assert source.factor() == source.factor() == 2 and source.builds == 1
    source.write(3.0)
    assert source.factor() == 3 and source.builds == 2
    source.write(2.0)
    assert source.factor() == 2 and source.builds == 2
    assert source.convert(variant="other") != source.convert() and len(list(source.cache.iterdir())) == 3
    source.cache = source.file / "cache"  # not writable: the temporary folder is used
    assert source.factor() == 2


def test_shipped_network_is_used_for_its_own_source_only(source, tmp_path):
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    file = source.convert()
    file = file.rename(shipped / file.name)
    assert source.convert(shipped=shipped) == file and source.builds == 1
    source.write(3.0)
    assert source.convert(shipped=shipped).parent == source.cache and source.factor() == 3
    source.write(2.0)
    file.write_bytes(file.read_bytes()[:-9])
    assert source.convert(shipped=shipped).parent == source.cache and source.factor() == 2


@pytest.mark.parametrize("damage", ["empty", "cut", "bit"])
def test_damaged_file_is_converted_again(source, capfd, damage):
    file = source.convert()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "bit": content}[damage])
    assert source.factor() == source.factor() == 2 and source.builds == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if "is damaged; converting the network again" in line]
    assert len(lines) == 1 and file.name in lines[0]
    assert len(list(source.cache.iterdir())) == 1


def test_converted_network_of_another_source_under_this_name_is_noticed(source):
    own = source.convert()
    source.write(3.0)
    other = source.convert()
    other.write_bytes(own.read_bytes())
    assert source.factor() == 3
    renamed = other.with_name(f"{other.stem.rpartition('-')[0]}-{own.stem.rpartition('-')[2]}.tflite")
    for file in source.cache.glob(f"{other.stem.rpartition('-')[0]}*"):
        file.unlink()
    own.rename(renamed)
    assert source.factor() == 3


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (ValueError("no such operation\nmore"), InputError, r"tiny cannot be converted for LiteRT \(no such operation"),
        (OSError("no space left"), OSError, "no space"),
    ],
)
def test_failed_conversion_leaves_no_file(source, error, raised, message):
    def export(file: str, **options: object) -> None:
        Path(file).write_bytes(b"half of a network")
        raise error

    with pytest.raises(raised, match=message):
        converted("tiny", [source.file], lambda: SimpleNamespace(export=export), source.cache)
    assert list(source.cache.iterdir()) == []


def test_two_conversions_at_once_give_one_file(source):
    network = source.convert().read_bytes()
    source.cache = source.cache / "empty"

    def export(file: str, **options: object) -> None:
        with Path(file).open("wb") as out:
            out.write(network[:100])
            assert source.factor() == 2  # another conversion starts later and ends earlier
            out.write(network[100:])

    file = converted("tiny", [source.file], lambda: SimpleNamespace(export=export), source.cache)
    assert list(source.cache.iterdir()) == [file]
    assert source.factor() == 2


def test_other_backends_use_converted_networks_only(source, monkeypatch):
    source.convert()
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert source.factor() == 2
    source.write(3.0)
    with pytest.raises(InputError, match=r"tiny is not converted yet, and KERAS_BACKEND=jax .* run once without"):
        source.convert()
