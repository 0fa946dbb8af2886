import signal
import subprocess
import sys
import time

from conftest import ROOT
from training.workers import Worker, is_at_work

HOLD = """
import sys, time
from pathlib import Path
from training.workers import Worker
with Worker(Path(sys.argv[1])) as worker:
    print(worker.name, flush=True)
    time.sleep(60)
"""


def test_a_worker_is_seen_while_it_lives_and_leaves_nothing(tmp_path):
    with Worker(tmp_path) as worker, Worker(tmp_path) as other:
        assert worker.name != other.name and is_at_work(tmp_path, worker.name) and is_at_work(tmp_path, worker.name)
    assert not is_at_work(tmp_path, worker.name) and not list(tmp_path.iterdir())


def test_a_stopped_process_lives_and_a_killed_one_does_not(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.1)
        assert is_at_work(tmp_path, name)
        process.kill()
    assert not is_at_work(tmp_path, name) and not list(tmp_path.iterdir())
