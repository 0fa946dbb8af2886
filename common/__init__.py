import os
import signal
import sys
from types import FrameType

LARGEST_IMAGE = 200_000_000  # pixels: a larger image is unreadable, because a small file may hold a huge one
# OpenCV reads this when it is imported, so every package imports this one first.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(LARGEST_IMAGE))


def end_at_once(number: int, frame: FrameType | None) -> None:
    """Print one line and end the process: the handler of Ctrl-C while a command imports its modules."""
    os.write(2, b"interrupted\n")
    os._exit(130)


# True while Python imports the package of a command (`python -m`), before the slow imports of the command itself.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end_at_once)
