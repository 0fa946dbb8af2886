import csv
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, files_of_at_most

from benchmarks.common import write_portrait_video
from benchmarks.scaling import write_pictures
from common.engine import Engine
from common.errors import InputError
from common.processes import exclusive_lock
from preprocessing.datasets.archives import list_files
from preprocessing.datasets.sample import PORTRAIT
from realtime.batching import bulk
from realtime.batching.bulk import BatchOptions, run_batch

BATCH = "realtime.batch"


@dataclass(frozen=True)
class InProcess(Engine):
    """Works in this process, notes the files, and may be interrupted after some of them."""

    stop_after: int = 1000
    seen: list[str] = field(default_factory=list)

    def map(self, function, items, chunk, crashed=None, in_order=True):
        for item in items:
            if len(self.seen) == self.stop_after:
                raise KeyboardInterrupt
            self.seen.append(item[0])
            yield function(item)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_portrait_video(tmp_path_factory.mktemp("clips") / "talk.avi", 12)


@pytest.fixture
def media(tmp_path, clip) -> Path:
    """Five pictures (one in an archive, one broken), two videos (one broken), a broken archive and a text."""
    folder = tmp_path / "media"
    (folder / "b").mkdir(parents=True)
    portrait_bgr = cv2.imread(str(PORTRAIT))
    assert portrait_bgr is not None
    cv2.imwrite(str(folder / "=a.jpg"), portrait_bgr)
    cv2.imwrite(str(folder / "b" / "two.png"), np.hstack([portrait_bgr, portrait_bgr]))
    cv2.imwrite(str(folder / "empty.png"), np.zeros((200, 200, 3), np.uint8))
    (folder / "broken.png").write_text("no picture")
    (folder / "notes.txt").write_text("neither")
    shutil.copy(clip, folder / "b")
    (folder / "broken.mp4").write_text("no video")
    (folder / "broken.zip").write_text("no archive")
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        archive.write(folder / "=a.jpg", "in/c.jpg")
    return folder


def tables(output: Path) -> dict[str, bytes]:
    """Return all tables; the manifest also tells of what was tried twice."""
    files = (file for file in output.rglob("*") if file.is_file() and file.name != "manifest.jsonl")
    return {file.relative_to(output).as_posix(): file.read_bytes() for file in files}


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_command_writes_the_webcams_log_of_each_video_and_one_table_of_pictures(media, tmp_path, run_step):
    output = tmp_path / "out"
    done = run_step(BATCH, media, "--output", output)
    assert done.returncode == 1 and not done.stderr
    assert done.stdout.splitlines()[-1] == f"8 files: 5 done, 3 failed ({output / 'failed.csv'})"
    names = [row["name"] for row in rows_of(output / "pictures.csv")]
    assert names == ["'=a.jpg", "b/two.png", "b/two.png", "more.zip/in/c.jpg"]
    assert {row["track_id"] for row in rows_of(output / "pictures.csv")} == {""}
    failed = {row["name"]: row["error"] for row in rows_of(output / "failed.csv")}
    assert sorted(failed) == ["broken.mp4", "broken.png", "broken.zip"]
    assert "no video" in failed["broken.mp4"] and "damaged" in failed["broken.zip"]
    log = tmp_path / "log.csv"
    webcam = run_step("realtime.webcam", "--source", media / "b" / "talk.avi", "--no-window", "--log", log)
    assert webcam.returncode == 0 and len(rows_of(log)) == 12
    assert (output / "videos" / "b" / "talk.avi.csv").read_bytes() == log.read_bytes()
    assert {file.name for file in output.iterdir() if file.name.startswith(".")} == set()


def test_interrupted_run_continues_and_its_tables_equal_those_of_an_undisturbed_run(media, tmp_path, capsys):
    run_batch([media], tmp_path / "whole", engine=InProcess())
    output, first, second = tmp_path / "out", InProcess(stop_after=3), InProcess()
    with pytest.raises(KeyboardInterrupt):
        run_batch([media], output, engine=first)
    with (output / "manifest.jsonl").open("a") as manifest:
        manifest.write('{"name": "b/tw')  # a line that a loss of power cut
    assert run_batch([media], output, engine=second) == (8, 3)
    assert "continuing after 2 of 7 files" in capsys.readouterr().out  # of three, one failed
    assert sorted(first.seen + second.seen) == sorted(
        [
            "=a.jpg",
            "b/talk.avi",
            "b/two.png",
            "broken.mp4",
            "broken.png",
            "broken.png",
            "empty.png",
            "more.zip/in/c.jpg",
        ]
    )
    assert tables(output) == tables(tmp_path / "whole")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM")
