"""The labelling page: a local web page on which one person says what the unlabelled sequences show.

Everything lies below a secret first part of the address; whoever does not know it, or comes by another host name than
this machine's own (DNS rebinding), gets an empty 404. Frames are asked for by number, never by path.
"""

import secrets
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import pandas as pd
from flask import Blueprint, Flask, Response, abort, render_template, request
from werkzeug.exceptions import HTTPException

from common.emotions import EMOTIONS, canonical
from common.errors import InputError
from common.images import read_gray_or_bgr
from preprocessing.labelling.store import (
    UNSURE,
    ChangedElsewhereError,
    LabelStore,
    agreements,
    disagreements,
    label_files,
    read_labels,
)
from preprocessing.tables import unescaped

HOSTS = ("127.0.0.1", "localhost")
_LARGEST_REQUEST = 10_000  # bytes


@dataclass(frozen=True)
class Sequence:
    """A sequence to label.

    Attributes:
        name: Such as `S005/002`.
        frames: Its image files, from neutral to peak.
        missing: The numbers of frames that are not there, in words; empty where none is known to be.
    """

    name: str
    frames: tuple[Path, ...]
    missing: str


@dataclass(frozen=True)
class Guess:
    """What a network says of a sequence's peak; the probability is 0-1, None where not told."""

    emotion: str
    probability: float | None


def with_label(inventory: pd.DataFrame) -> set[str]:
    """Return an inventory's sequences that the data set itself labels."""
    return set(inventory.loc[inventory["label_source"] == "dataset", "sequence"])


def unlabelled_sequences(frames: pd.DataFrame, inventory: pd.DataFrame) -> list[Sequence]:
    """Return the sequences that the data set itself does not label.

    Args:
        frames: Every frame of the download, sorted (see `raw_datasets.read_ckplus`).
        inventory: The data set's inventory; the download may lie here without its emotion files.
    """
    unlabelled = frames[(frames["emotion"] == "") & ~frames["sequence"].isin(with_label(inventory))]
    return [
        Sequence(str(name), tuple(rows["file"]), _missing([int(frame) for frame in rows["frame"]]))
        for name, rows in unlabelled.groupby("sequence", sort=False)
    ]


def _missing(numbers: list[int]) -> str:
    """Return which of the numbers from 1 to the largest are not there, such as `1, 4-6`."""
    edges = [0, *numbers]
    gaps = [(a + 1, b - 1) for a, b in pairwise(edges) if b - a > 1]
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in gaps)


def read_guesses(file: Path, table: pd.DataFrame) -> dict[str, Guess]:
    """Read a network's predictions of a data set's images.

    Args:
        file: CSV with `path` (as in inventory.csv), `prediction`, and the probabilities `p_<emotion>`.
        table: The data set's raw table.

    Returns:
        By sequence, the guess for the last of its frames that the file has.

    Raises:
        InputError: the file is no such table, or none of its images is in the data set.
    """
    try:
        rows = unescaped(pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig").fillna(""))
    except FileNotFoundError as error:
        raise InputError(f"--guesses {file} does not exist; give predictions.csv of an evaluation") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"--guesses {file} is not a readable CSV table ({error})") from error
    if not {"path", "prediction"} <= set(rows.columns):
        raise InputError(f"--guesses {file} has the columns {', '.join(rows.columns)}; needed are path and prediction")
    sequence_of = table.set_index("path")["sequence"]
    rows = rows[rows["path"].isin(set(sequence_of.index))].sort_values("path")
    if rows.empty:
        raise InputError(f"--guesses {file} names no image of this data set; predict this data set's images")
    guesses = {}
    for row in rows.to_dict("records"):
        try:
            emotion = canonical(row["prediction"])
            probability = float(row[f"p_{emotion}"]) if row.get(f"p_{emotion}") else None
        except ValueError as error:  # an InputError is one too
            raise InputError(f"--guesses {file}, {row['path']}: {error}") from error
        guesses[str(sequence_of[row["path"]])] = Guess(emotion, probability)
    return guesses


