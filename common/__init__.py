import os
import signal
import sys
from types import FrameType


def end_at_once(number: int, frame: FrameType | None) -> None:
    """Print one line and end the process: the handler of Ctrl-C while a command imports its modules."""
    os.write(2, b"interrupted\n")
    os._exit(130)


# True while Python imports the package of a command (`python -m`), before the slow imports of the command itself.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end_at_once)
