"""Silencing the messages of native libraries. Cheap to import."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def silence_opencv() -> None:
    """Turn off the messages of OpenCV and its FFmpeg about files that they cannot open or decode.

    FFmpeg reads its level once, with the first video of a process.
    """
    import cv2  # late: this module is imported before any native library

    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def silence_retracing() -> None:
    """Turn off TensorFlow's retracing warning, which is wrong where many networks run once each."""
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


@contextmanager
def quiet_start() -> Iterator[None]:
    """Discard what native libraries write to standard error while they are imported or started.

    TensorFlow and LiteRT write to the file descriptor itself, so `contextlib.redirect_stderr` does not catch it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
