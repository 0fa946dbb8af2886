"""Run networks on LiteRT: converted from Keras once, kept on disk, and run without TensorFlow.

The networks that come with the project are shipped converted, in `models/litert` (`inference.shipped`). The name of a
converted network, a `.tflite` file, ends with two content hashes: of its sources, so that a changed source is converted
again, and of the file itself, so that damage is noticed.
"""

import atexit
import glob
import hashlib
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from functools import cache
from pathlib import Path
from secrets import token_hex
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import numpy as np

from common.errors import INSTALL_REST, InputError
from common.files import atomic_file
from common.logging import quiet_start
from configuration import PATHS
from inference.keras_networks import export_network

REVISION = 2  # raise it when the conversion changes, so that earlier files are not used
MAX_KEPT_PIXELS = 500_000  # input pixels of all kept interpreters; beyond, the least recently used ones are dropped


class Network:
    """A converted network, with one interpreter for each input shape, as preparing one takes longer than running it.

    Args:
        file: The `.tflite` file.
        threads: Threads of one run.
    """

    _has_started = False  # the first interpreter of a process prints messages

    def __init__(self, file: Path, threads: int = 1):
        self._file, self._threads = file, threads
        self._by_shape: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def __call__(self, batch: np.ndarray) -> list[np.ndarray]:
        """Run the network.

        Args:
            batch: (n, height, width, channels), of the dtype of the network's input.

        Returns:
            Copies of the outputs, ordered by the sizes of their last axes.
        """
        interpreter, index, outputs = self._prepared(batch.shape)
        interpreter.set_tensor(index, batch)
        interpreter.invoke()
        return [interpreter.get_tensor(output) for output in outputs]

    def shapes(self) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
        """Return the shapes of the input and of the first output; a variable size is None."""
        from ai_edge_litert.interpreter import Interpreter

        with quiet_start():
            interpreter = Interpreter(str(self._file))
        ends = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
        given, returned = (tuple(int(n) if n >= 0 else None for n in end["shape_signature"]) for end in ends)
        return given, returned

    def _prepared(self, shape: tuple[int, ...]) -> Any:
        if shape in self._by_shape:
            self._by_shape.move_to_end(shape)
            return self._by_shape[shape]
        from ai_edge_litert.interpreter import Interpreter

        with nullcontext() if Network._has_started else quiet_start():
            interpreter = Interpreter(str(self._file), num_threads=self._threads)
            index = interpreter.get_input_details()[0]["index"]
            interpreter.resize_tensor_input(index, shape)
            interpreter.allocate_tensors()
        Network._has_started = True
        details = sorted(interpreter.get_output_details(), key=lambda detail: detail["shape"][-1])
        self._by_shape[shape] = interpreter, index, [detail["index"] for detail in details]
        while len(self._by_shape) > 1 and sum(n * h * w for n, h, w, *_ in self._by_shape) > MAX_KEPT_PIXELS:
            self._by_shape.popitem(last=False)
        return self._by_shape[shape]


def converted(
    name: str,
    sources: Iterable[Path],
    build: Callable[[], Any],
    folder: Path = PATHS.converted,
    int8: bool = False,
    variant: str = "",
    shipped: Path = PATHS.shipped,
) -> Path:
    """Return the `.tflite` file of a Keras model: a shipped or kept one, or it is converted now.

    A file is used if it was made from the same sources and is not damaged.

    Args:
        name: Start of the file's name.
        sources: The files that the model is made from.
        build: Returns the Keras model; called only for a conversion.
        folder: Folder of converted networks. If it is not writable, a temporary folder of this process is used.
        int8: Quantise the weights to 8 bits; activations are quantised at run time.
        variant: Anything else that `build` depends on.
        shipped: Folder of the networks that are shipped converted.

    Raises:
        InputError: A conversion is needed, but TensorFlow is not installed, Keras runs on another backend, or LiteRT
            lacks one of the layers.
    """
    content = hashlib.sha256(f"{REVISION} {int8} {variant}\n".encode())
    for source in sources:
        content.update(source.read_bytes())
    key = content.hexdigest()[:16]
    stem = f"{name[:150]}{'-int8' if int8 else ''}-{key}"
    if file := _kept(shipped, stem, key) or _kept(folder, stem, key):
        return file
    with quiet_start():  # TensorFlow is imported here, which takes seconds
        _check_backend(name)
        model = build()
        folder = _writable(folder)
        own = folder / f"{stem}.{token_hex(4)}.tflite"  # other processes may convert it at the same time
        with atomic_file(own) as temporary:
            _export(model, temporary, name, int8)
        if file := _kept(folder, stem, key):  # another process was faster and may be using its file
            own.unlink()
            return file
        return own.replace(folder / f"{stem}-{_content_hash(own, key)}.tflite")


def _check_backend(name: str) -> None:
    backend = os.environ.get("KERAS_BACKEND")
    if backend in (None, "", "tensorflow"):  # other backends need not be installed to be refused
        try:
            import keras
        except ModuleNotFoundError as error:
            raise InputError(
                f"the network {name} is not converted for LiteRT, which needs TensorFlow; {INSTALL_REST}; or restore a "
                "network of the project: git checkout -- models/litert"
            ) from error
        backend = keras.backend.backend()
    if backend != "tensorflow":
        raise InputError(
            f"the network {name} is not converted yet, and KERAS_BACKEND={backend} cannot do it; "
            "run once without KERAS_BACKEND"
        )


def _export(model: Any, file: Path, name: str, int8: bool) -> None:
    options = {}
    if int8:
        import tensorflow as tf

        options = {"optimizations": [tf.lite.Optimize.DEFAULT]}  # type: ignore[attr-defined]
    failure = f"the network {name} cannot be converted for LiteRT"
    export_network(model, file, "litert", failure, "LiteRT", **options)


def _kept(folder: Path, stem: str, key: str) -> Path | None:
    """Return a file that was converted before; damaged files are removed."""
    for file in sorted(folder.glob(f"{glob.escape(stem)}-*.tflite")):
        with suppress(OSError):
            if file.stem.endswith(f"-{_content_hash(file, key)}"):
                return file
        print(f"{file} is damaged; converting the network again", file=sys.stderr, flush=True)
        with suppress(OSError):
            file.unlink()
    return None


def _content_hash(file: Path, key: str) -> str:
    """Return the hash of a converted network and of its sources (SHA-256, 16 hex digits)."""
    return hashlib.sha256(key.encode() + file.read_bytes()).hexdigest()[:16]


def _writable(folder: Path) -> Path:
    """Return the folder, created, or a temporary folder if it is not writable."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    return _temporary_folder()


@cache
def _temporary_folder() -> Path:
    """Return a folder that is removed when this process ends."""
    folder = mkdtemp(prefix="converted-")
    atexit.register(rmtree, folder, ignore_errors=True)
    return Path(folder)
