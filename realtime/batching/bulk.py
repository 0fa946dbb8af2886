"""Recognize many pictures and videos: list them, spread them over an engine, and write one table for each kind."""

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import cv2

from common.command_line import counted, progress_bar
from common.csv_text import unescape
from common.engine import Engine
from common.errors import InputError
from common.files import atomic_file, file_hash
from common.logging import silence_opencv
from common.processes import exclusive_lock
from configuration import FACES, PATHS
from inference.crops import read_image_rgb
from inference.face_detector import FaceDetector, crop_versions, network_files
from inference.model_card import card_path
from preprocessing.datasets.archives import check_names, is_archive, list_files, scratch_folder, unpack_all
from realtime.batching.manifest import Manifest, Outcome
from realtime.recognition import recognize, watch
from realtime.sinks.log import FaceLog, csv_text, log_columns, log_rows
from realtime.sources import Frame
from realtime.sources.folders import PICTURE_SUFFIXES, VIDEO_SUFFIXES, is_picture
from realtime.sources.video import open_video

if TYPE_CHECKING:
    from inference.emotion_classifier import EmotionClassifier

PICTURES_AT_ONCE = 16  # pictures that a worker takes at a time
_DECODER_ERRORS = (cv2.error, MemoryError)
_CRASHED = "the process that read this file was ended: it needs too much memory, or crashes the decoder"
_TOO_DEEP = "an archive inside two others is not read; unpack it and give the folder"

Files = dict[str, Path]  # by name: path relative to the source
Item = tuple[str, Path, tuple[int, int]]  # name, file, its size in bytes and when it was last changed in nanoseconds


@dataclass(frozen=True)
class BatchOptions:
    """Options of a batch run.

    Attributes:
        model: Trained network, with its card beside it.
        min_face_size: Smallest face to detect, pixels.
        raw: Turn off smoothing and abstention; see `watch`.
    """

    model: Path = PATHS.pretrained
    min_face_size: int = FACES.min_face_size
    raw: bool = False


@dataclass(frozen=True)
class _Job:
    """What a worker needs to know."""

    options: BatchOptions
    networks: tuple[Path, Path, Path]
    output: Path


def run_batch(
    sources: Sequence[Path], output: Path, options: BatchOptions = BatchOptions(), engine: Engine = Engine()
) -> tuple[int, int]:
    """Recognize all pictures and videos of some sources. Files that an earlier run finished are skipped.

    Args:
        sources: Folders, archives, pictures and videos.
        output: Folder to write; it is locked meanwhile. `pictures.csv` (and `pictures.parquet`, where pyarrow is
            installed) has one row per face, `videos/NAME.csv` is the log of a video, `failed.csv` names the files that
            could not be read, and `manifest.jsonl` has one line per finished file.
        options: Model and detection.
        engine: Where the files are recognized. The tables do not depend on it.

    Returns:
        The numbers of files and of failed files.

    Raises:
        InputError: The sources have no picture or video, an option cannot be used, the output was made with other
            settings or cannot be written, or another process writes it.
    """
    from inference.emotion_classifier import EmotionClassifier  # late: errors of the command line come at once

    for source in sources:
        if not source.exists():
            raise InputError(f"{source} does not exist; give folders, archives, pictures or videos")
    silence_opencv()
    with exclusive_lock(output, "or give another --output"):
        classifier = EmotionClassifier.load_litert(options.model)
        detection = replace(classifier.faces, min_face_size=options.min_face_size)
        job = _Job(replace(options, model=options.model.absolute()), network_files(), output.absolute())
        settings = {
            "sources": [str(source.resolve()) for source in sources],
            **asdict(replace(options, model=Path(options.model.name))),
            "model": file_hash(options.model, card_path(options.model)),
            **crop_versions(detection),
        }
        with scratch_folder(output / ".unpacked") as scratch:
            files, broken = find_media(sources, scratch)
            with closing(Manifest(output / "manifest.jsonl", settings)) as manifest:
                for name, error in broken.items():
                    manifest.add(Outcome(name, 0, error=error))
                _recognize_all(job, files, manifest, engine)
                names = sorted([*files, *broken])
                return len(names), _write_tables(output, manifest, names, classifier.labels)


