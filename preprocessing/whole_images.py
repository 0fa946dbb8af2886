"""Write a data set's whole images with the split of its face crops: the variant without face detection."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd

from common.command_line import progress_bar
from common.errors import InputError
from common.processes import exclusive_lock
from configuration import FACES
from inference.faces import Detector
from preprocessing.face_crops import crop_face, face_paths
from preprocessing.splitting import check_current
from preprocessing.tables import (
    BOX_COLUMNS,
    LANDMARK_COLUMNS,
    content_hash,
    crop_options,
    is_up_to_date,
    make_command,
    read_table,
    usable,
    write_provenance,
    write_table,
)


def are_whole(table: pd.DataFrame) -> bool:
    """Return whether every usable image of a table was used whole, as in FER2013."""
    return bool((usable(table)["face_status"] == "whole_image").all())


def write_whole_images(folder: Path) -> Path:
    """Write each usable image as step 2 does without a search for faces, with the split of the face crops.

    The result is a data set of the same name, `data/NAME/whole/NAME/`, for `--data data/NAME/whole`. It has the same
    rows, so that networks trained on either data set can be compared.

    Args:
        folder: The data set's folder, `data/NAME`, with `split.csv`.

    Returns:
        The folder of the whole images.

    Raises:
        InputError: There is no usable split, or an image is missing.
    """
    check_current(folder)
    table = read_table(folder, "split.csv")
    crops = crop_options(folder)
    options = replace(FACES, size=crops["size"], channels=crops["channels"], detect=False)
    whole = folder / "whole" / folder.name
    provenance = json.dumps({"split": content_hash(table), "size": options.size, "channels": options.channels})
    if is_up_to_date(whole, "split.csv", provenance):
        return whole
    rows = usable(table)
    places = face_paths(rows["path"])
    with exclusive_lock(whole), progress_bar() as bar:
        for name in ("split.json", "split.csv"):  # they describe the images that are replaced
            (whole / name).unlink(missing_ok=True)
        for path, place in bar.track(list(zip(rows["path"], places, strict=True)), description="whole images"):
            inside = (whole / place).relative_to(folder).as_posix()
            if crop_face(folder, path, inside, options, _no_detector)["face_status"] != "whole_image":
                raise InputError(
                    f"{folder / path} is missing or unreadable; run again: {make_command(folder, 'inventory.csv')}"
                )
        rows = rows.assign(face_path=places, face_status="whole_image", face_count="", face_confidence=float("nan"))
        rows[[*BOX_COLUMNS, *LANDMARK_COLUMNS]] = float("nan")
        write_provenance(whole, "faces.csv", json.dumps({"options": {**crops, "detect": False}}))
        write_table(rows, whole / "split.csv")
        write_provenance(whole, "split.csv", provenance)
    return whole


def _no_detector() -> Detector:
    raise AssertionError("whole images need no detector")
