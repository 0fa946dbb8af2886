import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import filelock
import numpy as np
import pytest
from conftest import ROOT

from common import processes
from common.errors import InputError
from common.processes import available_cores, exclusive_lock
from preprocessing.tables import read_table

STEPS = ["preprocessing.step1_inventory", "preprocessing.step2_face_crops", "preprocessing.step3_split"]
HOLD = """
import sys, time
from pathlib import Path
from common.processes import exclusive_lock
with exclusive_lock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def write_pictures(folder: Path, count: int = 60) -> Path:
    """Write gray pictures in folders named by emotion, of which no two are equal."""
    random = np.random.default_rng(0)
    for number in range(count):
        file = folder / ["angry", "happy", "sad"][number % 3] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(cv2.imencode(".png", random.integers(0, 256, (48, 48)).astype(np.uint8))[1].tobytes())
    return folder


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize("step", STEPS)
def test_a_step_on_a_locked_data_set_ends_at_once_and_names_the_holder(tmp_path, run_step, step):
    folder = tmp_path / "data" / "x"
    source = ["--source", write_pictures(tmp_path / "pictures", 3)] if "step1" in step else []
    with exclusive_lock(folder):
        run = run_step(step, "--dataset", "x", "--data", tmp_path / "data", *source)
        assert names_in(folder) == [".lock"]
    assert run.returncode == 2 and run.stderr.count("\n") == 1
    assert run.stderr.startswith(f"error: {folder} is in use by process {os.getpid()} on ")
    assert " since 2" in run.stderr and "wait until it ends, then run this command again" in run.stderr
    assert not (tmp_path / "data").exists()


def test_two_inventories_at_once_never_lose_a_picture(tmp_path):
    command = [sys.executable, "-m", STEPS[0], "--dataset", "x", "--data", tmp_path / "data"]
    command += ["--source", write_pictures(tmp_path / "pictures")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    ended = [(run.communicate(), run.returncode) for run in [subprocess.Popen(command, **pipes) for _ in range(2)]]
    for (_, errors), status in ended:
        assert status == 0 or (status == 2 and "is in use by process" in errors and errors.count("\n") == 1), errors
    assert sum("wrote" in output for (output, _), _ in ended) == 1
    folder = tmp_path / "data" / "x"
    table = read_table(folder, "inventory.csv")
    assert len(table) == 60 and all((folder / path).is_file() for path in table["path"])
    assert names_in(tmp_path / "data") == ["x"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="SIGKILL is POSIX's")
def test_a_stopped_holder_keeps_the_lock_and_a_killed_one_loses_it(tmp_path):
    command = [sys.executable, "-c", HOLD, tmp_path / "x"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        holder.send_signal(signal.SIGSTOP)
        with pytest.raises(InputError, match=f"in use by process {holder.pid} on "), exclusive_lock(tmp_path / "x"):
            pass
        holder.kill()
    with exclusive_lock(tmp_path / "x"):
        pass
    assert not list((tmp_path / "x").iterdir())


@pytest.mark.parametrize("other", ["link/x", "data/../data/x", "data/y"])
def test_all_paths_to_a_data_set_share_one_lock(tmp_path, monkeypatch, other):
    (tmp_path / "data" / "x").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "y").symlink_to(tmp_path / "data" / "x")
    monkeypatch.chdir(tmp_path)
    with exclusive_lock(Path("data/x")), pytest.raises(InputError, match="is in use"), exclusive_lock(tmp_path / other):
        pass


def test_the_end_of_one_process_never_removes_the_lock_file_of_another(tmp_path):
    first, second = exclusive_lock(tmp_path), exclusive_lock(tmp_path)
    first.__enter__()
    (tmp_path / ".lock").unlink()  # by somebody who takes it for a leftover
    second.__enter__()
    first.__exit__(None, None, None)
    with pytest.raises(InputError, match="is in use"), exclusive_lock(tmp_path):
        pass
    second.__exit__(None, None, None)


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="this system opens links")
def test_a_link_in_the_place_of_the_lock_file_leads_to_no_overwritten_file(tmp_path, run_step):
    (tmp_path / "x").mkdir()
    (tmp_path / "file").write_text("content")
    (tmp_path / "x" / ".lock").symlink_to(tmp_path / "file")
    run = run_step(STEPS[2], "--dataset", "x", "--data", tmp_path)
    assert run.returncode == 2 and run.stderr.startswith(f"error: {tmp_path / 'x' / '.lock'}: ")
    assert run.stderr.count("\n") == 1 and (tmp_path / "file").read_text() == "content"


def test_a_folder_that_cannot_be_written_needs_no_lock(tmp_path, monkeypatch):
    def refuse(file, flags, *mode):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), file)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with exclusive_lock(tmp_path):
        pass


def test_a_file_system_without_locks_is_locked_for_this_machine(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(processes.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    lock_descriptor = filelock.lock_descriptor

    def lock(descriptor: int, **options) -> bool:
        lock_file = tmp_path / "x" / ".lock"
        if lock_file.exists() and os.path.samestat(os.fstat(descriptor), lock_file.stat()):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        return lock_descriptor(descriptor, **options)

    monkeypatch.setattr(filelock, "lock_descriptor", lock)
    for _ in range(2):
        with exclusive_lock(tmp_path / "x"):
            assert len(names_in(tmp_path / "temporary")) == 1
            with pytest.raises(InputError, match=f"in use by process {os.getpid()}"), exclusive_lock(tmp_path / "x"):
                pass
    assert names_in(tmp_path) == ["temporary", "x"] and not names_in(tmp_path / "temporary") + names_in(tmp_path / "x")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux limits a process's cores so")
def test_the_cores_of_a_process_are_those_that_it_may_use():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from common.processes import available_cores\nprint(available_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n" and available_cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("package", ["preprocessing", "training", "evaluation", "realtime", "benchmarks"])
def test_ctrl_c_during_the_imports_of_a_command_ends_it_in_one_line(tmp_path, package):
    commands = {
        "preprocessing": "step1_inventory",
        "training": "step1_baseline",
        "evaluation": "sequences",
        "realtime": "webcam",
        "benchmarks": "endurance",
    }
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
    )
    command = [sys.executable, "-m", f"{package}.{commands[package]}", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_importing_a_package_leaves_ctrl_c_as_it_is():
    code = "import signal, realtime; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