def find_media(sources: Sequence[Path], scratch: Path) -> tuple[Files, dict[str, str]]:
    """List the pictures and videos of some sources.

    Args:
        sources: Folders, archives, pictures and videos. A file given by name may have any suffix.
        scratch: Folder to unpack archives into; empty.

    Returns:
        The files, sorted by name, and the errors of archives that are not unpacked. Names in a folder are relative to
        it, and start with the folder's name where there are several sources. Names in an archive start with its name.

    Raises:
        InputError: Two sources have files of the same name, a name is not UTF-8, or there is no picture or video.
    """
    found: Files = {}
    for source in sources:
        folder = source.resolve().name  # empty for a drive
        prefix = f"{folder}/" if folder and source.is_dir() and len(sources) > 1 else ""
        files = list_files(source)
        inside = {prefix + name: file for name, file in files.items() if source.is_file() or _is_readable(name)}
        check_names(inside, source)
        if repeated := found.keys() & inside.keys():
            raise InputError(f"two sources contain {min(repeated)}; rename one, or give each a run and --output")
        found |= inside
    media, broken = {name: file for name, file in found.items() if not is_archive(name)}, dict[str, str]()
    for number, name in enumerate(filter(is_archive, found)):
        try:
            inside = _unpack(found[name], scratch / str(number))
        except InputError as error:
            broken[name] = str(error)
            continue
        except OSError as error:
            if error.filename != str(found[name]):  # such as a full disk, which is no fault of the archive
                raise
            broken[name] = f"{name} cannot be read ({error.strerror})"
            continue
        inside = {f"{name}/{inner}": file for inner, file in inside.items() if _is_readable(inner)}
        broken |= dict.fromkeys(filter(is_archive, inside), _TOO_DEEP)
        media |= {inner: file for inner, file in inside.items() if inner not in broken}
    if not media and not broken:
        raise InputError(
            f"{', '.join(map(str, sources))}: no picture or video; "
            f"accepted: {' '.join((*PICTURE_SUFFIXES, *VIDEO_SUFFIXES))}"
        )
    return {name: media[name] for name in sorted(media)}, broken


def _unpack(archive: Path, scratch: Path) -> Files:
    """Return the files of an archive, with its time, by which the next run notices another archive."""
    files = unpack_all({archive.name: archive}, scratch)
    modified = archive.stat().st_mtime_ns
    for file in files.values():
        os.utime(file, ns=(modified, modified))
    return files


def _is_readable(name: str) -> bool:
    return name.lower().endswith((*PICTURE_SUFFIXES, *VIDEO_SUFFIXES)) or is_archive(name)


def _recognize_all(job: _Job, files: Files, manifest: Manifest, engine: Engine) -> None:
    """Recognize the files that the manifest lacks, and add them to it."""
    items = [(name, file.absolute(), _stamp(file)) for name, file in files.items()]
    waiting = [item for item in items if not _is_done(item, job, manifest)]
    if len(waiting) < len(items):
        print(f"continuing after {len(items) - len(waiting):,} of {counted(len(items), 'file')}", flush=True)
    kinds: list[tuple[Callable[[_Job, Item], Outcome], list[Item], int]] = [
        (_recognize_picture, [item for item in waiting if is_picture(item[1])], PICTURES_AT_ONCE),
        (_recognize_video, [item for item in waiting if not is_picture(item[1])], 1),
    ]
    with progress_bar() as bar, _removed_parts(job):
        task = bar.add_task("files", total=len(items), completed=len(items) - len(waiting))
        for function, chosen, chunk in kinds:
            if chosen:
                with closing(engine.map(partial(function, job), chosen, chunk, _crashed, in_order=False)) as outcomes:
                    for outcome in outcomes:
                        manifest.add(outcome)
                        bar.advance(task)


@contextmanager
def _removed_parts(job: _Job) -> Iterator[None]:
    """Remove the unfinished tables of workers that were killed."""
    try:
        yield
    finally:
        for part in (job.output / "videos").rglob(".*.part.csv"):
            part.unlink()


def _stamp(file: Path) -> tuple[int, int]:
    """Return the size of a file and when it was last changed; -1 and 0 if it has disappeared."""
    try:
        stat = file.stat()
    except OSError:
        return -1, 0
    return stat.st_size, stat.st_mtime_ns


def _is_done(item: Item, job: _Job, manifest: Manifest) -> bool:
    name, file, stamp = item
    return manifest.has(name, *stamp) and (is_picture(file) or _video_table(job.output, name).is_file())


def _video_table(output: Path, name: str) -> Path:
    return output / "videos" / f"{name}.csv"


def _crashed(item: Item) -> Outcome:
    name, _, stamp = item
    return Outcome(name, *stamp, error=_CRASHED)


