"""Recognize the expressions of all faces in many pictures and videos.

Reads:  folders, archives, pictures and videos; models/pretrained.keras and its card
Writes: OUTPUT/pictures.csv, one row per face of a picture (also pictures.parquet, where pyarrow is installed);
        OUTPUT/videos/NAME.csv, the log of a video; OUTPUT/failed.csv, the files that could not be read;
        OUTPUT/manifest.jsonl, one line per finished file

    python -m realtime.batch photos/ talks.zip interview.mp4 --output results

Run the same command again to continue an interrupted run, or to add new files of the same sources. Failed files are
tried again. The exit status is 1 if a file failed.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from common.command_line import counted, run
from common.engine import Engine, EngineName, RayAddress
from configuration import FACES, PATHS
from realtime.batching.bulk import BatchOptions, run_batch
from realtime.program import exit_on_signals


def main(
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCE...", help="Folders, archives, pictures and videos.")],
    output: Annotated[Path, typer.Option(help="Folder to write the tables to.")],
    model: Annotated[Path, typer.Option(help="Trained network, with its card beside it.")] = PATHS.pretrained,
    min_face_size: Annotated[int, typer.Option(min=1, help="Smallest face to detect, pixels.")] = FACES.min_face_size,
    raw: Annotated[bool, typer.Option("--raw", help="Turn off smoothing and abstention.")] = False,
    engine: EngineName = "local",
    ray_address: RayAddress = None,
) -> None:
    """Recognize the expression of each face in many pictures and videos."""
    exit_on_signals()
    files, failed = run_batch(sources, output, BatchOptions(model, min_face_size, raw), Engine(engine, ray_address))
    print(f"{counted(files, 'file')}: {files - failed:,} done, {failed:,} failed ({output / 'failed.csv'})")
    if failed:
        sys.exit(1)


def console() -> None:
    """Run the installed command."""
    run(main)


if __name__ == "__main__":
    console()
