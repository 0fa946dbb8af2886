import os
import signal
import sys
from types import FrameType, TracebackType

from common.errors import missing_package

LARGEST_IMAGE = 200_000_000  # pixels: a larger image is unreadable, because a small file may hold a huge one
# OpenCV reads this when it is imported, so every package imports this one first.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(LARGEST_IMAGE))


def end_at_once(number: int, frame: FrameType | None) -> None:
    """Print one line and end the process: the handler of Ctrl-C while a command imports its modules."""
    os.write(2, b"interrupted\n")
    os._exit(130)


def report_missing_package(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print one line where a command imports a package that is not installed: the handler of uncaught exceptions."""
    message = missing_package(error)
    if message is None:
        sys.__excepthook__(kind, error, trace)
        return
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


# While Python imports the package of a command (`python -m`), before the slow imports of the command itself.
if sys.argv[:1] == ["-m"]:
    sys.excepthook = report_missing_package
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)
