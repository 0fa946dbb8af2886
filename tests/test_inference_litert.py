import gc
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from weakref import WeakKeyDictionary

import numpy as np
import pytest
from conftest import ROOT

from common.errors import InputError
from configuration import FACES
from inference import litert
from inference.face_detector import FaceDetector
from inference.litert import Network, converted


def never() -> None:
    raise AssertionError("converted again")


@pytest.mark.parametrize(
    ("name", "shape"), [("pnet", (1, 37, 150, 3)), ("rnet", (8, 24, 24, 3)), ("onet", (8, 48, 48, 3))]
)
def test_converted_mtcnn_networks_give_what_keras_gives(name, shape):
    import mtcnn
    from mtcnn import stages

    FaceDetector()  # converts the networks
    stage = {"pnet": stages.StagePNet, "rnet": stages.StageRNet, "onet": stages.StageONet}[name]()
    network = Network(converted(name, [Path(mtcnn.__file__).parent / "assets" / "weights" / f"{name}.lz4"], never))
    batch = np.random.default_rng(len(name) + shape[0]).integers(0, 256, shape).astype(np.uint8)
    expected = stage.model((batch.astype(np.float32) - 127.5) / 128)
    expected = sorted((np.asarray(output) for output in expected), key=lambda output: output.shape[-1])
    for output, other in zip(network(batch), expected, strict=True):
        assert output.dtype == np.float32
        np.testing.assert_allclose(output, other, atol=1e-4)


def test_kept_interpreters_are_limited(monkeypatch):
    from ai_edge_litert import interpreter

    alive: WeakKeyDictionary = WeakKeyDictionary()

    class Counted(interpreter.Interpreter):
        def __init__(self, model_path, **options):
            super().__init__(model_path, **options)
            alive[self] = model_path

    monkeypatch.setattr(interpreter, "Interpreter", Counted)
    monkeypatch.setattr(litert, "MAX_KEPT_PIXELS", 40_000)  # room for R-Net's largest batch
    detector = FaceDetector(replace(FACES, min_face_size=20), threads=1)
    random = np.random.default_rng(4)
    for _ in range(100):
        height, width = random.integers(20, 160, 2)
        detector.detect(random.integers(0, 256, (height, width, 3), np.uint8))
    gc.collect()
    pixels: Counter = Counter()
    for one, file in alive.items():
        pixels[file] += np.prod(one.get_input_details()[0]["shape"][:3])
    assert max(pixels.values()) > 20_000  # the limit was reached
    assert all(kept <= 40_000 for kept in pixels.values())


class Source:
    """A file that a network of one layer is made from, and a count of its conversions."""

    def __init__(self, folder: Path):
        self.file = folder / "source"
        self.builds = 0
        self.write(2.0)

    def write(self, factor: float) -> None:
        self.file.write_text(str(factor))

    def build(self):
        import keras

        self.builds += 1
        inputs = keras.Input((None, None, 3), dtype="uint8")
        return keras.Model(inputs, keras.layers.Rescaling(float(self.file.read_text()))(inputs))

    def file_in(self, folder: Path, **options) -> Path:
        return converted("tiny", [self.file], self.build, folder, **options)

    def factor_in(self, folder: Path) -> float:
        """Return the factor of the converted network."""
        (output,) = Network(self.file_in(folder))(np.ones((1, 2, 2, 3), np.uint8))
        return float(output.mean())


@pytest.fixture
def source(tmp_path) -> Source:
    return Source(tmp_path)


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def test_network_is_converted_once_for_each_source_and_variant(source, cache):
    assert source.factor_in(cache) == source.factor_in(cache) == 2 and source.builds == 1
    source.write(3.0)
    assert source.factor_in(cache) == 3 and source.builds == 2
    source.write(2.0)
    assert source.factor_in(cache) == 2 and source.builds == 2
    assert len(list(cache.iterdir())) == 2
    assert source.file_in(cache, variant="other") != source.file_in(cache)


def flip_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[: len(data) // 2], flip_bit], ids=["empty", "cut", "bit"]
)
def test_damaged_file_is_converted_again(source, cache, capfd, damage: Callable[[bytes], bytes]):
    file = source.file_in(cache)
    file.write_bytes(damage(file.read_bytes()))
    assert source.factor_in(cache) == source.factor_in(cache) == 2 and source.builds == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if "is damaged; converting the network again" in line]
    assert len(lines) == 1 and file.name in lines[0]
    assert len(list(cache.iterdir())) == 1


def test_converted_network_of_another_source_under_this_name_is_noticed(source, cache):
    own = source.file_in(cache)
    source.write(3.0)
    other = source.file_in(cache)
    other.write_bytes(own.read_bytes())
    assert source.factor_in(cache) == 3
    renamed = other.with_name(f"{other.stem.rpartition('-')[0]}-{own.stem.rpartition('-')[2]}.tflite")
    for file in cache.glob(f"{other.stem.rpartition('-')[0]}*"):
        file.unlink()
    own.rename(renamed)
    assert source.factor_in(cache) == 3


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (ValueError("no such operation\nmore"), InputError, r"tiny cannot be converted for LiteRT \(no such operation"),
        (OSError("no space left"), OSError, "no space"),
    ],
)
def test_failed_conversion_leaves_no_file(source, cache, error, raised, message):
    def export(file: str, **options: object) -> None:
        Path(file).write_bytes(b"half of a network")
        raise error

    with pytest.raises(raised, match=message):
        converted("tiny", [source.file], lambda: SimpleNamespace(export=export), cache)
    assert list(cache.iterdir()) == []


def test_killed_conversion_is_repeated(source, cache, tmp_path):
    program = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
from inference.litert import converted
sys.modules["keras"] = SimpleNamespace(backend=SimpleNamespace(backend=lambda: "tensorflow"))  # not what is tested
def export(file, **options):
    Path(file).write_bytes(b"half of a network")
    os._exit(9)
converted("tiny", [Path(sys.argv[1])], lambda: SimpleNamespace(export=export), Path(sys.argv[2]))
"""
    run = subprocess.run([sys.executable, "-c", program, source.file, cache], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 9, run.stderr
    assert len(list(cache.iterdir())) == 1  # the temporary file of the killed process
    assert source.factor_in(cache) == 2


def test_two_conversions_at_once_give_one_file(source, cache, tmp_path):
    network = source.file_in(tmp_path / "elsewhere").read_bytes()

    def export(file: str, **options: object) -> None:
        with Path(file).open("wb") as out:
            out.write(network[:100])
            assert source.factor_in(cache) == 2  # another conversion starts later and ends earlier
            out.write(network[100:])

    file = converted("tiny", [source.file], lambda: SimpleNamespace(export=export), cache)
    assert list(cache.iterdir()) == [file]
    assert source.factor_in(cache) == 2


def test_temporary_folder_is_used_if_the_cache_is_not_writable(source, tmp_path):
    (tmp_path / "file").touch()
    assert source.factor_in(tmp_path / "file" / "cache") == 2


@pytest.mark.parametrize("backend", ["jax", "nonsense"])
def test_other_backends_use_converted_networks_only(source, cache, tmp_path, monkeypatch, backend):
    source.file_in(cache)
    monkeypatch.setenv("KERAS_BACKEND", backend)
    assert source.factor_in(cache) == 2
    with pytest.raises(InputError, match=f"tiny is not converted yet, and KERAS_BACKEND={backend} .* run once without"):
        source.file_in(tmp_path / "empty")
