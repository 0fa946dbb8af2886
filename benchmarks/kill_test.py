"""Kill a step with SIGKILL at random moments, run it again, and compare all its files with an undisturbed run.

    python -m benchmarks.kill_test --step step1_inventory --rounds 50

Each round kills the step's processes once or twice and then lets it end. Afterwards no file may be missing or left
over, and all bytes must be equal, except where `benchmarks.kill_steps` says otherwise. After each kill, no table may be
half-written. Half of the moments are uniform over the changes of files, half over the time. Ends with status 1 where
anything differs.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import Annotated

import numpy as np
import typer

from benchmarks.kill_steps import STEPS, Files, Step
from common.command_line import progress_bar, run, shortened
from common.errors import InputError
from configuration import ROOT

TABLES = (".csv", ".json")  # are replaced as a whole, so a kill never leaves a part of one
MAX_KILLS = 2  # of a round
DEADLINE = 900  # seconds for one run


@dataclass
class KillResult:
    """Result of the rounds of a step.

    Attributes:
        kills: Number of runs that were killed before they ended.
        late: Number of runs that ended before the kill.
        problems: What was wrong, by round.
        seconds: Duration of the undisturbed run.
    """

    seconds: float
    kills: int = 0
    late: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """A run of a command: exit status, and times of the changes of files and of the end, in seconds from the start."""

    status: int
    changes: list[float]
    end: float


def kill_rounds(step: Step, rounds: int, folder: Path, seed: int = 0) -> KillResult:
    """Kill a step in each round, run it again, and compare.

    Args:
        step: The step.
        rounds: Number of rounds.
        folder: Empty folder to work in.
        seed: Random seed of the moments.

    Raises:
        InputError: The step, or a command before it, fails without a kill.
    """
    work, prepared = folder / "work", folder / "prepared"
    work.mkdir()
    for command in step.before:
        if callable(command):
            command(work)
        else:
            _run_to_the_end(command, work)
    shutil.copytree(work, prepared)
    before = read_files(work)
    undisturbed = _run_to_the_end(step.command, work, step)
    expected = read_files(work)
    if not undisturbed.changes:
        raise InputError(f"python {step.command} changed no file, so no moment can be chosen")
    random, result = np.random.default_rng(seed), KillResult(undisturbed.end)
    with progress_bar() as progress:
        for number in progress.track(range(1, rounds + 1), description="rounds"):
            shutil.rmtree(work)
            shutil.copytree(prepared, work)
            problems, seen = [], {}
            for _ in range(random.integers(1, MAX_KILLS + 1)):
                killed = _run(step.command, work, step, seen, _moment(undisturbed, number % 2 == 0, random))
                is_late = killed.status != -signal.SIGKILL
                result.late, result.kills = result.late + is_late, result.kills + (not is_late)
                files = read_files(work)
                problems += _half_written(files, before, expected, step) + step.check_killed(files, expected)
            if (last := _run(step.command, work, step, seen)).status:
                problems.append(f"status {last.status} when run again: {_output(work)}")
            else:
                problems += differences(read_files(work), expected, step)
            result.problems += [f"round {number}: {problem}" for problem in (*problems, *seen.pop("problems", ()))]
    return result


def _moment(undisturbed: Run, by_time: bool, random: np.random.Generator) -> tuple[int, float]:
    """Return when to kill: after this number of changes of files, and so many seconds."""
    gaps = np.diff([*undisturbed.changes, undisturbed.end])
    change = random.choice(len(gaps), p=gaps / gaps.sum() if by_time else None)
    return int(change) + 1, float(random.uniform(0, gaps[change]))


def _run_to_the_end(command: str, work: Path, step: Step | None = None) -> Run:
    if (done := _run(command, work, step)).status:
        raise InputError(f"python {command} ended with status {done.status} without a kill: {_output(work)}")
    return done


def _run(
    command: str, work: Path, step: Step | None, seen: dict | None = None, kill: tuple[int, float] | None = None
) -> Run:
    """Run a command; `seen` is what the step's user remembers from run to run."""
    words = [word.replace("{work}", str(work)) for word in shlex.split(command)]
    output = _output_file(work)
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, stdout=stream, stderr=stream, start_new_session=True
        )
    start, changes, state = time.monotonic(), [], _state(work)
    if step and step.user:
        Thread(target=step.user, args=(process, output, {} if seen is None else seen), daemon=True).start()
    try:
        while process.poll() is None and time.monotonic() < start + DEADLINE:
            poll = time.monotonic()
            if (now := _state(work)) != state:
                changes.append(poll - start)
                state = now
            if kill and len(changes) >= kill[0]:
                time.sleep(kill[1])
                break
            time.sleep(0.001 + time.monotonic() - poll)  # leaves the cores to the step
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return Run(process.wait(), changes, time.monotonic() - start)


def _output_file(work: Path) -> Path:
    return work.with_name("output.txt")


def _output(work: Path) -> str:
    """Return the last line that a command printed."""
    return (_output_file(work).read_text(errors="replace").strip().splitlines() or ["no output"])[-1]


def _state(folder: Path) -> dict[tuple[str, str], tuple[int, int]]:
    """Return size and time of all files, as far as they stay."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                status = Path(place, name).lstat()
                found[place, name] = status.st_size, status.st_mtime_ns
    return found


def read_files(folder: Path) -> Files:
    """Return the content of all files below a folder, and the folders."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    return {name + "/" * path.is_dir(): b"" if path.is_dir() else path.read_bytes() for name, path in paths.items()}


def differences(files: Files, expected: Files, step: Step) -> list[str]:
    """Return which files are missing, left over or different, with the comparisons of the step."""
    problems = [
        f"{reason}: {shortened(sorted(names))}"
        for reason, names in (
            ("missing", expected.keys() - files.keys()),
            ("left over", files.keys() - expected.keys()),
        )
        if names
    ]
    for name in expected.keys() & files.keys():
        compare = next(
            (compare for pattern, compare in step.compare.items() if PurePosixPath(name).match(pattern)), None
        )
        if compare and (problem := compare(files[name], expected[name])):
            problems.append(f"{name}: {problem}")
        elif not compare and files[name] != expected[name]:
            problems.append(f"{name} differs")
    return problems


def _half_written(files: Files, before: Files, expected: Files, step: Step) -> list[str]:
    """Return which tables are neither as before the step nor as after it."""
    names = [name for name in expected.keys() & files.keys() if name.endswith(TABLES)]
    names = [
        name for name in names if not any(PurePosixPath(name).match(each) for each in (*step.compare, *step.grows))
    ]
    return [f"{name} is half-written" for name in names if files[name] not in (before.get(name), expected[name])]


def main(
    step: Annotated[list[str] | None, typer.Option(help=f"Step to kill: {', '.join(STEPS)}; repeatable.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Number of rounds of each step.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the moments.")] = 0,
) -> None:
    """Kill steps at random moments, run them again, and compare their files."""
    if unknown := [name for name in step or [] if name not in STEPS]:
        raise InputError(f"--step {unknown[0]} is not one of {', '.join(STEPS)}")
    failed = False
    for name in step or STEPS:
        with tempfile.TemporaryDirectory() as folder:
            result = kill_rounds(STEPS[name], rounds, Path(folder), seed)
        print(
            f"{name}: {rounds} rounds, {result.kills} kills ({result.late} came after the end), "
            f"{len(result.problems)} problems; undisturbed {result.seconds:.1f} s",
            *result.problems,
            sep="\n  ",
            flush=True,
        )
        failed |= bool(result.problems)
    sys.exit(failed)


if __name__ == "__main__":
    run(main)
