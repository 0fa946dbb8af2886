import errno
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from common.command_line import dataset_folder, run
from common.errors import InputError


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("a file\n  is missing"), 2, "error: a file is missing\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out.csv"),
            2,
            "error: out.csv: No space left on device; what was written before is kept: free some space and run",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "data"), 2, "error: data: Permission denied;"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.png"), 2, "error: a.png: No such file; what was written"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_user_errors_end_in_one_line_and_defects_keep_their_traceback(monkeypatch, capsys, error, status, line):
    def step() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["step"])
    with pytest.raises(SystemExit) as end:
        run(step)
    printed = capsys.readouterr().err
    assert end.value.code == status and printed.startswith(line) and printed.count("\n") == 1
    for error in (ValueError("a bug"), FileNotFoundError(errno.ENOENT, "a bug")):
        with pytest.raises(type(error)):
            run(step)


def test_name_that_the_output_cannot_show_is_printed_with_escapes(tmp_path):
    (tmp_path / "step.py").write_text(
        "from common.command_line import run\ndef main() -> None:\n    print('wrote \u65e5.csv')\nrun(main)\n", "utf-8"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, "-m", "step"], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "wrote \\u65e5.csv\n"


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden"])
def test_dataset_name_is_a_plain_folder_name(tmp_path, name):
    with pytest.raises(InputError, match="not a plain name"):
        dataset_folder(tmp_path, name)


def test_typed_command_can_be_typed_again(tmp_path):
    (tmp_path / "step.py").write_text("from common.command_line import typed_command\nprint(typed_command())")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    command = [sys.executable, "-m", "step", "a b", "--dataset", "x"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "python -m step 'a b' --dataset x"


def test_ctrl_c_during_the_imports_of_a_command_prints_one_line(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for module in ("preprocessing.step1_inventory", "training.step1_baseline", "realtime.webcam"):
        command = [sys.executable, "-m", module, "--help"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n"), module
    code = "import signal, realtime; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"  # as a library, the packages change no handler