def test_run_that_is_stopped_in_a_long_video_ends_at_once_without_temporary_files(tmp_path):
    video = write_portrait_video(tmp_path / "long.avi", 400)
    output = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-m", BATCH, video, "--output", output], cwd=ROOT)
    while not (output / "videos" / ".long.avi.part.csv").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM
    assert [file.name for file in output.rglob("*") if file.is_file()] == ["manifest.jsonl"]  # not the video's table


def test_run_again_reads_only_new_changed_and_failed_files(media, tmp_path):
    output = tmp_path / "out"
    for name in ("broken.mp4", "broken.zip", "more.zip"):
        (media / name).unlink()
    run_batch([media], output, engine=InProcess())
    shutil.copy(media / "=a.jpg", media / "new.jpg")
    shutil.copy(media / "=a.jpg", media / "broken.png")
    shutil.copy(media / "b" / "two.png", media / "empty.png")
    (output / "videos" / "b" / "talk.avi.csv").unlink()
    again = InProcess()
    assert run_batch([media], output, engine=again) == (6, 0)
    assert again.seen == ["broken.png", "empty.png", "new.jpg", "b/talk.avi"]
    run_batch([media], tmp_path / "whole", engine=InProcess())
    assert tables(output) == tables(tmp_path / "whole")


def test_pictures_that_changed_but_kept_their_size_are_read_again(tmp_path):
    def draw(image_bgr):
        cv2.imwrite(str(media / "a.bmp"), image_bgr)
        with zipfile.ZipFile(media / "b.zip", "w") as archive:
            archive.write(media / "a.bmp", "in.bmp")

    media = tmp_path / "media"
    media.mkdir()
    portrait_bgr = cv2.imread(str(PORTRAIT))
    assert portrait_bgr is not None
    draw(np.zeros_like(portrait_bgr))
    run_batch([media], tmp_path / "out", engine=InProcess())
    assert not rows_of(tmp_path / "out" / "pictures.csv")
    draw(portrait_bgr)
    run_batch([media], tmp_path / "out", engine=InProcess())
    assert [row["name"] for row in rows_of(tmp_path / "out" / "pictures.csv")] == ["a.bmp", "b.zip/in.bmp"]
    again = InProcess()
    run_batch([media], tmp_path / "out", engine=again)
    assert not again.seen


