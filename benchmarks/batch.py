"""Compare realtime.batch with one process for each clip in turn, and its Ray engine with the local one.

    python -m benchmarks.batch --video talk.mkv
    python -m benchmarks.batch --pictures 10000

The clips are equal copies. The pictures are those of `benchmarks.scaling`. The two tables of pictures must be equal.
"""

import shutil
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from benchmarks.common import JsonFile, Row, finish, ratio_row, write_portrait_video
from benchmarks.scaling import cost_of, write_pictures
from common.command_line import run
from common.errors import INSTALL_DISTRIBUTED, InputError

CLIPS = 20


def main(
    video: Annotated[Path | None, typer.Option(help="Video. [default: a generated one of 10 seconds]")] = None,
    pictures: Annotated[int, typer.Option(min=0, help="Pictures to compare the engines on; 0: compare clips.")] = 0,
    output: JsonFile = None,
) -> None:
    """Compare realtime.batch with one process per clip, or the Ray engine with the local one."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        finish([compare_engines(folder, pictures) if pictures else compare_clips(folder, video)], output)


def compare_clips(folder: Path, video: Path | None) -> Row:
    """Compare one process for all clips with one process for each."""
    video = video or write_portrait_video(folder / "generated.avi", 300)
    clips = [folder / "clips" / f"{number}{video.suffix}" for number in range(CLIPS)]
    clips[0].parent.mkdir()
    for clip in clips:
        shutil.copy(video, clip)
    in_turn = [
        cost_of(
            "-m", "realtime.webcam", "--source", str(clip), "--no-window", "--log", str(folder / f"{clip.stem}.csv")
        )
        for clip in clips
    ]
    together = cost_of("-m", "realtime.batch", str(clips[0].parent), "--output", str(folder / "out"))
    return ratio_row(
        f"{CLIPS} copies of {video.name}, against realtime.webcam for each in turn",
        [(sum(cost.wall for cost in in_turn), together.wall)],
        processor_ms=1000 * together.processor,
        reference_processor_ms=1000 * sum(cost.processor for cost in in_turn),
        memory_mb=together.memory,
    )


def compare_engines(folder: Path, pictures: int) -> Row:
    """Compare both engines; the reference is the local one."""
    if not find_spec("ray"):
        raise InputError(f"--pictures compares with Ray; {INSTALL_DISTRIBUTED}")
    write_pictures(folder / "raw", pictures)
    seconds = {}
    for engine in ("local", "ray"):
        arguments = (str(folder / "raw"), "--output", str(folder / engine), "--engine", engine)
        seconds[engine] = cost_of("-m", "realtime.batch", *arguments).wall
    tables = [(folder / engine / "pictures.csv").read_bytes() for engine in seconds]
    if tables[0] != tables[1]:
        raise RuntimeError("the tables of the two engines differ")
    work = f"{pictures:,} pictures with --engine ray, against --engine local"
    return ratio_row(work, [(seconds["local"], seconds["ray"])])


if __name__ == "__main__":
    run(main)
