"""Networks run by LiteRT: converted from Keras once, kept on disk, and run without TensorFlow.

The saved Keras weights stay the only source of truth. A converted network is a `.tflite` file whose name holds the hash
of what it was made from, so another version of the source is another file.
"""

import atexit
import hashlib
import os
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

from configuration import PATHS
from preprocessing.errors import InputError
from preprocessing.files import atomic_file
from preprocessing.quiet import quiet_start

REVISION = 1  # raise it when a conversion changes, so that files of the old kind are not used
KEPT_PIXELS = 500_000  # input pixels: interpreters of the least recent shapes go beyond this sum


class Network:
    """A converted network.

    One interpreter is kept for each shape of input, as preparing one takes longer than running it.

    Args:
        file: The `.tflite` file.
        threads: Threads of one run.
    """

    _has_told = False  # the first interpreter of a process tells how it runs

    def __init__(self, file: Path, threads: int = 1):
        self._file, self._threads = file, threads
        self._by_shape: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def __call__(self, batch: np.ndarray) -> list[np.ndarray]:
        """Run the network.

        Args:
            batch: (n, height, width, channels), of the dtype that the network takes.

        Returns:
            Its outputs, in the order of the sizes of their last axes; the arrays are the caller's.
        """
        interpreter, index, outputs = self._prepared(batch.shape)
        interpreter.set_tensor(index, batch)
        interpreter.invoke()
        return [interpreter.get_tensor(output) for output in outputs]

    def shapes(self) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
        """Return the shapes of the input and of the first output, None for a size that may vary."""
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(self._file))
        ends = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
        given, returned = (tuple(int(n) if n >= 0 else None for n in end["shape_signature"]) for end in ends)
        return given, returned

    def _prepared(self, shape: tuple[int, ...]) -> Any:
        if shape in self._by_shape:
            self._by_shape.move_to_end(shape)
            return self._by_shape[shape]
        from ai_edge_litert.interpreter import Interpreter

        with nullcontext() if Network._has_told else quiet_start():
            interpreter = Interpreter(str(self._file), num_threads=self._threads)
            index = interpreter.get_input_details()[0]["index"]
            interpreter.resize_tensor_input(index, shape)
            interpreter.allocate_tensors()
        Network._has_told = True
        details = sorted(interpreter.get_output_details(), key=lambda detail: detail["shape"][-1])
        self._by_shape[shape] = interpreter, index, [detail["index"] for detail in details]
        while len(self._by_shape) > 1 and sum(map(_pixels, self._by_shape)) > KEPT_PIXELS:
            self._by_shape.popitem(last=False)
        return self._by_shape[shape]


def _pixels(shape: tuple[int, ...]) -> int:
    return shape[0] * shape[1] * shape[2]


def converted(
    name: str, sources: Iterable[Path], build: Callable[[], Any], folder: Path = PATHS.converted, int8: bool = False
) -> Path:
    """Return the `.tflite` file of a Keras model, converting it where that has not been done before.

    Args:
        name: What the file is called, before the hash of its sources.
        sources: The files that the model is made from.
        build: Returns the Keras model; called only where it must be converted.
        folder: Where converted networks are kept. Where it cannot be written, a temporary folder serves this process.
        int8: Keep the weights in 8 bits; what they are multiplied with is brought to 8 bits picture by picture.

    Raises:
        InputError: it must be converted, but Keras does not run on TensorFlow.
    """
    key = hashlib.sha256(f"{REVISION}".encode())
    for source in sources:
        key.update(source.read_bytes())
    file = folder / f"{name}{'-int8' if int8 else ''}-{key.hexdigest()[:16]}.tflite"
    if _is_sound(file):
        return file
    with quiet_start():  # TensorFlow is imported here, and takes seconds
        backend = os.environ.get("KERAS_BACKEND")
        if backend in (None, "", "tensorflow"):  # others need not be installed to be refused
            import keras

            backend = keras.backend.backend()
        if backend != "tensorflow":
            raise InputError(
                f"the network {name} is not converted yet, and KERAS_BACKEND={backend} cannot do it; "
                "run once without KERAS_BACKEND"
            )
        model = build()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            writable = os.access(folder, os.W_OK)
        except OSError:
            writable = False
        if not writable:
            file = _temporary_folder() / file.name
        own = file.with_stem(f"{file.stem}.{token_hex(4)}")  # others may convert it at the same time
        with atomic_file(own) as temporary:
            model.export(str(temporary), format="litert", verbose=False, **_export_options(int8))
        own.replace(file)
    return file


def _export_options(int8: bool) -> dict[str, Any]:
    if not int8:
        return {}
    import tensorflow as tf

    return {"optimizations": [tf.lite.Optimize.DEFAULT]}  # type: ignore[attr-defined]


def _is_sound(file: Path) -> bool:
    """Tell whether there is such a file and LiteRT can open it; one that was cut short is converted anew."""
    if not file.is_file():
        return False
    from ai_edge_litert.interpreter import Interpreter

    with quiet_start():  # the first interpreter of a process tells how it runs
        try:
            interpreter = Interpreter(str(file))
        except (OSError, ValueError):
            return False
        with suppress(RuntimeError):  # a network for pictures of any size cannot be prepared before it sees one
            interpreter.allocate_tensors()
    return True


@cache
def _temporary_folder() -> Path:
    """Return a folder that goes when this process ends."""
    folder = mkdtemp(prefix="converted-")
    atexit.register(rmtree, folder, ignore_errors=True)
    return Path(folder)
