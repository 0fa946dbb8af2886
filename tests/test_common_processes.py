import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import pytest
from conftest import ROOT
from raw_data import names_in, write_images

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


@pytest.mark.parametrize("step", STEPS)
def test_step_on_a_locked_data_set_ends_at_once_and_names_the_holder(tmp_path, run_step, step):
    folder = tmp_path / "data" / "x"
    source = ["--source", write_images(tmp_path / "images", "angry/1.png")] if "step1" in step else []
    with exclusive_lock(folder):
        run = run_step(step, "--dataset", "x", "--data", tmp_path / "data", *source)
        assert names_in(folder) == [".lock"]
    assert run.returncode == 2 and run.stderr.count("\n") == 1
    assert run.stderr.startswith(f"error: {folder} is in use by process {os.getpid()} on ")
    assert " since 2" in run.stderr and "wait until it ends, then run this command again" in run.stderr
    assert not (tmp_path / "data").exists()


def test_two_inventories_at_once_lose_no_image(tmp_path):
    command = [sys.executable, "-m", STEPS[0], "--dataset", "x", "--data", tmp_path / "data"]
    command += ["--source", write_images(tmp_path / "images", *(f"happy/{number}.png" for number in range(60)))]
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
def test_stopped_holder_keeps_the_lock_and_a_killed_one_loses_it(tmp_path):
    command = [sys.executable, "-c", HOLD, tmp_path / "x"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        holder.send_signal(signal.SIGSTOP)
        with pytest.raises(InputError, match=f"in use by process {holder.pid} on "), exclusive_lock(tmp_path / "x"):
            pass
        holder.kill()
    with exclusive_lock(tmp_path / "x"):
        pass
    assert names_in(tmp_path) == []


def test_all_paths_to_a_folder_share_one_lock(tmp_path, monkeypatch):
    (tmp_path / "data" / "x").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "y").symlink_to(tmp_path / "data" / "x")
    monkeypatch.chdir(tmp_path)
    for other in ("link/x", "data/../data/x", "data/y"):
        with exclusive_lock(Path("data/x")), pytest.raises(InputError, match="is in use"):
            exclusive_lock(tmp_path / other).__enter__()


def fail_acquire(monkeypatch, error: int, folder: Path) -> None:
    """Let locks in a folder fail with an error of the system."""
    acquire = filelock.FileLock.acquire

    def fail(lock, *arguments, **options):
        if Path(lock.lock_file).parent == folder:
            raise OSError(error, os.strerror(error), lock.lock_file)
        return acquire(lock, *arguments, **options)

    monkeypatch.setattr(filelock.FileLock, "acquire", fail)


def test_read_only_folder_needs_no_lock(tmp_path, monkeypatch):
    fail_acquire(monkeypatch, errno.EROFS, tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with exclusive_lock(tmp_path):
        pass


def test_file_system_without_locks_is_locked_for_this_machine(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(processes.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    fail_acquire(monkeypatch, errno.ENOSYS, tmp_path / "x")
    for _ in range(2):
        with exclusive_lock(tmp_path / "x"):
            assert len(names_in(tmp_path / "temporary")) == 1
            with pytest.raises(InputError, match=f"in use by process {os.getpid()}"), exclusive_lock(tmp_path / "x"):
                pass
    assert names_in(tmp_path) == ["temporary"] and not names_in(tmp_path / "temporary")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux limits the cores of a process")
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such file names")
def test_command_with_a_path_that_is_not_utf8_locks_its_folder(tmp_path, run_step):
    source = tmp_path / os.fsdecode(b"sch\xf6n")
    write_images(source, "happy/1.png")
    done = run_step("preprocessing.step1_inventory", "--dataset", "x", "--data", tmp_path, "--source", source)
    assert done.returncode == 0 and not done.stderr
    assert names_in(tmp_path / "x") == ["images", "inventory.csv", "inventory.json"]


def test_available_cores_are_those_that_the_process_may_use():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from common.processes import available_cores\nprint(available_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n" and available_cores() == len(os.sched_getaffinity(0))
