"""Raw data sets that several test files write: FER2013 tables, folders of images, CK+ trees, and archives of them."""

import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np


def random_gray(seed: int, side: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)


def encoded(image: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def write_image(file: Path, image: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encoded(image, file.suffix))


def write_images(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        write_image(root / name, random_gray(seed, 12))
    return root


def write_kaggle_folders(root: Path) -> Path:
    return write_images(root, "train/angry/a.png", "train/happy/b.png", "test/angry/c.png", "test/Surprised/d.png")


def pixels(image_gray: np.ndarray) -> str:
    return " ".join(map(str, image_gray.ravel()))


def write_csv(file: Path, rows: list[tuple], header: str = "emotion,pixels,Usage") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return file


def fer2013_rows() -> list[tuple]:
    """Six images: two duplicates across the splits with different labels, and a constant one."""
    return [
        (0, pixels(random_gray(0)), "Training"),
        (3, pixels(random_gray(1)), "Training"),
        (4, pixels(random_gray(2)), "Training"),
        (6, pixels(np.full((48, 48), 7)), "Training"),
        (6, pixels(random_gray(1)), "PublicTest"),
        (5, pixels(random_gray(3)), "PrivateTest"),
    ]


def write_fer2013(folder: Path) -> Path:
    return write_csv(folder / "fer2013.csv", fer2013_rows())


CKPLUS = {"S005/001": (4, 3), "S005/002": (3, None), "S010/001": (1, 7), "S010/002": (5, 0), "S999/003": (3, 2)}


def write_ckplus(root: Path, sequences: dict[str, tuple[int, int | None]] = CKPLUS) -> Path:
    """Write a CK+ tree; sequences such as `S005/001` with their number of frames and emotion code."""
    for seed, (sequence, (frames, code)) in enumerate(sequences.items()):
        name = sequence.replace("/", "_")
        for frame in range(1, frames + 1):
            file = root / "cohn-kanade-images" / sequence / f"{name}_{frame:08d}.png"
            write_image(file, random_gray(100 * seed + frame, 12))
        if code is not None:
            file = root / "Emotion" / sequence / f"{name}_{frames:08d}_emotion.txt"
            file.parent.mkdir(parents=True)
            file.write_text(f"   {code:.7e}\n")
    return root


def zip_folder(folder: Path, file: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(folder.rglob("*")):
            packed.write(path, prefix + path.relative_to(folder).as_posix())
    return file


def tar_folder(folder: Path, file: Path) -> Path:
    with tarfile.open(file, "w:gz") as packed:
        packed.add(folder, arcname="top")
    return file


def zip_in_zip(folder: Path, file: Path) -> Path:
    inner = zip_folder(folder, file.with_name("inner.zip"))
    with zipfile.ZipFile(file, "w") as packed:
        packed.write(inner, "below/inner.zip")
    return file


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def all_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
