"""Networks run by LiteRT: converted from Keras once, kept on disk, and run without TensorFlow.

The saved Keras weights stay the only source of truth. The name of a converted network, a `.tflite` file, has two
hashes: of what it was made from, so that another version of the source is another file, and of its content.
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

from common.errors import InputError
from common.files import atomic_file
from common.logging import quiet_start
from configuration import PATHS

REVISION = 2  # raise it when a conversion changes, so that files of the old kind are not used
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
    name: str,
    sources: Iterable[Path],
    build: Callable[[], Any],
    folder: Path = PATHS.converted,
    int8: bool = False,
    variant: str = "",
) -> Path:
    """Return the `.tflite` file of a Keras model, converting it where that has not been done before.

    A file whose content is not the one that was written is removed and made again.

    Args:
        name: What the file is called, before the hash of its sources.
        sources: The files that the model is made from.
        build: Returns the Keras model; called only where it must be converted.
        folder: Where converted networks are kept. Where it cannot be written, a temporary folder serves this process.
        int8: Keep the weights in 8 bits; what they are multiplied with is brought to 8 bits picture by picture.
        variant: What else `build` depends on, in words.

    Raises:
        InputError: it must be converted, but Keras does not run on TensorFlow, or LiteRT lacks one of its layers.
    """
    hashed = hashlib.sha256(f"{REVISION} {int8} {variant}\n".encode())
    for source in sources:
        hashed.update(source.read_bytes())
    key = hashed.hexdigest()[:16]
    stem = f"{name[:150]}{'-int8' if int8 else ''}-{key}"
    if file := _kept(folder, stem, key):
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
            folder = _temporary_folder()
        own = folder / f"{stem}.{token_hex(4)}.tflite"  # others may convert it at the same time
        with atomic_file(own) as temporary:
            try:
                model.export(str(temporary), format="litert", verbose=False, **_export_options(int8))
            except OSError:
                raise
            except Exception as error:  # the converter has no error class of its own that is public
                reason = (str(error) or type(error).__name__).splitlines()[0][:200]
                raise InputError(
                    f"the network {name} cannot be converted for LiteRT ({reason}); use layers that LiteRT knows"
                ) from error
        if file := _kept(folder, stem, key):  # another process was faster, and may be using its own
            own.unlink()
            return file
        return own.replace(folder / f"{stem}-{_content_hash(own, key)}.tflite")


def _kept(folder: Path, stem: str, key: str) -> Path | None:
    """Return a file that was converted before, if there is one; damaged ones are removed."""
    for file in sorted(folder.glob(f"{glob.escape(stem)}-*.tflite")):
        if _is_as_written(file, key) and _is_sound(file):
            return file
        print(f"{file} is damaged; converting the network again", file=sys.stderr, flush=True)
        with suppress(OSError):
            file.unlink()
    return None


def _content_hash(file: Path, key: str) -> str:
    """Return a hash of a converted network and of what it was made from (SHA-256, 16 hex digits)."""
    return hashlib.sha256(key.encode() + file.read_bytes()).hexdigest()[:16]


def _is_as_written(file: Path, key: str) -> bool:
    """Tell whether a file has the content that its name was made from; changed bytes would change predictions."""
    try:
        return file.stem.endswith(f"-{_content_hash(file, key)}")
    except OSError:
        return False


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
