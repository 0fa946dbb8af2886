import os
import signal
import sys
from types import FrameType


def end_at_once(number: int, frame: FrameType | None) -> None:
    """End the process in one line; the handler of Ctrl-C while a command imports what it needs."""
    os.write(2, b"interrupted\n")
    os._exit(130)


# Python calls a command so while it imports the command's package, before the slow imports of the command itself.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end_at_once)
