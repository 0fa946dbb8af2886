"""A data set's pictures taken whole in the split of its face crops: what cutting faces out is measured against."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd

from common.command_line import progress_bar
from common.errors import InputError
from common.processes import exclusive_lock
from configuration import FACES
from inference.faces import Detector
from preprocessing.step2_face_crops import crop_face, face_paths
from preprocessing.tables import (
    BOX_COLUMNS,
    LANDMARK_COLUMNS,
    content_hash,
    is_up_to_date,
    read_provenance,
    read_table,
    usable,
    write_provenance,
    write_table,
)


def are_whole(table: pd.DataFrame) -> bool:
    """Return whether every usable picture of a table was taken whole already, as FER2013's are."""
    return bool((usable(table)["face_status"] == "whole_image").all())


def write_whole_images(folder: Path) -> Path:
    """Write each usable picture of a data set as step 2 would without looking for a face, with the split of its crops.

    What is written is a data set by itself, of the same name: `data/NAME/whole/NAME/`, for `--data data/NAME/whole`.
    It holds the same rows, so that networks trained on either answer for the same images. What a kill leaves is made
    anew.

    Args:
        folder: The data set's folder, `data/NAME`, with `split.csv`.

    Returns:
        The folder of the whole images.

    Raises:
        InputError: no usable split, or a picture cannot be read any more.
    """
    table = read_table(folder, "split.csv")
    crops = read_provenance(folder, "faces.csv").get("options", {})
    crops = crops if isinstance(crops, dict) else {}
    given = {name: crops[name] for name in ("size", "channels") if isinstance(crops.get(name), int)}
    options = replace(FACES, **given, detect=False)
    whole = folder / "whole" / folder.name
    origin = json.dumps({"split": content_hash(table), "size": options.size, "channels": options.channels})
    if is_up_to_date(whole, "split.csv", origin):
        return whole
    rows = usable(table)
    places = face_paths(rows["path"])
    with exclusive_lock(whole), progress_bar() as bar:
        for name in ("split.json", "split.csv"):  # they describe the images that are replaced
            (whole / name).unlink(missing_ok=True)
        for path, place in bar.track(list(zip(rows["path"], places, strict=True)), description="whole images"):
            inside = (whole / place).relative_to(folder).as_posix()
            if crop_face(folder, path, inside, options, _no_detector)["face_status"] != "whole_image":
                raise InputError(f"{folder / path} is missing or unreadable; make the inventory again: step1_inventory")
        rows = rows.assign(face_path=places, face_status="whole_image", face_count="", face_confidence=float("nan"))
        rows[[*BOX_COLUMNS, *LANDMARK_COLUMNS]] = float("nan")
        write_provenance(whole, "faces.csv", json.dumps({"options": {**crops, "detect": False}}))
        write_table(rows, whole / "split.csv")
        write_provenance(whole, "split.csv", origin)
    return whole


def _no_detector() -> Detector:
    raise AssertionError("pictures that are taken whole need no detector")
