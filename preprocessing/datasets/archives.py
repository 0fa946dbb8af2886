"""List the files of a download: a single file, a folder or an archive, also archives inside it."""

import errno
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, NamedTuple

from common.errors import InputError
from common.files import named_errors

SUFFIXES = (".tar.gz", ".tar.bz2", ".tar.xz", ".tgz", ".tar", ".zip")
# Image data sets unpack to less than 20 times their archive's size, zip bombs to 200 to 1,000 times and, nested, to
# millions. The lower limit is for small archives, which may compress very well. The upper one is eight times AffectNet.
MAX_RATIO = 100
MIN_LIMIT = 100_000_000  # bytes
MAX_LIMIT = 1_000_000_000_000  # bytes
_BLOCK = 4096  # bytes that even an empty file takes on a disk, roughly
_UNIX = 3  # `ZipInfo.create_system` where `external_attr` holds a Unix file mode
_SYSTEM_FILES = ("__macosx", "thumbs.db", "desktop.ini")  # besides hidden files, such as .DS_Store
_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
    *(EOFError, RecursionError, UnicodeDecodeError),
)
_BY_HAND = "unpack it with another program and give the folder"


def is_archive(name: str) -> bool:
    """Return whether a file name ends like an archive's."""
    return name.lower().endswith(SUFFIXES)


def list_files(source: Path) -> dict[str, Path]:
    """Return a download's files by their relative path (with `/`), sorted; system and hidden files are left out.

    Raises:
        InputError: `source` does not exist, or a file name cannot be written to a table.
    """
    if source.is_file():
        return {source.name: source}
    if not source.is_dir():
        raise InputError(f"{source} does not exist, or is no file or folder; give the downloaded file or folder")
    found = {file.relative_to(source).as_posix(): file for file in _walk(source) if file.is_file()}
    check_names(found, source)
    return {name: found[name] for name in sorted(found) if not _is_system_file(name)}


def check_names(names: Iterable[str], source: Path) -> None:
    """Refuse file names that cannot be written to a table.

    Raises:
        InputError: A name has a carriage return, or bytes that are not UTF-8.
    """
    for name in names:
        if re.search("[\r\ud800-\udfff]", name):  # Python reads such bytes as surrogates
            raise InputError(f"{source}: the name {name!r} is not plain UTF-8 text; rename the file")


