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

from common.errors import InputError
from configuration import FACES, ROOT
from inference import litert
from inference.face_detector import FaceDetector
from inference.litert import Network, converted


def never() -> None:
    raise AssertionError("converted again")


# ---------------------------------------------------------------- mtcnn's networks


@pytest.fixture(scope="module")
def stages() -> dict:
    from mtcnn.stages import StageONet, StagePNet, StageRNet

    return {"pnet": StagePNet(), "rnet": StageRNet(), "onet": StageONet()}


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("pnet", (1, 12, 12, 3)), ("pnet", (1, 37, 150, 3)),
        ("rnet", (1, 24, 24, 3)), ("rnet", (8, 24, 24, 3)),
        ("onet", (1, 48, 48, 3)), ("onet", (8, 48, 48, 3)),
    ],
)  # fmt: skip
def test_converted_networks_give_what_keras_gives(stages, name, shape):
    import mtcnn

    FaceDetector()  # converts where that has not been done
    weights = Path(mtcnn.__file__).parent / "assets" / "weights" / f"{name}.lz4"
    network = Network(converted(name, [weights], never))
    batch = np.random.default_rng(len(name) + shape[0]).integers(0, 256, shape).astype(np.uint8)
    expected = stages[name].model((batch.astype(np.float32) - 127.5) / 128)
    expected = sorted((np.asarray(output) for output in expected), key=lambda output: output.shape[-1])
    outputs = network(batch)
    assert len(outputs) == len(expected)
    for output, other in zip(outputs, expected, strict=True):
        assert output.dtype == np.float32
        np.testing.assert_allclose(output, other, atol=1e-4)


def test_interpreters_of_many_shapes_do_not_pile_up(monkeypatch):
    from ai_edge_litert import interpreter

    alive: WeakKeyDictionary = WeakKeyDictionary()

    class Counted(interpreter.Interpreter):
        def __init__(self, model_path, **options):
            super().__init__(model_path, **options)
            alive[self] = model_path

    monkeypatch.setattr(interpreter, "Interpreter", Counted)
    monkeypatch.setattr(litert, "KEPT_PIXELS", 40_000)  # room for R-Net's largest batch
    detector = FaceDetector(replace(FACES, min_face_size=20), threads=1)
    random = np.random.default_rng(4)
    shapes = set()
    for _ in range(300):
        height, width = random.integers(20, 160, 2)
        detector.detect(random.integers(0, 256, (height, width, 3), np.uint8))
        shapes.add((height, width))
    gc.collect()
    pixels: Counter = Counter()
    for one, file in alive.items():
        pixels[file] += np.prod(one.get_input_details()[0]["shape"][:3])
    assert len(shapes) > 250 and max(pixels.values()) > 20_000  # the limit was reached
    assert all(kept <= 40_000 for kept in pixels.values())


# ---------------------------------------------------------------- the cache


class Source:
    """A file from which a network of one layer is made, and a count of its conversions."""

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

    def converted(self, folder: Path) -> float:
        """Return the factor of the converted network, and with it that it works."""
        file = converted("tiny", [self.file], self.build, folder)
        (output,) = Network(file)(np.ones((1, 2, 2, 3), np.uint8))
        return float(output.mean())


@pytest.fixture
def source(tmp_path) -> Source:
    return Source(tmp_path)


def test_a_network_is_converted_once_for_each_source(source, tmp_path):
    cache = tmp_path / "cache"
    assert source.converted(cache) == source.converted(cache) == 2 and source.builds == 1
    source.write(3.0)
    assert source.converted(cache) == 3 and source.builds == 2
    source.write(2.0)
    assert source.converted(cache) == 2 and source.builds == 2
    assert len(list(cache.iterdir())) == 2  # nothing but the two networks


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: bytes(len(data))],
    ids=["empty", "cut", "zeros"],
)
def test_a_damaged_file_is_converted_anew(source, tmp_path, damage: Callable[[bytes], bytes]):
    file = converted("tiny", [source.file], source.build, tmp_path / "cache")
    file.write_bytes(damage(file.read_bytes()))
    assert source.converted(tmp_path / "cache") == 2 and source.builds == 2


