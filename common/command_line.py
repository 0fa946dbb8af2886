"""What every step's command line shares: the common options, and the one handler of a user's mistakes."""

import errno
import os
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from common import end_at_once
from common.errors import InputError
from common.urls import redacted
from configuration import PATHS

# A full or read-only disk, a file one may not touch, a name that is too long, a file where a folder is needed or the
# other way round, a link that leads nowhere: nothing that a traceback would explain.
NO_ROOM = {  # why a disk takes no more, with the remedy
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or raise the quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
}
_THE_MACHINES = (
    *(*NO_ROOM, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
)

DatasetName = Annotated[str, typer.Option("--dataset", help="Name of the data set: its folder under --data.")]
DataRoot = Annotated[Path, typer.Option("--data", help="Folder that holds the data sets.")]
ModelsRoot = Annotated[Path, typer.Option("--models", help="Folder that holds the trained networks.")]
Force = Annotated[bool, typer.Option("--force", help="Train from the first epoch, even where the run is finished.")]
ReportsRoot = Annotated[Path, typer.Option("--reports", help="Folder that holds the evaluation reports.")]


def run(command: Callable[..., Any]) -> None:
    """Run a step's function as a command line; its parameters are the options, its docstring the help.

    A user's mistake (`InputError`, or an option that typer refuses) or a disk that takes no more prints one line and
    ends with exit status 2; an interruption ends with 130. Anything else is a defect and keeps its traceback.
    """
    if signal.getsignal(signal.SIGINT) is end_at_once:  # from here on, Ctrl-C lets a command clean up
        signal.signal(signal.SIGINT, signal.default_int_handler)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(context_settings={"help_option_names": ["-h", "--help"]})(command)
    try:
        if app(standalone_mode=False) == 130:  # typer gives Ctrl-C back as this value
            raise KeyboardInterrupt
        sys.stdout.flush()  # here an error becomes one line, at the exit of Python it does not
    except InputError as error:
        _fail(" ".join(str(error).split()))
    except (typer.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        _drop_output()
        sys.exit(1)
    except OSError as error:
        if error.errno not in _THE_MACHINES:
            raise
        if error.filename is None:
            _drop_output()
        place = error.filename or "standard output or a file"
        place = f"{place} -> {error.filename2}" if error.filename2 else place
        remedy = f": {NO_ROOM[error.errno]} and run the same command again" if error.errno in NO_ROOM else ""
        _fail(f"{place}: {error.strerror}; what was written before is kept{remedy}")
    except Exception as error:
        format_message = getattr(error, "format_message", None)  # typer's own refusals of an option have it
        if format_message is None:
            raise
        # The refused word may be the address of a camera, typed without `--source`.
        _fail(" ".join(map(redacted, format_message().split())) + " (see --help)")


def _drop_output() -> None:
    """Discard what cannot be printed, so that Python stays silent about it at its exit."""
    with suppress(OSError):
        sys.stdout.flush()
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def dataset_folder(data: Path, dataset: str) -> Path:
    """Return a data set's folder.

    Raises:
        InputError: the name is not a plain folder name.
    """
    if not dataset or dataset != Path(dataset).name or dataset.startswith("."):
        raise InputError(f"--dataset {dataset!r} is not a plain name, such as fer2013 or ckplus")
    return data / dataset


def typed_command() -> str:
    """Return the command that started this program, as one types it from the repository's root."""
    main_spec = sys.modules["__main__"].__spec__
    program = f"-m {main_spec.name}" if main_spec else sys.argv[0]
    return shlex.join(["python", *program.split(), *sys.argv[1:]])


def step_command(step: str, folder: Path, *options: object) -> str:
    """Return the command of a step on a data set, as one types it from the repository's root, for a message.

    Args:
        step: Such as `training.step3_best_model`.
        folder: The data set's folder; its place is named where it is not the configured one.
        *options: What else is typed.
    """
    data = [] if folder.parent == PATHS.data else ["--data", folder.parent]
    return shlex.join(map(str, ["python", "-m", step, "--dataset", folder.name, *data, *options]))


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 epoch`, `1,200 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def progress_bar() -> Progress:
    """Return a progress bar on standard error; silent where that is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
