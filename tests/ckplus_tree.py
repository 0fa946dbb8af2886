"""A generated tree of CK+'s shape: folders, numbers, file names and formats, without faces."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from common.emotions import CKPLUS_CODES

LABELS = {
    "anger": 45, "contempt": 18, "disgust": 59, "fear": 25, "happiness": 69, "sadness": 28, "surprise": 83,
}  # fmt: skip
SUBJECTS = [f"S{number:03d}" for number in (5, *range(10, 125), *range(501, 507), 999)]
SEQUENCES, FRAMES = 593, 10_708
SHORTEST = 10  # frames
UNLABELLED_SUBJECTS = 5
COLOUR_SUBJECTS = 3


@dataclass(frozen=True)
class Take:
    """One sequence: subject, number, frames, and emotion (empty without a label)."""

    subject: str
    number: int
    frames: int
    emotion: str

    @property
    def name(self) -> str:
        return f"{self.subject}/{self.number:03d}"


def plan() -> list[Take]:
    """Return all sequences; the last subject has one, and a few subjects have no labelled one."""
    rng = np.random.default_rng(4)
    others = len(SUBJECTS) - 1
    more = rng.choice(np.repeat(np.arange(others), 9), SEQUENCES - 1 - 2 * others, replace=False)
    takes = np.append(2 + np.bincount(more, minlength=others), 1)  # 2 to 11
    weights = rng.gamma(2, size=SEQUENCES)
    frames = SHORTEST + rng.multinomial(FRAMES - SHORTEST * SEQUENCES, weights / weights.sum())
    keys = [(subject, take) for subject, count in zip(SUBJECTS, takes, strict=True) for take in range(1, count + 1)]
    without = set(SUBJECTS[:: len(SUBJECTS) // UNLABELLED_SUBJECTS][:UNLABELLED_SUBJECTS])
    firsts = [key for key in keys if key[1] == 1 and key[0] not in without]
    later = [key for key in keys if key[1] > 1 and key[0] not in without]
    labelled = firsts + [later[i] for i in rng.permutation(len(later))[: sum(LABELS.values()) - len(firsts)]]
    emotions = dict(zip(labelled, rng.permutation(np.repeat(list(LABELS), list(LABELS.values()))), strict=True))
    return [Take(*key, int(count), str(emotions.get(key, ""))) for key, count in zip(keys, frames, strict=True)]


def tiny_pictures(height: int) -> list[np.ndarray]:
    """Return noisy pictures a tenth of the true size, uint8 (height, 64): used whole by step 2."""
    return [np.random.default_rng(seed).integers(0, 200, (height, 64)).astype(np.uint8) for seed in range(24)]


def write_ckplus_tree(root: Path, subjects: int) -> list[Take]:
    """Write the sequences of the first subjects and return them; no two files have the same pixels."""
    pictures = tiny_pictures(49), tiny_pictures(48)
    sequences = [sequence for sequence in plan() if sequence.subject in SUBJECTS[:subjects]]
    number = 0
    for index, sequence in enumerate(sequences):
        name = sequence.name.replace("/", "_")
        folders = {kind: root / kind / sequence.name for kind in ("cohn-kanade-images", "Landmarks", "FACS", "Emotion")}
        in_colour = sequence.subject in SUBJECTS[-COLOUR_SUBJECTS:]
        choice = pictures[in_colour or index % 2]
        for kind, folder in folders.items():
            if kind != "Emotion" or sequence.emotion or index % 2:  # an unlabelled one has an empty folder, or none
                folder.mkdir(parents=True)
        for frame in range(1, sequence.frames + 1):
            number += 1
            image = choice[number % len(choice)].copy()
            image[-1, -3:] = number >> 16, number >> 8 & 255, number & 255
            image = cv2.merge([image, image, 255 - image]) if in_colour else image
            png = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
            (folders["cohn-kanade-images"] / f"{name}_{frame:08d}.png").write_bytes(png.tobytes())
            landmarks = "   2.1779534e+02   2.1386775e+02\n" * 68
            (folders["Landmarks"] / f"{name}_{frame:08d}_landmarks.txt").write_text(landmarks)
        (folders["FACS"] / f"{name}_{sequence.frames:08d}_facs.txt").write_text("   4.0000000e+00   2.0000000e+00\n")
        if sequence.emotion:
            text = f"   {CKPLUS_CODES.index(sequence.emotion):.7e}\n"
            (folders["Emotion"] / f"{name}_{sequence.frames:08d}_emotion.txt").write_text(text)
    for place in ("", "cohn-kanade-images", f"cohn-kanade-images/{SUBJECTS[1]}", "Emotion", f"Emotion/{SUBJECTS[0]}"):
        if (root / place).is_dir():
            (root / place / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (root / "ReadMeCohnKanadeDatabase_website.txt").write_text("Text.\n")
    return sequences
