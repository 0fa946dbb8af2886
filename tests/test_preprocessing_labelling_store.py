import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, files_of_at_most

from common.errors import InputError
from preprocessing.labelling.store import (
    UNSURE,
    ConflictError,
    agreements,
    disagreements,
    label_files,
    open_store,
    read_labels,
)  # fmt: skip

needs_posix = pytest.mark.skipif(os.name != "posix", reason="signals and resource limits are POSIX's")
LINES = [("S1/001", "anger"), ("S1/002", "happiness")]


def write_log(folder: Path, annotator: str, *lines: tuple[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    rows = [f"{sequence},{emotion},{annotator},2026-01-01T00:00:00Z\n" for sequence, emotion in lines]
    (folder / f"{annotator}.csv").write_text("sequence,emotion,annotator,time\n" + "".join(rows))
    return folder / f"{annotator}.csv"


def labels_of(folder: Path, annotator: str) -> dict[str, str]:
    """Return what a new reader finds in the folder."""
    table = read_labels(label_files(folder).values())
    rows = table[table["annotator"] == annotator]
    return dict(zip(rows["name"], rows["emotion"], strict=True))


def test_choices_are_changed_undone_and_read_again(tmp_path):
    with open_store(tmp_path, "ann") as store:
        store.choose("S1/001", "fear", "")
        store.choose("S1/002", UNSURE, "")
        store.choose("S1/001", "anger", "fear")
        store.choose("S1/003", "neutral", "")
        store.undo("S1/003", "neutral")
        assert labels_of(tmp_path, "ann") == {"S1/001": "anger", "S1/002": UNSURE}
        store.undo("S1/001", "anger")
    with open_store(tmp_path, "ann") as store:
        assert store.choices() == [("S1/001", "fear"), ("S1/002", UNSURE)]
    emotions = [line.split(",")[1] for line in (tmp_path / "ann.csv").read_text().splitlines()[1:]]
    assert emotions == ["fear", "unsure", "anger", "neutral", "undo", "undo"]
    assert [file.name for file in tmp_path.iterdir()] == ["ann.csv"]


def test_choice_on_an_outdated_state_writes_nothing(tmp_path):
    with open_store(tmp_path, "ann") as store:
        store.choose("S1/001", "fear", "")
        before = store.file.read_bytes()
        for action in (
            lambda: store.choose("S1/001", "anger", ""),
            lambda: store.choose("S1/002", "anger", "fear"),
            lambda: store.undo("S1/001", "anger"),
        ):
            with pytest.raises(ConflictError):
                action()
        with pytest.raises(InputError, match="grumpy"):
            store.choose("S1/002", "grumpy", "")
        with pytest.raises(InputError, match="no choice"):
            store.undo("S1/002", "")
        store.choose("S1/001", "fear", "fear")  # chosen already
        assert store.file.read_bytes() == before


WRITER = """
import sys
from pathlib import Path
from preprocessing.labelling.store import open_store
with open_store(Path(sys.argv[1]), "ann") as store:
    for number in range(10 ** 6):
        store.choose(f"S{number:07d}/001", "fear", "")
        print(f"S{number:07d}/001", flush=True)
"""


@needs_posix
def test_confirmed_choices_survive_a_kill(tmp_path):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    confirmed = [writer.stdout.readline().strip() for _ in range(17)]
    with pytest.raises(InputError, match=r"in use by .* or give another --annotator"), open_store(tmp_path, "ann"):
        pass
    writer.kill()
    confirmed += [line.strip() for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    assert writer.wait() == -signal.SIGKILL
    with open_store(tmp_path, "ann") as store:  # the kill has ended the lock
        assert set(confirmed) <= set(dict(store.choices()))
        store.choose("S9/001", "anger", "")
    assert labels_of(tmp_path, "ann")["S9/001"] == "anger"


@pytest.mark.parametrize("missing", [1, 2, 30, 41])
def test_cut_line_is_left_out_and_the_next_one_is_whole(tmp_path, missing):
    whole = write_log(tmp_path, "ann", *LINES).read_bytes()
    (tmp_path / "ann.csv").write_bytes(whole[:-missing])
    expected = dict(LINES if missing == 1 else LINES[:1])  # 1: only the line end
    assert labels_of(tmp_path, "ann") == expected
    with open_store(tmp_path, "ann") as store:
        assert dict(store.choices()) == expected
        store.choose("S1/003", "fear", "")
    assert labels_of(tmp_path, "ann") == {**expected, "S1/003": "fear"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"sequence,emo", []),
        (b"LINES" + bytes(40), LINES),  # zeros after a power cut
        (b"\xef\xbb\xbfCRLF", LINES),  # saved by a spreadsheet
    ],
)
def test_cut_headers_and_changed_line_ends_are_repaired(tmp_path, content, expected):
    whole = write_log(tmp_path, "ann", *LINES).read_bytes()
    content = content.replace(b"LINES", whole).replace(b"CRLF", whole.replace(b"\n", b"\r\n"))
    (tmp_path / "ann.csv").write_bytes(content)
    assert labels_of(tmp_path, "ann") == dict(expected)
    with open_store(tmp_path, "ann") as store:
        assert store.choices() == expected
        store.choose("S1/003", "fear", "")
    assert labels_of(tmp_path, "ann") == {**dict(expected), "S1/003": "fear"}


@needs_posix
def test_full_disk_leaves_the_file_unchanged(tmp_path):
    with open_store(tmp_path, "ann") as store:
        store.choose("S1/001", "fear", "")
        before = store.file.read_bytes()
        for room in (0, 9):
            with files_of_at_most(len(before) + room), pytest.raises(OSError, match=r"too large|No space"):
                store.choose("S1/002", "anger", "")
            assert store.choices() == [("S1/001", "fear")] and store.file.read_bytes() == before
        store.choose("S1/003", "anger", "")
    assert labels_of(tmp_path, "ann") == {"S1/001": "fear", "S1/003": "anger"}


@needs_posix
def test_file_changed_by_another_program_accepts_no_choice(tmp_path):
    with open_store(tmp_path, "ann") as store:
        with store.file.open("a") as other:
            other.write("S1/009,fear,ann,2026-01-01T00:00:00Z\n")
        with pytest.raises(InputError, match="changed by another program"):
            store.choose("S1/001", "fear", "")
        store.file.rename(tmp_path / "away.csv")
        with pytest.raises(InputError, match="moved or removed"):
            store.choose("S1/001", "fear", "")
    assert "S1/009" in (tmp_path / "away.csv").read_text()


@pytest.mark.parametrize("name", ["", "../ann", ".ann", "x" * 41, "a,b"])
def test_name_that_cannot_be_a_file_name_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="not a plain name"), open_store(tmp_path / "labels", name):
        pass
    assert not (tmp_path / "labels").exists()


