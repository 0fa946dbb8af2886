"""The labelling page: a local web page on which one annotator labels the unlabelled sequences.

Frames are requested by number, never by path. See `common.web` for who may request them.
"""

import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import jinja2
import pandas as pd
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from common.emotions import EMOTIONS
from common.errors import InputError
from common.images import read_gray_or_bgr
from common.web import html_page, private_app, read_json
from preprocessing.labelling.store import (
    UNSURE,
    ConflictError,
    LabelStore,
    agreements,
    disagreements,
    label_files,
    read_labels,
)


@dataclass(frozen=True)
class Sequence:
    """A sequence to label.

    Attributes:
        name: Such as `S005/002`.
        frames: Its image files, from neutral to peak.
        missing: Numbers of the missing frames as text, such as `1, 4-6`; empty where none is missing.
    """

    name: str
    frames: tuple[Path, ...]
    missing: str


def labelled_sequences(inventory: pd.DataFrame) -> set[str]:
    """Return the sequences of an inventory that have the data set's own label."""
    return set(inventory.loc[inventory["label_source"] == "dataset", "sequence"])


def unlabelled_sequences(frames: pd.DataFrame, inventory: pd.DataFrame) -> list[Sequence]:
    """Return the sequences without a label of the data set's own.

    Args:
        frames: Every frame of the download, sorted (see `ckplus.read_ckplus`).
        inventory: The data set's inventory; the download may lack its emotion files here.
    """
    unlabelled = frames[(frames["emotion"] == "") & ~frames["sequence"].isin(labelled_sequences(inventory))]
    return [
        Sequence(str(name), tuple(rows["file"]), _missing_numbers([int(frame) for frame in rows["frame"]]))
        for name, rows in unlabelled.groupby("sequence", sort=False)
    ]


def _missing_numbers(numbers: list[int]) -> str:
    """Return which numbers from 1 to the largest are missing, such as `1, 4-6`."""
    gaps = [(a + 1, b - 1) for a, b in pairwise([0, *numbers]) if b - a > 1]
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in gaps)


def build_app(
    sequences: list[Sequence],
    store: LabelStore,
    dataset: str,
    next_command: str,
) -> Starlette:
    """Return the page's application; see `common.web.private_app`.

    Args:
        sequences: The sequences to label.
        store: The annotator's labels.
        dataset: The data set's name, as shown on the page.
        next_command: The command that adds the labels to the inventory, as shown on the page.
    """
    page = _Page(sequences, store, {"dataset": dataset, "next_command": next_command})
    return private_app(
        [
            Route("/", page.show),
            Route("/state", page.show_state),
            Route("/frame/{sequence:int}/{frame:int}", page.show_frame),
            Route("/choose", page.choose, methods=["POST"]),
            Route("/undo", page.undo, methods=["POST"]),
        ]
    )


class _Page:
    """The page's endpoints. Starlette runs those that are no coroutines in threads."""

    def __init__(
        self,
        sequences: list[Sequence],
        store: LabelStore,
        texts: dict[str, str],
    ):
        self.sequences = sequences
        self.store = store
        self.texts = texts
        self.names = {sequence.name for sequence in sequences}
        loader = jinja2.FileSystemLoader(Path(__file__).parent)
        self.template = jinja2.Environment(loader=loader, autoescape=True).get_template("page.html")

    def show(self, request: Request) -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        html = self.template.render(nonce=nonce, emotions=EMOTIONS, unsure=UNSURE, state=self.state())
        return html_page(html, nonce)

    def show_state(self, request: Request) -> JSONResponse:
        return JSONResponse(self.state())

    def show_frame(self, request: Request) -> Response:
        sequence, frame = request.path_params["sequence"], request.path_params["frame"]
        if sequence >= len(self.sequences) or frame >= len(self.sequences[sequence].frames):
            raise HTTPException(404)
        try:
            image = read_gray_or_bgr(self.sequences[sequence].frames[frame])
        except OSError:  # removed since the page was opened
            image = None
        if image is None:
            raise HTTPException(404)
        png = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
        return Response(png.tobytes(), media_type="image/png")

    async def choose(self, request: Request) -> JSONResponse:
        given = await read_json(request)
        return await run_in_threadpool(self._write, given, self.store.choose, ("sequence", "emotion", "seen"))

    async def undo(self, request: Request) -> JSONResponse:
        given = await read_json(request)
        return await run_in_threadpool(self._write, given, self.store.undo, ("sequence", "seen"))

    def _write(self, given: Any, change: Callable[..., None], fields: tuple[str, ...]) -> JSONResponse:
        """Change the store and return the new state, with one line of error where nothing was written."""
        status, error = 200, ""
        try:
            if not isinstance(given, dict) or not all(isinstance(given.get(field), str) for field in fields):
                raise InputError(f"a choice needs {', '.join(fields)}, each a text")
            if given["sequence"] not in self.names:
                raise InputError(f"sequence {given['sequence']!r} is not one of the unlabelled sequences")
            change(*(given[field] for field in fields))
        except InputError as mistake:
            status, error = 400, str(mistake)
        except ConflictError as conflict:
            status, error = 409, str(conflict)
        except OSError as failure:
            status, error = 507, f"not saved: {failure.strerror or failure} ({self.store.file})"
        return JSONResponse({**self.state(), "error": error}, status)

    def state(self) -> dict[str, Any]:
        """Return what the page shows. Other annotators' labels are sent for chosen sequences only."""
        choices = [choice for choice in self.store.choices() if choice[0] in self.names]
        chosen = dict(choices)
        try:
            labels, problem = read_labels(label_files(self.store.file.parent).values()), ""
        except InputError as error:  # another annotator's file, copied into the folder while the page is open
            labels, problem = read_labels([]), str(error)
        disputed = disagreements(labels)
        return {
            **self.texts,
            "annotator": self.store.annotator,
            "sequences": [
                {
                    "name": sequence.name,
                    "frames": len(sequence.frames),
                    "missing": sequence.missing,
                    "choice": chosen.get(sequence.name, ""),
                    "disputed": disputed.get(sequence.name) if sequence.name in chosen else None,
                }
                for sequence in self.sequences
            ],
            "last": {"sequence": choices[-1][0], "emotion": choices[-1][1]} if choices else None,
            "agreements": [asdict(agreement) for agreement in agreements(labels)],
            "problem": problem,
        }