@pytest.mark.parametrize("place", [0.3, 0.5, 0.9, 1.0])
def test_changed_bytes_of_a_converted_network_are_noticed(source, tmp_path, capfd, place):
    file = converted("tiny", [source.file], source.build, tmp_path / "cache")
    data = bytearray(file.read_bytes())
    data[round(place * (len(data) - 1))] ^= 1
    file.write_bytes(data)
    assert source.converted(tmp_path / "cache") == 2 and source.builds == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if "is damaged; converting the network again" in line]
    assert len(lines) == 1 and file.name in lines[0]
    assert source.converted(tmp_path / "cache") == 2 and source.builds == 2
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_converted_network_of_another_source_under_this_name_is_noticed(source, tmp_path):
    own = converted("tiny", [source.file], source.build, tmp_path / "cache")
    source.write(3.0)
    other = converted("tiny", [source.file], source.build, tmp_path / "cache")
    other.write_bytes(own.read_bytes())
    assert source.converted(tmp_path / "cache") == 3
    renamed = other.with_name(f"{other.stem.rpartition('-')[0]}-{own.stem.rpartition('-')[2]}.tflite")
    for file in (tmp_path / "cache").glob(f"{other.stem.rpartition('-')[0]}*"):
        file.unlink()
    own.rename(renamed)
    assert source.converted(tmp_path / "cache") == 3


def test_variants_of_a_network_are_kept_apart(source, tmp_path):
    plain = converted("tiny", [source.file], source.build, tmp_path)
    assert converted("tiny", [source.file], source.build, tmp_path, variant="other") != plain
    assert source.builds == 2


def test_network_that_cannot_be_converted_is_refused_in_one_line(source, tmp_path):
    def export(file: str, **options: object) -> None:
        raise ValueError("no such operation\nmore")

    with pytest.raises(InputError, match=r"tiny cannot be converted for LiteRT \(no such operation\)"):
        converted("tiny", [source.file], lambda: SimpleNamespace(export=export), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_killed_conversion_is_made_up_for(source, tmp_path):
    program = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from types import SimpleNamespace
from inference.litert import converted
sys.modules["keras"] = SimpleNamespace(backend=SimpleNamespace(backend=lambda: "tensorflow"))  # not what is tested
def export(file, **options):
    Path(file).write_bytes(b"half of a net")
    os._exit(9)
converted("tiny", [Path("source")], lambda: SimpleNamespace(export=export), Path("cache"))
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 9, run.stderr
    assert len(list((tmp_path / "cache").iterdir())) == 1  # what the killed one left
    assert source.converted(tmp_path / "cache") == 2


def test_a_failed_conversion_leaves_nothing(source, tmp_path):
    def export(file: str, **options: object) -> None:
        Path(file).write_bytes(b"half of a net")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        converted("tiny", [source.file], lambda: SimpleNamespace(export=export), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_two_conversions_at_once_do_not_disturb_each_other(source, tmp_path):
    cache = tmp_path / "cache"
    network = converted("tiny", [source.file], source.build, tmp_path / "elsewhere").read_bytes()

    def export(file: str, **options: object) -> None:
        with Path(file).open("wb") as out:
            out.write(network[:100])
            assert source.converted(cache) == 2  # another one starts later and is done sooner
            out.write(network[100:])

    file = converted("tiny", [source.file], lambda: SimpleNamespace(export=export), cache)
    assert list(cache.iterdir()) == [file]
    assert source.converted(cache) == 2


def test_where_the_cache_cannot_be_written_a_temporary_folder_serves(source, tmp_path):
    (tmp_path / "file").write_text("in the way: no folder can be made below, whoever asks")
    assert source.converted(tmp_path / "file" / "cache") == 2
    locked = tmp_path / "locked"
    locked.mkdir(0o500)
    assert source.converted(locked) == 2


@pytest.mark.parametrize("backend", ["jax", "torch", "nonsense"])
def test_without_tensorflow_as_backend_only_what_is_cached_serves(source, tmp_path, monkeypatch, backend):
    assert source.converted(tmp_path / "cache") == 2
    monkeypatch.setenv("KERAS_BACKEND", backend)
    assert source.converted(tmp_path / "cache") == 2
    with pytest.raises(InputError, match=f"tiny is not converted yet, and KERAS_BACKEND={backend} .* run once without"):
        source.converted(tmp_path / "empty")