def test_files_of_other_annotators_and_other_origin_are_refused_and_kept(tmp_path):
    write_log(tmp_path, "ann", *LINES)
    with pytest.raises(InputError, match="exists already"), open_store(tmp_path, "Ann"):
        pass
    (tmp_path / "bob.csv").write_bytes((tmp_path / "ann.csv").read_bytes())
    (tmp_path / "cy.csv").write_text("sequence,emotion\nS1/001,fear")
    write_log(tmp_path, "di", ("S1/001", "grumpy"))
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    for name, message in (
        ("bob", "contains labels by 'ann', not 'bob'"),
        ("cy", "not written by the labelling page"),
        ("di", r"di\.csv: unknown emotion 'grumpy'"),
    ):
        with pytest.raises(InputError, match=message), open_store(tmp_path, name):
            pass
    assert before == {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(InputError, match=r"ann\.csv and .*bob\.csv both contain labels by annotator 'ann'"):
        read_labels([tmp_path / "ann.csv", tmp_path / "bob.csv"])


def test_kappa_leaves_out_unsure_and_compares_first_and_present_choices(tmp_path):
    names = [f"S1/{number:03d}" for number in range(5)]
    write_log(tmp_path, "ann", *zip(names, ["fear", "fear", "anger", "anger", UNSURE], strict=True))
    bob = [*zip(names, ["fear", "anger", "fear", "anger", "fear"], strict=True), (names[1], "fear")]
    write_log(tmp_path, "bob", *bob)
    table = read_labels(label_files(tmp_path).values())
    (found,) = agreements(table)
    assert found.annotators == ("ann", "bob") and found.count == found.first_count == 4
    assert found.first_kappa == pytest.approx(0)  # observed 2/4, expected 1/2
    assert found.kappa == pytest.approx(0.5)  # observed 3/4, expected (2 x 3 + 2 x 1) / 16
    assert disagreements(table) == {names[2]: {"ann": "anger", "bob": "fear"}}
