"""The command line that all steps share: common options, and errors of the user in one line."""

import errno
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from common import end_at_once
from common.errors import InputError, missing_package
from common.files import printable
from common.urls import redacted
from configuration import PATHS

_REMEDIES = {  # of a disk that accepts no more data, and of a file that disappears
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or raise the quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.ENOENT: "put it back",
}
# Errors that the user can fix: a full or read-only disk, missing permissions, a name that is too long, a file in place
# of a folder or the reverse, a link to nowhere.
_USER_ERRORS = (
    *(*_REMEDIES, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
)

DatasetName = Annotated[str, typer.Option("--dataset", help="Name of the data set: its folder under --data.")]
DataRoot = Annotated[Path, typer.Option("--data", help="Folder of the data sets.")]
ModelsRoot = Annotated[Path, typer.Option("--models", help="Folder of the trained networks.")]
Force = Annotated[bool, typer.Option("--force", help="Train from the first epoch, even if the run is finished.")]
Targets = Annotated[
    str, typer.Option("--targets", help="Targets: labels, or votes (distribution of the annotators' votes).")
]
TensorBoardFolder = Annotated[
    Path | None, typer.Option("--tensorboard", help="Folder for TensorBoard's logs; each run has a subfolder.")
]
Devices = Annotated[
    int, typer.Option("--devices", min=1, help="Devices that share each batch; needs KERAS_BACKEND=jax.")
]
ReportsRoot = Annotated[Path, typer.Option("--reports", help="Folder of the evaluation reports.")]


def run(command: Callable[..., Any]) -> None:
    """Run a function as a command line: its parameters are the options, its docstring is the help.

    An error of the user (`InputError`, an option that typer refuses, a full disk) prints one line and exits with
    status 2. An interruption exits with 130. Any other exception is a defect and keeps its traceback.
    """
    if signal.getsignal(signal.SIGINT) is end_at_once:  # from here on, Ctrl-C lets a command clean up
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):  # it may lack characters of file names, as in a pipe on Windows
        sys.stdout.reconfigure(errors="backslashreplace")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(context_settings={"help_option_names": ["-h", "--help"]})(command)
    try:
        if app(standalone_mode=False) == 130:  # typer's return value after Ctrl-C
            raise KeyboardInterrupt
        sys.stdout.flush()  # an error at the exit of Python would not become one line
    except (typer.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        _drop_output()
        sys.exit(1)
    except Exception as error:
        message = _message(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def _message(error: Exception) -> str | None:
    """Return the one line that tells the user what to fix; None if the error is a defect of the program."""
    if isinstance(error, InputError):
        return " ".join(str(error).split())
    if message := missing_package(error):
        return message
    if isinstance(error, FileNotFoundError) and error.filename is None:
        return None  # raised by code, not by the system
    if isinstance(error, OSError) and error.errno in _USER_ERRORS:
        if error.filename is None:
            _drop_output()
        place = error.filename or "standard output or a file"
        place = f"{place} -> {error.filename2}" if error.filename2 else place
        remedy = f": {_REMEDIES[error.errno]} and run the same command again" if error.errno in _REMEDIES else ""
        return f"{place}: {error.strerror}; what was written before is kept{remedy}"
    if format_message := getattr(error, "format_message", None):  # an option that typer refuses
        # The refused word may be the address of a camera, typed without `--source`.
        return " ".join(map(redacted, format_message().split())) + " (see --help)"
    return None


def _drop_output() -> None:
    """Discard what cannot be printed, so that Python prints nothing about it when it exits."""
    with suppress(OSError):
        sys.stdout.flush()
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def dataset_folder(data: Path, dataset: str) -> Path:
    """Return the folder of a data set.

    Raises:
        InputError: The name is not a plain folder name.
    """
    if not dataset or dataset != Path(dataset).name or dataset.startswith("."):
        raise InputError(f"--dataset {dataset!r} is not a plain name, such as fer2013 or ckplus")
    return data / dataset


def typed_command() -> str:
    """Return the command that started this program, without the folder of an installed command."""
    main_spec = sys.modules["__main__"].__spec__
    if main_spec:
        program = ["python", "-m", main_spec.name]
    else:
        program = ["python", sys.argv[0]] if sys.argv[0].endswith(".py") else [Path(sys.argv[0]).name]
    return printable(shlex.join([*program, *sys.argv[1:]]))


def step_command(step: str, folder: Path, *options: object) -> str:
    """Return the command that runs a step on a data set, for a message.

    Args:
        step: Module of the step, such as `training.step3_best_model`.
        folder: Folder of the data set. `--data` is added if it is not in the configured folder.
        *options: Further options.
    """
    data = [] if folder.parent == PATHS.data else ["--data", folder.parent]
    return shlex.join(map(str, ["python", "-m", step, "--dataset", folder.name, *data, *options]))


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 epoch`, `1,200 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shortened(names: Sequence[str]) -> str:
    """Return the first five names as text, with `...` where there are more."""
    return ", ".join(names[:5]) + ", ..." * (len(names) > 5)


def progress_bar() -> Progress:
    """Return a progress bar on standard error. It prints nothing if standard error is not a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
