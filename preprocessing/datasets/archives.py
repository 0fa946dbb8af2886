"""Listing the files of a download: a file, a folder or an archive, also with archives inside."""

import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, NamedTuple

from common.errors import InputError
from common.files import named_errors

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# An archive and those inside it may unpack to this many times its size: image data sets stay below 20, zip bombs
# reach 200 to 1,000 and, nested, millions. The smallest limit is for small archives, which may pack very well; the
# largest one is eight times AffectNet.
LARGEST_RATIO = 100
SMALLEST_LIMIT = 100_000_000  # bytes
LARGEST_LIMIT = 1_000_000_000_000  # bytes
_UNIX = 3  # a zip file's mark that its file modes are Unix's
_BLOCK = 4096  # bytes: what even an empty file costs on disk, about
_LITTER = ("__macosx", "thumbs.db", "desktop.ini")  # and every hidden file, such as .DS_Store

Opener = Callable[[], IO[bytes] | None]


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


class _Budget:
    """The bytes that an archive may still unpack to, together with the archives inside it."""

    def __init__(self, archive: Path):
        self.size = archive.stat().st_size
        self.limit = min(LARGEST_LIMIT, max(SMALLEST_LIMIT, LARGEST_RATIO * self.size))
        self.left = self.limit

    def require(self, size: int, name: str) -> None:
        """Refuse an archive that goes on to unpack to `size` bytes where fewer are left."""
        if size > self.left:
            raise InputError(
                f"{name} unpacks to more than {self.limit / 1e6:,.0f} MB, from {self.size / 1e6:,.1f} MB, as a zip "
                "bomb does; if you trust it, unpack it with another program and give the folder"
            )

    def take(self, size: int, name: str) -> None:
        """Count one file of `size` bytes, which is about to be written."""
        self.require(max(size, _BLOCK), name)
        self.left -= max(size, _BLOCK)


def unpack_all(files: dict[str, Path], scratch: Path) -> dict[str, Path]:
    """Unpack the archives among some files, and those directly inside them.

    Args:
        files: As `list_files` returns them.
        scratch: An empty folder, or none yet, to unpack into.

    Returns:
        The files, with each archive's files in its place: under the archive's name where there are several files, so
        that those of two archives stay apart (without its suffix, unless two differ by that alone). A file of an
        archive replaces one of the same name beside it, and a printed line says so.

    Raises:
        InputError: an archive is damaged, encrypted or too large, or has a file that climbs out of its folder.
    """
    budgets: dict[Path, _Budget] = {}  # of the archives that came out of an archive
    for depth in ("outer", "inner"):
        unpacked = {name: file for name, file in files.items() if not is_archive(name)}
        stems = [_stem(name) for name in files if is_archive(name)]
        for number, (name, file) in enumerate(files.items()):
            if is_archive(name):
                folder = scratch / depth / str(number)
                budget = budgets.get(file) or _Budget(file)
                unpack(file, folder, name, budget)
                stem = _stem(name) if stems.count(_stem(name)) == 1 else name
                prefix = f"{stem}/" if len(files) > 1 else ""
                inside = {prefix + inner: path for inner, path in list_files(folder).items()}
                if twice := sorted(inside.keys() & unpacked.keys()):
                    print(f"{name}: {_count(twice)} also beside it; those of the archive are taken")
                budgets |= dict.fromkeys(inside.values(), budget)
                unpacked |= inside
        files = unpacked
    return {name: files[name] for name in sorted(files)}


def _count(names: list[str]) -> str:
    """Return how many files are meant, with the first one's name."""
    return f"1 file ({names[0]}) is" if len(names) == 1 else f"{len(names):,} files ({names[0]}, ...) are"


def _stem(name: str) -> str:
    suffix = next(suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if name.lower().endswith(suffix))
    return name[: -len(suffix)]


class _Member(NamedTuple):
    """What an archive holds under a name.

    Attributes:
        name: Its path in the archive.
        size: Bytes, as the archive declares them.
        open: Opens its content; None where it is no file, such as a symbolic link or a device.
        target: Of a hard link: the path of the file whose content it shares.
    """

    name: str
    size: int
    open: Opener | None
    target: str = ""


