"""Listing the files of a download: a file, a folder or an archive, also with archives inside."""

import lzma
import os
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from preprocessing.errors import InputError
from preprocessing.files import named_errors

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_LITTER = ("__macosx", "thumbs.db", "desktop.ini")  # and every hidden file, such as .DS_Store


def is_archive(name: str) -> bool:
    """Return whether a file's name is that of an archive."""
    return name.lower().endswith(SUFFIXES)


def list_files(source: Path) -> dict[str, Path]:
    """Return a download's files, by their path inside it (with `/`), sorted by that path; litter is left out.

    Raises:
        InputError: there is no such file or folder, or a file's name cannot stand in a table.
    """
    if source.is_file():
        return {source.name: source}
    if not source.is_dir():
        raise InputError(f"--source {source} does not exist; give the downloaded file or folder")
    found = {file.relative_to(source).as_posix(): file for file in _walk(source) if file.is_file()}
    for name in found:
        if re.search("[\r\ud800-\udfff]", name):  # surrogates are bytes that are no UTF-8
            raise InputError(f"--source {source}: the file name {name!r} is no plain UTF-8 text; rename the file")
    return {name: found[name] for name in sorted(found) if not _is_litter(name)}


def _walk(folder: Path) -> Iterator[Path]:
    """Yield what is no folder below a folder, also behind links to folders, each folder once: links may form a loop."""

    def refuse(error: OSError) -> None:
        raise error  # a subfolder that may not be read must not go unnoticed

    seen = set()
    for place, subfolders, names in os.walk(folder, followlinks=True, onerror=refuse):
        subfolders.sort()
        if os.path.realpath(place) in seen:
            subfolders.clear()
        else:
            seen.add(os.path.realpath(place))
            yield from (Path(place, name) for name in names)


def _is_litter(name: str) -> bool:
    return any(part.startswith(".") or part.lower() in _LITTER for part in PurePosixPath(name).parts)


def unpack_all(files: dict[str, Path], scratch: Path) -> dict[str, Path]:
    """Unpack the archives among some files, and those directly inside them.

    Args:
        files: As `list_files` returns them.
        scratch: An empty folder, or none yet, to unpack into.

    Returns:
        The files, with each archive's files in its place: under the archive's name where there are several files, so
        that those of two archives stay apart (without its suffix, unless two differ by that alone).

    Raises:
        InputError: an archive is damaged, encrypted, or has a file that climbs out of its folder.
    """
    for depth in ("outer", "inner"):
        unpacked: dict[str, Path] = {}
        stems = [_stem(name) for name in files if is_archive(name)]
        for number, (name, file) in enumerate(files.items()):
            if is_archive(name):
                folder = scratch / depth / str(number)
                unpack(file, folder, name)
                stem = _stem(name) if stems.count(_stem(name)) == 1 else name
                prefix = f"{stem}/" if len(files) > 1 else ""
                unpacked |= {prefix + inner: path for inner, path in list_files(folder).items()}
            else:
                unpacked[name] = file
        files = unpacked
    return {name: files[name] for name in sorted(files)}


def _stem(name: str) -> str:
    suffix = next(suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if name.lower().endswith(suffix))
    return name[: -len(suffix)]


def unpack(archive: Path, folder: Path, name: str) -> None:
    """Unpack a zip or tar file; links and other things that are no files are left out.

    Args:
        archive: The file.
        folder: Where to; it is made.
        name: The archive's name in messages.

    Raises:
        InputError: it is damaged, encrypted, or has a file that climbs out of its folder.
    """
    folder.mkdir(parents=True)
    try:
        for member, stream in _members(archive, name):
            path = PurePosixPath(member.replace("\\", "/"))  # some Windows programs write zip files so
            if path.is_absolute() or PureWindowsPath(path).drive or ".." in path.parts:
                raise InputError(
                    f"{name}: its file {member!r} would leave the folder it is unpacked to; do not trust it"
                )
            if _is_litter(path.as_posix()):
                continue
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with stream as packed, target.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
    except NotImplementedError as error:
        raise InputError(f"{name}: {error}; unpack it with another program and give the folder") from error
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk is full, say: not the archive's fault
        raise InputError(f"{name} is damaged or incomplete ({error}); download it again") from error


def _members(archive: Path, name: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the name of each file in an archive and its content."""
    if name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as packed:
            for member in packed.infolist():
                if member.flag_bits & 1:
                    raise InputError(f"{name} is encrypted; unpack it with its password and give the folder")
                if not member.is_dir():
                    yield member.filename, packed.open(member)
    else:
        with tarfile.open(archive) as packed:
            for member in packed:
                stream = packed.extractfile(member) if member.isfile() else None
                if stream is not None:
                    yield member.name, stream
            # tarfile takes a damaged or cut header for the end, which really is a block of zeros.
            if packed.fileobj is not None:
                packed.fileobj.seek(packed.offset)
                if packed.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError("it has no end")


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder that is gone when the block ends; what a killed run left in it is removed first."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    try:
        with named_errors(folder):
            yield folder
    finally:
        shutil.rmtree(folder)
