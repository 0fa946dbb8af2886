import errno
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from common.command_line import dataset_folder, run
from common.errors import InputError


def ends(monkeypatch, capsys, error: BaseException) -> tuple[int, str]:
    """Run a step that fails with an error, and return its exit status and what it printed on standard error."""

    def step() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["step"])
    with pytest.raises(SystemExit) as end:
        run(step)
    return int(end.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("a file\n  is missing"), 2, "error: a file is missing\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out.csv"),
            2,
            "error: out.csv: No space left on device; what was written before is kept: free some space and run",
        ),
        (
            OSError(errno.EFBIG, "File too large", "out.csv"),
            2,
            "error: out.csv: File too large; what was written before is kept: raise the limit on the size of files "
            "(ulimit -f) and run the same command again",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "data"), 2, "error: data: Permission denied;"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "data/x"), 2, "error: data/x: Not a directory;"),
        (FileExistsError(errno.EEXIST, "File exists", "data/x"), 2, "error: data/x: File exists;"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "data"), 2, "error: data: File name too long;"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_what_is_the_users_ends_in_one_line(monkeypatch, capsys, error, status, line):
    code, printed = ends(monkeypatch, capsys, error)
    assert code == status and printed.startswith(line) and printed.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("a bug"), FileNotFoundError(errno.ENOENT, "a bug"), KeyError("a bug")])
def test_a_defect_keeps_its_traceback(monkeypatch, error):
    def step() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["step"])
    with pytest.raises(type(error)):
        run(step)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", ".hidden"])
def test_a_data_set_is_named_by_a_plain_name(tmp_path, name):
    with pytest.raises(InputError, match="not a plain name"):
        dataset_folder(tmp_path, name)


def test_the_command_of_a_card_can_be_typed_again(tmp_path):
    code = "from common.command_line import typed_command\nprint(typed_command())"
    (tmp_path / "step.py").write_text(code)
    for started in (["-c", code], ["-m", "step"]):
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
        command = [sys.executable, *started, "a b", "--dataset", "x"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == f"python {' '.join(started) if started[0] == '-m' else '-c'} 'a b' --dataset x"