def unpack(archive: Path, folder: Path, name: str, budget: _Budget | None = None) -> None:
    """Unpack a zip or tar file.

    A hard link becomes a copy of the file that it names. Of files with the same name the last one is kept, as by other
    programs; a printed line counts them, and another one the symbolic links and devices, which are left out.

    Args:
        archive: The file.
        folder: Where to; it is made.
        name: The archive's name in messages.
        budget: Bytes that it may unpack to; left out, those that its own size allows.

    Raises:
        InputError: it is damaged, encrypted or too large, or has a file that climbs out of its folder.
    """
    budget = budget or _Budget(archive)
    folder.mkdir(parents=True)
    litter: dict[PurePosixPath, tuple[int, Opener]] = {}  # size and content; a hard link may name it
    twice, no_files = [], set()
    try:
        for member in _members(archive, name, budget):
            path = _inside(member.name, name)
            file, size, opener = folder / path, member.size, member.open
            if member.target:
                target = _inside(member.target, name)
                source = folder / target
                if source.is_file():  # read from there: to go back in a compressed tar file takes long
                    size, opener = source.stat().st_size, partial(source.open, "rb")
                    if file.exists() and file.samefile(source):
                        continue
                elif target in litter:
                    size, opener = litter[target]
                elif target not in no_files:
                    raise InputError(
                        f"{name} is damaged: its hard link {member.name!r} names {member.target!r}, which is not "
                        "before it in the archive; download it again"
                    )
            budget.take(size, name)
            if opener is None:
                no_files.add(path)
            elif _is_litter(path.as_posix()):
                litter[path] = size, opener
            else:
                if file.is_file():
                    twice.append(member.name)
                _write(opener, file, f"{name}: {member.name!r}")
    except NotImplementedError as error:
        raise InputError(f"{name}: {error}; unpack it with another program and give the folder") from error
    except MemoryError as error:
        raise InputError(
            f"{name} needs more memory to unpack than there is; unpack it with another program and give the folder"
        ) from error
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk is full, say: not the archive's fault
        raise InputError(f"{name} is damaged or incomplete ({error}); download it again") from error
    if twice:
        print(f"{name}: {_count(twice)} in it more than once; the last one of each name is taken")
    no_files = {path for path in no_files if not _is_litter(path.as_posix())}
    if no_files:
        print(f"{name}: {_count(sorted(map(str, no_files)))} no regular files (links, devices) and not unpacked")


def _inside(member: str, name: str) -> PurePosixPath:
    """Return a member's path, which stays inside the folder that the archive is unpacked to."""
    path = PurePosixPath(member.replace("\\", "/"))  # some Windows programs write zip files so
    if path.is_absolute() or PureWindowsPath(path).drive or ".." in path.parts:
        raise InputError(f"{name}: its file {member!r} would leave the folder it is unpacked to; do not trust it")
    return path


def _write(opener: Opener, file: Path, what: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with opener() as packed, file.open("wb") as unpacked:  # pyright: ignore[reportOptionalContextManager]
            shutil.copyfileobj(packed, unpacked, 1 << 20)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise InputError(f"{what} is both a file and a folder in it; download it again") from error


def _members(archive: Path, name: str, budget: _Budget) -> Iterator[_Member]:
    """Yield what an archive holds, but for folders; of a zip file, only if all of it fits into the budget."""
    if name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as packed:
            members = [member for member in packed.infolist() if not member.is_dir()]
            budget.require(sum(member.file_size for member in members), name)
            for member in members:
                if member.flag_bits & 1:
                    raise InputError(f"{name} is encrypted; unpack it with its password and give the folder")
                is_link = member.create_system == _UNIX and stat.S_ISLNK(member.external_attr >> 16)
                yield _Member(member.filename, member.file_size, None if is_link else partial(packed.open, member))
    else:
        with tarfile.open(archive) as packed:
            for member in packed:
                if member.isfile():
                    yield _Member(member.name, member.size, partial(packed.extractfile, member))
                elif not member.isdir():
                    yield _Member(member.name, 0, None, member.linkname if member.islnk() else "")
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
