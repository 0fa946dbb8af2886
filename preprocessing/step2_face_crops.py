"""Step 2: cut one face out of every image, framed as in FER2013.

Reads:  data/NAME/inventory.csv and the images it lists
Writes: data/NAME/faces/**/*.png, data/NAME/faces.csv, data/NAME/faces.json (provenance)

    python -m preprocessing.step2_face_crops --dataset fer2013

An image with no side above 100 pixels is a face crop already and is used whole. In other images mtcnn searches for
faces, and the largest one is aligned by its five landmarks. `--detect` also searches an enlarged copy of the small
images, and uses those whole in which it finds no face. `--no-detect` uses every image whole. A killed run is resumed.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from common.command_line import DataRoot, DatasetName, dataset_folder, run, shortened
from common.engine import Engine, EngineName, RayAddress
from configuration import FACES, PATHS, SAMPLE_NAME
from preprocessing.face_crops import write_face_crops


def describe(table: pd.DataFrame, folder: Path) -> str:
    """Return the number of images per outcome, and where the crops are, as text."""
    count = table["face_status"].value_counts()
    unread = table.loc[(table["face_status"] == "not_found") & (table["face_count"] == ""), "path"].tolist()
    text = (
        f"{len(table)} images: {count.get('found', 0)} with a face found, {count.get('whole_image', 0)} used whole, "
        f"{count.get('not_found', 0) - len(unread)} without a face, {len(unread)} unreadable\n"
    )
    if unread:
        text += f"unreadable or missing: {shortened(unread)}\n"
    return f"{text}table: {folder / 'faces.csv'}, crops: {folder / 'faces'}"


def main(
    dataset: DatasetName = SAMPLE_NAME,
    detect: Annotated[
        bool | None, typer.Option(help="Search every image for faces, or none. [default: images above 100 px]")
    ] = FACES.detect,
    align: Annotated[str, typer.Option(help="landmarks: align by five points; box: plain square.")] = FACES.align,
    size: Annotated[int, typer.Option(help="Side of the square crops, in pixels.")] = FACES.size,
    channels: Annotated[int, typer.Option(help="1: gray, 3: RGB.")] = FACES.channels,
    data: DataRoot = PATHS.data,
    engine: EngineName = "local",
    ray_address: RayAddress = None,
) -> None:
    """Step 2: cut one face out of every image of a data set, framed as in FER2013."""
    folder = dataset_folder(data, dataset)
    options = replace(FACES, detect=detect, align=align, size=size, channels=channels)
    print(describe(write_face_crops(folder, options, Engine(engine, ray_address)), folder))


if __name__ == "__main__":
    run(main)
