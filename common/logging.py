"""Silencing the messages of native libraries. Cheap to import."""

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile
from threading import RLock

# Lines of TensorFlow's and LiteRT's own logs, the second line of a message about the processor, and Ray's log.
_NATIVE_LOG = re.compile(
    rb"[IWE]\d{4} \d\d:\d\d:|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IWE] |(INFO|WARNING|ERROR):( |absl:|tensorflow:)"
    rb"|To enable the following instructions: |\[[-\d]+ [:,\d]+ I "
)
_STDERR = RLock()  # threads that redirect standard error at the same time would not restore it
_ERRORS_OFF = "3"  # TF_CPP_MIN_LOG_LEVEL: TensorFlow raises its errors as exceptions too


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
    """Remove the logs of TensorFlow and LiteRT from standard error while they are imported or started.

    Both write to the file descriptor itself, so `contextlib.redirect_stderr` does not catch it. All other lines, such
    as Python's warnings, are printed when the block ends. A user who sets TF_CPP_MIN_LOG_LEVEL below 3 gets every line.
    """
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", _ERRORS_OFF) != _ERRORS_OFF:
        yield
        return
    sys.stderr.flush()
    with _STDERR, TemporaryFile() as caught:
        kept = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            caught.seek(0)
            os.write(2, b"".join(line for line in caught if not _NATIVE_LOG.match(line)))
