"""Keeping the notes of native libraries from the user; cheap to import."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def silence_opencv() -> None:
    """Keep OpenCV, and FFmpeg within it, from adding lines of their own to ours about what they cannot open or decode.

    FFmpeg reads its level once, with the first video of a process.
    """
    import cv2  # late: this module is imported before anything is loaded

    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def silence_retracing() -> None:
    """Keep TensorFlow from warning that networks which are run once each are compiled each by itself.

    It takes them for one network that is compiled anew every time.
    """
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


@contextmanager
def quiet_start() -> Iterator[None]:
    """Silence what native libraries write while they are imported or started.

    TensorFlow and LiteRT write notes to the file descriptor itself, which a user takes for errors.
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
