"""Networks run by LiteRT: converted from Keras once, kept on disk, and run without TensorFlow.

The saved Keras weights stay the only source of truth. A converted network is a `.tflite` file whose name holds the hash
of what it was made from, so another version of the source is another file.
"""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np

from configuration import PATHS
from preprocessing.command_line import quiet_start
from preprocessing.errors import InputError
from preprocessing.image_tables import atomic_file

REVISION = 1  # raise it when a conversion changes, so that files of the old kind are not used
KEPT_PIXELS = 1_500_000  # input pixels: interpreters of the least recent shapes go beyond this sum


class Network:
    """A converted network.

    One interpreter is kept for each shape of input, as preparing one takes longer than running it.

    Args:
        file: The `.tflite` file.
        threads: Threads of one run.
    """

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

    def _prepared(self, shape: tuple[int, ...]) -> Any:
        if shape in self._by_shape:
            self._by_shape.move_to_end(shape)
            return self._by_shape[shape]
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(self._file), num_threads=self._threads)
        index = interpreter.get_input_details()[0]["index"]
        interpreter.resize_tensor_input(index, shape)
        interpreter.allocate_tensors()
        details = sorted(interpreter.get_output_details(), key=lambda detail: detail["shape"][-1])
        self._by_shape[shape] = interpreter, index, [detail["index"] for detail in details]
        while len(self._by_shape) > 1 and sum(map(_pixels, self._by_shape)) > KEPT_PIXELS:
            self._by_shape.popitem(last=False)
        return self._by_shape[shape]


def _pixels(shape: tuple[int, ...]) -> int:
    return shape[0] * shape[1] * shape[2]


def converted(name: str, sources: Iterable[Path], build: Callable[[], Any], folder: Path = PATHS.converted) -> Path:
    """Return the `.tflite` file of a Keras model, converting it where that has not been done before.

    Args:
        name: What the file is called, before the hash of its sources.
        sources: The files that the model is made from.
        build: Returns the Keras model; called only where it must be converted.
        folder: Where converted networks are kept. Where it cannot be written, a temporary folder serves this process.

    Raises:
        InputError: it must be converted, but Keras does not run on TensorFlow.
    """
    key = hashlib.sha256(f"{REVISION}".encode())
    for source in sources:
        key.update(source.read_bytes())
    file = folder / f"{name}-{key.hexdigest()[:16]}.tflite"
    if file.is_file():
        return file
    with quiet_start():  # TensorFlow is imported here, and takes seconds
        import keras

        if keras.backend.backend() != "tensorflow":
            raise InputError(
                f"the network {name} is not converted yet, and KERAS_BACKEND={keras.backend.backend()} cannot do it; "
                "run once without KERAS_BACKEND"
            )
        model = build()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            writable = os.access(folder, os.W_OK)
        except OSError:
            writable = False
        if not writable:
            file = Path(mkdtemp(prefix="converted-")) / file.name
        with atomic_file(file) as temporary:
            model.export(str(temporary), format="litert", verbose=False)
    return file