def build_app(
    sequences: list[Sequence],
    store: LabelStore,
    guesses: dict[str, Guess],
    dataset: str,
    next_command: str,
    token: str | None = None,
) -> Flask:
    """Return the page's program.

    Args:
        sequences: What there is to label.
        store: Where this person's choices go.
        guesses: A network's, by sequence; each is sent to the page when the person has chosen.
        dataset: Its name, to be shown.
        next_command: What to type when all is done, to be shown.
        token: The secret first part of the address; left out: a random one. It is in the configuration, `TOKEN`.
    """
    app = Flask(__name__, static_folder=None, template_folder=str(Path(__file__).parent))
    app.config["TOKEN"] = token = token or secrets.token_urlsafe(24)
    app.config["MAX_CONTENT_LENGTH"] = _LARGEST_REQUEST
    page = Blueprint("page", __name__, url_prefix=f"/{token}")
    names = {sequence.name for sequence in sequences}

    @app.before_request
    def turn_strangers_away() -> None:
        knows_token = secrets.compare_digest(request.path.split("/")[1].encode(), token.encode())
        if not knows_token or _host_name(request.host) not in HOSTS:
            abort(404)

    @app.errorhandler(HTTPException)
    def say_nothing(error: HTTPException) -> Response:
        return Response(status=error.code)

    @app.after_request
    def keep_private(response: Response) -> Response:
        response.headers["Cache-Control"] = "no-store"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        return response

    @page.get("/")
    def show() -> Response:
        nonce = secrets.token_urlsafe(16)
        html = render_template("page.html", nonce=nonce, emotions=EMOTIONS, unsure=UNSURE, state=state())
        policy = f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src blob: data:; "
        policy += "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        return Response(html, headers={"Content-Security-Policy": policy}, mimetype="text/html")

    @page.get("/state")
    def state() -> dict[str, Any]:
        return {"dataset": dataset, "next_command": next_command, **_state(sequences, store, guesses)}

    @page.get("/frame/<int:sequence>/<int:frame>")
    def frame(sequence: int, frame: int) -> Response:
        if sequence >= len(sequences) or frame >= len(sequences[sequence].frames):
            abort(404)
        try:
            image = read_gray_or_bgr(sequences[sequence].frames[frame])
        except OSError:  # gone since the page was opened
            image = None
        if image is None:
            abort(404)
        return Response(
            cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes(), mimetype="image/png"
        )

    @page.post("/choose")
    def choose() -> tuple[dict[str, Any], int]:
        return write(lambda given: store.choose(given["sequence"], given["emotion"], given["seen"]))

    @page.post("/undo")
    def undo() -> tuple[dict[str, Any], int]:
        return write(lambda given: store.undo(given["sequence"], given["seen"]))

    def write(change: Any) -> tuple[dict[str, Any], int]:
        """Answer a request that changes a choice: the new state, and an error in one line where nothing was written."""
        given = request.get_json(silent=True)
        try:
            if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
                raise InputError("not a choice")
            if given.get("sequence") not in names:
                raise InputError(f"sequence {given.get('sequence')!r} is not one of the unlabelled")
            change(given)
        except KeyError as error:
            return {**state(), "error": f"not a choice: no {error}"}, 400
        except InputError as error:
            return {**state(), "error": str(error)}, 400
        except ChangedElsewhereError as error:
            return {**state(), "error": str(error)}, 409
        except OSError as error:
            return {**state(), "error": f"not saved: {error.strerror or error} ({store.file})"}, 507
        return state(), 200

    app.register_blueprint(page)
    return app


def _host_name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _state(sequences: list[Sequence], store: LabelStore, guesses: dict[str, Guess]) -> dict[str, Any]:
    """Return all that the page shows, but for the pictures; what others and the network say only of what is chosen."""
    choices = [choice for choice in store.choices() if choice[0] in {sequence.name for sequence in sequences}]
    chosen = dict(choices)
    try:
        labels = read_labels(label_files(store.file.parent).values())
        problem = ""
    except InputError as error:  # a colleague's file, copied into the folder while the page is open
        labels, problem = read_labels([]), str(error)
    disputed = {name: says for name, says in disagreements(labels).items() if name in chosen}
    return {
        "annotator": store.annotator,
        "sequences": [
            {
                "name": sequence.name,
                "frames": len(sequence.frames),
                "missing": sequence.missing,
                "choice": chosen.get(sequence.name, ""),
                "guess": asdict(guesses[sequence.name])
                if sequence.name in chosen and sequence.name in guesses
                else None,
                "disputed": disputed.get(sequence.name),
            }
            for sequence in sequences
        ],
        "last": {"sequence": choices[-1][0], "emotion": choices[-1][1]} if choices else None,
        "agreements": [asdict(agreement) for agreement in agreements(labels)],
        "problem": problem,
    }