def test_parquet_has_the_rows_of_the_table(media, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    run_batch([media], tmp_path / "out", engine=InProcess())
    table = parquet.read_table(tmp_path / "out" / "pictures.parquet").to_pylist()
    rows = rows_of(tmp_path / "out" / "pictures.csv")
    assert [row["name"] for row in table] == [row["name"].removeprefix("'") for row in rows]
    assert [row["p_happiness"] for row in table] == [float(row["p_happiness"]) for row in rows]
    assert {row["track_id"] for row in table} == {None}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such file names")
def test_output_folder_may_have_a_name_that_is_not_utf8(tmp_path, run_step):
    output = tmp_path / os.fsdecode(b"sch\xf6n")
    done = run_step(BATCH, PORTRAIT, "--output", output)
    assert done.returncode == 0 and not done.stderr
    assert len(rows_of(output / "pictures.csv")) == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such file names")
def test_parquet_of_a_large_table_has_names_with_line_breaks(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")

    class Repeating(Engine):
        def map(self, function, items, chunk, crashed=None, in_order=True):
            yield from (replace(function(item), rows=function(item).rows * 9000) for item in items)

    picture = tmp_path / f"{'a' * 200}\nb.jpg"
    shutil.copy(PORTRAIT, picture)
    run_batch([picture], tmp_path / "out", engine=Repeating())
    assert (tmp_path / "out" / "pictures.csv").stat().st_size > 1 << 20  # bytes that pyarrow reads at once
    table = parquet.read_table(tmp_path / "out" / "pictures.parquet")
    assert table.num_rows == 9000 and set(table["name"].to_pylist()) == {picture.name}


def test_names_are_unique_over_sources(media, tmp_path, clip):
    engine = InProcess()
    run_batch([media / "b", media / "more.zip", clip.parent], tmp_path / "out", engine=engine)
    assert engine.seen == ["b/two.png", "more.zip/in/c.jpg", "b/talk.avi", f"{clip.parent.name}/talk.avi"]
    with pytest.raises(InputError, match=r"two sources contain talk\.avi"):
        run_batch([media / "b" / "talk.avi", clip], tmp_path / "other", engine=engine)


def test_errors_in_archives_name_the_file_and_not_the_place_where_it_was_unpacked(tmp_path):
    for number in range(5):
        with zipfile.ZipFile(tmp_path / f"{number}.zip", "w") as archive:
            archive.writestr("bad.png", "no picture")
            archive.writestr("bad.avi", "no video")
    run_batch([tmp_path], tmp_path / "out", engine=InProcess())
    failed = rows_of(tmp_path / "out" / "failed.csv")
    assert len(failed) == 10 and all(row["error"].startswith(f"{row['name']} ") for row in failed)


def test_archive_that_disappears_or_must_not_be_read_does_not_end_the_run(media, tmp_path, monkeypatch):
    def listed(source):
        return {**list_files(source), "gone.zip": source / "gone.zip"}

    monkeypatch.setattr(bulk, "list_files", listed)
    assert run_batch([media], tmp_path / "out", engine=InProcess()) == (9, 4)
    failed = {row["name"]: row["error"] for row in rows_of(tmp_path / "out" / "failed.csv")}
    assert failed["gone.zip"] == "gone.zip cannot be read (No such file or directory)"


def test_archive_inside_two_others_is_named_and_its_pictures_are_not_lost_silently(tmp_path):
    content = PORTRAIT.read_bytes()
    for name in ("c.jpg", "third.zip", "second.zip"):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr(name, content)
        content = packed.getvalue()
    (tmp_path / "first.zip").write_bytes(content)
    assert run_batch([tmp_path], tmp_path / "out", engine=InProcess()) == (1, 1)
    (failed,) = rows_of(tmp_path / "out" / "failed.csv")
    assert failed["name"] == "first.zip/third.zip" and "unpack it" in failed["error"]
    assert not (tmp_path / "out" / "videos").exists()


def test_video_whose_name_is_too_long_for_a_table_does_not_end_the_run(clip, tmp_path):
    media = tmp_path / "media"
    media.mkdir()
    for length in (246, 251):  # too long for the temporary table; for the table
        shutil.copy(clip, media / ("x" * length + ".avi"))
    shutil.copy(clip, media / "y.avi")
    assert run_batch([media], tmp_path / "out", engine=InProcess()) == (3, 2)
    assert all("too long" in row["error"] for row in rows_of(tmp_path / "out" / "failed.csv"))
    assert [file.name for file in (tmp_path / "out" / "videos").iterdir()] == ["y.avi.csv"]


def test_table_of_a_video_that_became_unreadable_is_removed(clip, tmp_path):
    video = shutil.copy(clip, tmp_path / "talk.avi")
    run_batch([video], tmp_path / "out", engine=InProcess())
    video.write_text("no video")
    assert run_batch([video], tmp_path / "out", engine=InProcess()) == (1, 1)
    assert not list((tmp_path / "out" / "videos").iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such file names")
def test_names_that_no_table_can_hold_and_pipes_are_refused_in_one_line(tmp_path, run_step):
    odd = shutil.copy(PORTRAIT, tmp_path / os.fsdecode(b"sch\xf6n.jpg"))
    os.mkfifo(tmp_path / "pipe.jpg")
    for source, message in ((odd, "is not plain UTF-8 text; rename the file"), (tmp_path / "pipe.jpg", "is no file")):
        done = run_step(BATCH, source, "--output", tmp_path / "out")
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
        assert "--source" not in done.stderr and not (tmp_path / "out").exists()


def test_tables_of_a_whole_drive_beside_another_source_stay_in_the_output_folder(clip, tmp_path, monkeypatch):
    drive = Path(tmp_path.anchor)
    monkeypatch.setattr(bulk, "list_files", lambda source: {"talk.avi": clip} if source == drive else {})
    run_batch([drive, tmp_path], tmp_path / "out", engine=InProcess())
    assert [file.name for file in (tmp_path / "out" / "videos").iterdir()] == ["talk.avi.csv"]


def test_refused_runs_name_the_remedy_and_change_nothing(media, tmp_path, run_step):
    output = tmp_path / "out"
    run_batch([media / "b"], output, engine=InProcess())
    before = tables(output)
    for options, message in (
        ([media], "was made with other settings (different: sources)"),
        ([media / "b", "--min-face-size", "60"], "was made with other settings (different: min_face_size)"),
        ([media / "nothing"], "does not exist; give folders, archives, pictures or videos"),
        ([media / "b", "--engine", "spark"], "accepted: local or ray"),
    ):
        done = run_step(BATCH, *options, "--output", output)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    with exclusive_lock(output):
        done = run_step(BATCH, media / "b", "--output", output)
    assert done.returncode == 2 and f"{output} is in use by process {os.getpid()}" in done.stderr
    (tmp_path / "texts").mkdir()
    done = run_step(BATCH, tmp_path / "texts", "--output", tmp_path / "new")
    assert done.returncode == 2 and "no picture or video; accepted: .png" in done.stderr
    assert not (tmp_path / "new").exists() and tables(output) == before


def test_full_disk_ends_the_run_and_is_no_fault_of_a_file(media, tmp_path):
    output = tmp_path / "out"
    with files_of_at_most(900), pytest.raises((InputError, OSError), match=r"File too large"):
        run_batch([media], output, engine=InProcess())
    assert run_batch([media], output, engine=InProcess()) == (8, 3)
    run_batch([media], tmp_path / "whole", engine=InProcess())
    assert tables(output) == tables(tmp_path / "whole")


@pytest.mark.system
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_killed_runs_lose_nothing_and_repeat_no_row(media, tmp_path):
    for number in range(30):
        os.link(media / "=a.jpg", media / f"{number}.jpg")
    run_batch([media], tmp_path / "whole", engine=InProcess())
    output = tmp_path / "out"
    command = [sys.executable, "-m", BATCH, str(media), "--output", str(output)]
    random, statuses = np.random.default_rng(3), []
    while not statuses or statuses[-1] != 1:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        if len(statuses) < 5:
            lines = 0 if not statuses else (output / "manifest.jsonl").read_bytes().count(b"\n")
            while process.poll() is None and not (
                (output / "manifest.jsonl").exists() and (output / "manifest.jsonl").read_bytes().count(b"\n") > lines
            ):
                time.sleep(0.01)
            time.sleep(random.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
        statuses.append(process.wait())
    assert statuses.count(-signal.SIGKILL) >= 2
    assert tables(output) == tables(tmp_path / "whole")


@pytest.mark.system
def test_ray_writes_the_tables_of_the_local_engine(media, tmp_path):
    pytest.importorskip("ray")
    options = replace(BatchOptions(), raw=True)
    for name in ("local", "ray"):
        assert run_batch([media], tmp_path / name, options, Engine(name)) == (8, 3)
    assert tables(tmp_path / "local") == tables(tmp_path / "ray")


def end_node(mark: str) -> None:
    """Kill all processes that were started with this mark in their environment."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"TEST_NODE={mark}\0".encode() in (process / "environ").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)


@pytest.mark.system
@pytest.mark.skipif(sys.platform != "linux", reason="the processes of a node are found in /proc")
def test_lost_node_of_a_ray_cluster_loses_nothing(tmp_path):
    """Two nodes on one machine with a token, as docs/scaling.md starts them; one is killed in mid-run."""
    pytest.importorskip("ray")
    write_pictures(tmp_path / "pictures", 1500)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token"}

    def ray(mark, *arguments):
        command = [str(Path(sys.executable).with_name("ray")), *arguments]
        subprocess.run(command, env=environment | {"TEST_NODE": mark}, check=True, capture_output=True, timeout=200)

    def batch(engine, *options):
        command = [sys.executable, "-m", BATCH, "pictures", "--output", engine, "--engine", engine, *options]
        return subprocess.Popen(command, cwd=tmp_path, env=environment | {"PYTHONPATH": str(ROOT)})

    try:
        ray("first", "get-auth-token", "--generate")
        port = address.split(":")[1]
        ray("first", "start", "--head", f"--port={port}", "--num-cpus=2", "--include-dashboard=false")
        ray("second", "start", "--address", address, "--num-cpus", "2")
        process, manifest = batch("ray", "--ray-address", address), tmp_path / "ray" / "manifest.jsonl"
        while process.poll() is None and not (manifest.exists() and manifest.read_bytes().count(b"\n") > 100):
            time.sleep(0.05)
        end_node("second")
        assert process.poll() is None, "it ended before a node was lost"
        assert process.wait(300) == 0
    finally:
        end_node("second")
        end_node("first")
    assert batch("local").wait(300) == 0
    assert (tmp_path / "ray" / "pictures.csv").read_bytes() == (tmp_path / "local" / "pictures.csv").read_bytes()