def _walk(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder. Links to folders are followed, each folder once, because links can form loops."""

    def refuse(error: OSError) -> None:
        raise error  # an unreadable subfolder must not be skipped silently

    visited = set()
    for place, subfolders, names in os.walk(folder, followlinks=True, onerror=refuse):
        subfolders.sort()
        if os.path.realpath(place) in visited:
            subfolders.clear()
        else:
            visited.add(os.path.realpath(place))
            yield from (Path(place, name) for name in names)


def _is_system_file(name: str) -> bool:
    return any(part.startswith(".") or part.lower() in _SYSTEM_FILES for part in PurePosixPath(name).parts)


class _Budget:
    """The bytes that an archive, with the archives inside it, may still unpack to."""

    def __init__(self, archive: Path):
        self.size = archive.stat().st_size
        self.limit = min(MAX_LIMIT, max(MIN_LIMIT, MAX_RATIO * self.size))
        self.left = self.limit

    def require(self, size: int, name: str) -> None:
        """Refuse an archive with `size` more bytes than the budget has left."""
        if size > self.left:
            raise InputError(
                f"{name} unpacks to more than {self.limit / 1e6:,.0f} MB, from {self.size / 1e6:,.1f} MB, like a zip "
                f"bomb; if you trust it, {_BY_HAND}"
            )

    def take(self, size: int, name: str) -> None:
        """Subtract `size` bytes from the budget."""
        self.require(size, name)
        self.left -= size


def unpack_all(files: dict[str, Path], scratch: Path) -> dict[str, Path]:
    """Unpack the archives among some files, and the archives directly inside them.

    Args:
        files: As `list_files` returns them.
        scratch: Folder to unpack into; empty or absent.

    Returns:
        The files, with each archive replaced by its content. Where there are several files, an archive's content is
        listed below the archive's name (without its suffix, where that name is unique). A file from an archive replaces
        a file of the same name beside it; a printed line reports this.

    Raises:
        InputError: An archive is damaged, encrypted or too large, or a path leads out of its folder.
    """
    budgets: dict[Path, _Budget] = {}  # of archives that were inside an archive
    for depth in ("outer", "inner"):
        unpacked = {name: file for name, file in files.items() if not is_archive(name)}
        stems = [_stem(name) for name in files if is_archive(name)]
        for number, (name, file) in enumerate(files.items()):
            if not is_archive(name):
                continue
            folder, budget = scratch / depth / str(number), budgets.get(file) or _Budget(file)
            unpack(file, folder, name, budget)
            stem = _stem(name) if stems.count(_stem(name)) == 1 else name
            prefix = f"{stem}/" if len(files) > 1 else ""
            inside = {prefix + inner: path for inner, path in list_files(folder).items()}
            if repeated := sorted(inside.keys() & unpacked.keys()):
                print(f"{name}: {_count(repeated)} also beside it; the archive's version is used")
            budgets |= dict.fromkeys(inside.values(), budget)
            unpacked |= inside
        files = unpacked
    return {name: files[name] for name in sorted(files)}


def _count(names: list[str]) -> str:
    return f"1 file ({names[0]}) is" if len(names) == 1 else f"{len(names):,} files ({names[0]}, ...) are"


def _stem(name: str) -> str:
    suffix = next(suffix for suffix in SUFFIXES if name.lower().endswith(suffix))
    return name[: -len(suffix)]


class _Member(NamedTuple):
    """A file in an archive.

    Attributes:
        name: Its path in the archive.
        size: Declared size in bytes; 0 for a hard link.
        open: Opens its content; None for symbolic links and devices.
    """

    name: str
    size: int
    open: Callable[[], IO[bytes] | None] | None


def unpack(archive: Path, folder: Path, name: str, budget: _Budget) -> None:
    """Unpack a zip or tar file.

    A hard link becomes a copy of its target. Of files with the same name, the last one is kept. Symbolic links and
    devices are skipped. Printed lines count the repeated names and the skipped files.

    Args:
        archive: The file.
        folder: Folder to create and unpack into.
        name: The archive's name in messages.
        budget: Bytes that it may unpack to.

    Raises:
        InputError: It is damaged, encrypted or too large, or a path leads out of its folder.
    """
    folder.mkdir(parents=True)
    repeated, skipped = [], []
    with _archive_errors(name):
        for member in _members(archive, name, budget):
            path = _relative_path(member.name, name)
            budget.take(max(member.size, _BLOCK), name)
            if _is_system_file(path.as_posix()):
                continue
            if member.open is None:
                skipped.append(path.as_posix())
                continue
            if (folder / path).is_file():
                repeated.append(member.name)
            written = _write(member.open, folder / path, f"{name}: {member.name!r}")
            budget.take(max(0, written - max(member.size, _BLOCK)), name)
    if repeated:
        print(f"{name}: {_count(repeated)} in it more than once; the last version is used")
    if skipped:
        print(f"{name}: {_count(sorted(skipped))} not unpacked: symbolic links and devices are skipped")


@contextmanager
def _archive_errors(name: str) -> Iterator[None]:
    """Turn the errors of a damaged or unsupported archive into an `InputError`."""
    try:
        yield
    except NotImplementedError as error:
        raise InputError(f"{name}: {error}; {_BY_HAND}") from error
    except MemoryError as error:
        raise InputError(f"{name} needs more memory than there is; {_BY_HAND}") from error
    except _DAMAGED as error:
        raise InputError(f"{name} is damaged or incomplete ({error}); download it again") from error
    except KeyError as error:  # tarfile: the target of a hard link
        raise InputError(f"{name} is damaged: {error.args[0]}; download it again") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # other systems count characters, Linux counts bytes
            raise InputError(f"{name}: a file name in it is too long for this disk; {_BY_HAND}") from error
        if error.errno not in (None, errno.EINVAL):  # zipfile seeks to where a damaged index points
            raise  # such as a full disk
        raise InputError(f"{name} is damaged or incomplete ({error}); download it again") from error


def _relative_path(member: str, name: str) -> PurePosixPath:
    """Return a member's path, which must stay inside the folder that the archive is unpacked to."""
    path = PurePosixPath(member.replace("\\", "/"))  # some Windows programs write backslashes
    if path.is_absolute() or PureWindowsPath(path).drive or ".." in path.parts:
        raise InputError(f"{name}: the path {member!r} leads out of the archive's folder; do not trust this archive")
    return path


def _write(opener: Callable[[], IO[bytes] | None], file: Path, description: str) -> int:
    """Write an archive member to a file and return the number of bytes."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with opener() or _no_file() as packed, file.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
            return unpacked.tell()
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise InputError(f"{description} is both a file and a folder in it; download it again") from error


def _no_file() -> IO[bytes]:
    raise tarfile.ReadError("a hard link leads to a folder")


def _members(archive: Path, name: str, budget: _Budget) -> Iterator[_Member]:
    """Yield an archive's files and links. A zip file must fit into the budget as a whole."""
    if name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as packed:
            if "" in packed.namelist():
                raise zipfile.BadZipFile("a file without a name")
            members = [member for member in packed.infolist() if not member.is_dir()]
            budget.require(sum(member.file_size for member in members), name)
            for member in members:
                if member.flag_bits & 1:
                    raise InputError(f"{name} is encrypted; unpack it with its password and give the folder")
                is_link = member.create_system == _UNIX and stat.S_ISLNK(member.external_attr >> 16)
                yield _Member(member.filename, member.file_size, None if is_link else partial(packed.open, member))
        return
    with tarfile.open(archive) as packed:
        for member in packed:
            if member.isfile() or member.islnk():
                yield _Member(member.name, member.size, partial(packed.extractfile, member))
            elif not member.isdir():
                yield _Member(member.name, 0, None)
        # tarfile takes a damaged or cut header for the end of the archive, which is a block of zeros.
        if packed.fileobj is not None:
            packed.fileobj.seek(packed.offset)
            if packed.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("its end is missing")


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder and remove it when the block ends. What a killed run left there is removed first."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    try:
        with named_errors(folder):
            yield folder
    finally:
        shutil.rmtree(folder)