@lru_cache(maxsize=1)
def _networks(job: _Job) -> "tuple[EmotionClassifier, FaceDetector]":
    """Load the networks of a worker, which has one thread."""
    from inference.emotion_classifier import EmotionClassifier

    silence_opencv()
    classifier = EmotionClassifier.load_litert(job.options.model, threads=1)
    options = replace(classifier.faces, min_face_size=job.options.min_face_size)
    return classifier, FaceDetector(options, threads=1, networks=job.networks)


def _recognize_picture(job: _Job, item: Item) -> Outcome:
    name, file, stamp = item
    classifier, detector = _networks(job)
    try:
        frame = Frame(cv2.cvtColor(read_image_rgb(file), cv2.COLOR_RGB2BGR), 0, 0.0, name, still=True)
        (result,) = recognize([frame], detector, classifier, job.options.raw, still=True)
    except (InputError, *_DECODER_ERRORS) as error:
        return Outcome(name, *stamp, error=_described(error, item))
    return Outcome(name, *stamp, len(result.recognitions), csv_text(log_rows(result, classifier.labels)))


def _recognize_video(job: _Job, item: Item) -> Outcome:
    try:
        return _write_video_table(job, item)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # such as a full disk, which is no fault of the file
            raise
        name, _, stamp = item
        return Outcome(name, *stamp, error="its name is too long to name its table after it; rename the file")


def _write_video_table(job: _Job, item: Item) -> Outcome:
    name, file, stamp = item
    classifier, detector = _networks(job)
    table = _video_table(job.output, name)
    try:
        table.unlink(missing_ok=True)  # of an earlier file of this name
        video = open_video(file, mirror=False)
    except (InputError, *_DECODER_ERRORS) as error:
        return Outcome(name, *stamp, error=_described(error, item))
    faces = 0
    with closing(video), atomic_file(table) as temporary:
        with closing(FaceLog(temporary, classifier.labels)) as log:
            try:
                for result in watch(video, classifier, detector, raw=job.options.raw):
                    log.write(result)
                    faces += sum(not each.tentative for each in result.recognitions)
            except _DECODER_ERRORS as error:  # the table keeps the frames before
                return Outcome(name, *stamp, faces, error=_described(error, item))
    return Outcome(name, *stamp, faces, error=video.warning)


def _described(error: Exception, item: Item) -> str:
    """Return an error as one line, with the item's name for its path, which may be that of an unpacked file."""
    name, file, _ = item
    return " ".join((str(error) or type(error).__name__).replace(str(file), name).split())


def _write_tables(output: Path, manifest: Manifest, names: Sequence[str], labels: Sequence[str]) -> int:
    """Write `pictures.csv` and `failed.csv`, and return the number of failed files."""
    failed = 0
    pictures, failures = output / "pictures.csv", output / "failed.csv"
    with atomic_file(pictures) as new_pictures, atomic_file(failures) as new_failures:
        with _text_file(new_pictures) as rows, _text_file(new_failures) as errors:
            rows.write(csv_text([log_columns(labels)]))
            errors.write(csv_text([("name", "error")]))
            for outcome in manifest.outcomes(names):
                rows.write(outcome.rows)
                if outcome.error:
                    errors.write(csv_text([(outcome.name, outcome.error)]))
                    failed += 1
    if find_spec("pyarrow"):
        _write_parquet(pictures)
    return failed


def _text_file(file: Path):
    return file.open("w", encoding="utf-8", newline="")


def _write_parquet(table: Path) -> None:
    """Write a log in CSV as Parquet beside it, part by part, with the original names."""
    import pyarrow as pa  # pyright: ignore[reportMissingImports]  # optional
    import pyarrow.csv  # pyright: ignore[reportMissingImports]  # optional
    import pyarrow.parquet  # pyright: ignore[reportMissingImports]  # optional

    types = {"name": pa.string(), "label": pa.string(), "track_id": pa.int64()}
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)  # of names
    convert = pyarrow.csv.ConvertOptions(column_types=types)
    with (
        table.open("rb") as text,  # pyarrow itself opens no path that is not UTF-8
        pyarrow.csv.open_csv(text, parse_options=parse, convert_options=convert) as parts,
        atomic_file(table.with_suffix(".parquet")) as temporary,
    ):
        with temporary.open("wb") as file, pyarrow.parquet.ParquetWriter(file, parts.schema) as writer:
            for part in parts:
                place = part.schema.get_field_index("name")
                names = pa.array(map(unescape, part.column(place).to_pylist()), pa.string())
                writer.write_batch(part.set_column(place, "name", names))
