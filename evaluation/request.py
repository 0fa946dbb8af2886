"""The options of an evaluation, the task that they describe, and the inputs that determine a report."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from common.files import file_hash, fingerprint
from configuration import FAIRNESS, EvaluationConfig
from inference.emotion_classifier import EmotionClassifier
from inference.lineage import hashes_file
from inference.model_card import read_card
from preprocessing.tables import content_hash, crop_options
from training.cross_validation import SUBJECT_DEPENDENT, SUBJECT_INDEPENDENT

if TYPE_CHECKING:  # they import Keras
    from evaluation.predictions import Load, Predictions


@dataclass(frozen=True)
class Request:
    """The options of the command.

    Attributes:
        folder: Folder of the data set.
        models: Networks.
        reports: Folder of the reports of the data set.
        split: Name of the split; None: test, else dev.
        truth: `labels` or `majority`; None: as in the training.
        groups: Columns for the fairness section.
        group_table: CSV with further columns.
        pictures: Images for the end-to-end evaluation.
        flip: Also report TTA.
        quick: Fewer resamples and images, no gallery.
        show_faces: Images of people may be in the report.
        calibrate: First fit temperature and threshold on dev.
        update_card: Write the scores into the card.
        folds: Evaluate the networks of all folds.
    """

    folder: Path
    models: list[Path]
    reports: Path
    split: str | None
    truth: str | None
    groups: list[str]
    group_table: Path | None
    pictures: Path | None
    flip: bool
    quick: bool
    show_faces: bool
    calibrate: bool
    update_card: bool
    folds: bool


@dataclass(frozen=True)
class Task:
    """The evaluation of one or more models on the same rows.

    Attributes:
        request: Options of the command.
        table: The whole `split.csv`, with the true labels.
        rows: Usable rows of the split.
        split: Its name.
        notes: Notes on the selection, for the report.
        options: Resamples, level, seed and targets.
        load: Loads a network once.
    """

    request: Request
    table: pd.DataFrame
    rows: pd.DataFrame
    split: str
    notes: list[str]
    options: EvaluationConfig
    load: "Load" = field(default_factory=lambda: cache(EmotionClassifier.load))

    @property
    def folder(self) -> Path:
        """Folder of the data set."""
        return self.request.folder

    def predict(self, name: str, model_file: Path) -> "Predictions":
        """Return the predictions of a network for the rows."""
        from evaluation.predictions import predict

        return predict(model_file, name, self.folder, self.table, self.rows, self.split, self.load)


def report_inputs(task: Task, *model_files: Path) -> dict[str, Any]:
    """Return everything that determines a report; equal inputs give an equal report."""
    cards = [replace(read_card(file), scores=[]) for file in model_files]  # this command writes the scores
    entries = json.dumps([card.to_json() for card in cards], sort_keys=True)
    columns = ["pixel_hash", "subject", "emotion", "status", "split", SUBJECT_INDEPENDENT, SUBJECT_DEPENDENT]
    request = task.request
    inputs = {
        "model": file_hash(*model_files),
        "images": file_hash(*(file for file in map(hashes_file, model_files) if file.is_file())),
        "card": hashlib.sha256(entries.encode()).hexdigest()[:16],
        "pretrained": [str(card.pretrained.find()) for card in cards if card.pretrained],
        "rows": content_hash(task.rows),
        "table": content_hash(task.table.filter(columns)),
        "crops": crop_options(task.folder),
        "split": task.split,
        "notes": task.notes,
        "options": asdict(task.options),
        "quick": request.quick,
        "show_faces": request.show_faces,
        "groups": [request.groups, asdict(FAIRNESS)],
        "flip": request.flip,
        "pictures": request.pictures and _picture_inputs(request.pictures),
        "code": _code_hash(),
    }
    return json.loads(json.dumps(inputs))  # tuples become lists, as in the file of a report


def _picture_inputs(folder: Path) -> list[str]:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return [str(folder), fingerprint({str(file): file for file in files})]


def _code_hash() -> str:
    """Return a hash of this package: another version writes its own report."""
    files = sorted(file for file in Path(__file__).parent.rglob("*") if file.suffix in (".py", ".html"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
