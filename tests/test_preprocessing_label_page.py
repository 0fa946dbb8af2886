from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from flask.testing import FlaskClient

from common.errors import InputError
from preprocessing.datasets.ckplus import read_ckplus
from preprocessing.labelling.page import Guess, build_app, read_guesses, unlabelled_sequences
from preprocessing.labelling.store import label_files, open_store, read_labels
from preprocessing.step1_inventory import write_inventory
from preprocessing.tables import read_table

# Sequence -> the numbers of its frames, and the code in its emotion file.
SEQUENCES = {
    "S005/001": ([1, 2, 3, 4], 3),
    "S005/002": ([1, 2, 3], None),
    "S010/001": ([1], None),
    "S010/002": ([2, 3, 6, 7, 9], None),
}


def write_ckplus(root: Path) -> Path:
    for sequence, (frames, code) in SEQUENCES.items():
        name = sequence.replace("/", "_")
        folder = root / "cohn-kanade-images" / sequence
        folder.mkdir(parents=True)
        for frame in frames:
            image = np.full((12, 16), 10 * frame, np.uint8)
            image[0, 0] = 255  # not constant
            cv2.imwrite(str(folder / f"{name}_{frame:08d}.png"), image)
        if code is not None:
            emotion = root / "Emotion" / sequence / f"{name}_{frames[-1]:08d}_emotion.txt"
            emotion.parent.mkdir(parents=True)
            emotion.write_text(f"   {code:.7e}\n")
    return root


@pytest.fixture
def frames(tmp_path):
    root = write_ckplus(tmp_path / "CK+")
    write_inventory(tmp_path / "data" / "ck", root)
    return read_ckplus({file.relative_to(root).as_posix(): file for file in sorted(root.rglob("*.*"))})


@pytest.fixture
def sequences(frames, tmp_path):
    return unlabelled_sequences(frames, read_table(tmp_path / "data" / "ck", "inventory.csv"))


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "labels", "ann") as store:
        yield store


GUESSES = {"S005/002": Guess("surprise", 0.61)}


@pytest.fixture
def app(sequences, store):
    return build_app(sequences, store, GUESSES, "ck", "python -m next")


@pytest.fixture
def window(app) -> FlaskClient:
    return app.test_client()


def ask(window: FlaskClient, path: str, host: str = "127.0.0.1:5000") -> Any:
    token = window.application.config["TOKEN"]
    return window.get(f"/{token}/{path}", headers={"Host": host})


def send(window: FlaskClient, what: str, **change: object) -> Any:
    return window.post(f"/{window.application.config['TOKEN']}/{what}", json=change, headers={"Host": "localhost"})


def of(state: dict, name: str) -> dict:
    return next(sequence for sequence in state["sequences"] if sequence["name"] == name)


def test_the_unlabelled_sequences_with_all_their_frames(sequences):
    assert [sequence.name for sequence in sequences] == ["S005/002", "S010/001", "S010/002"]
    assert [len(sequence.frames) for sequence in sequences] == [3, 1, 5]
    assert [sequence.missing for sequence in sequences] == ["", "", "1, 4-5, 8"]


def test_a_download_without_its_emotion_files_shows_no_labelled_sequence(frames, tmp_path):
    inventory = read_table(tmp_path / "data" / "ck", "inventory.csv")
    without = frames.assign(emotion="")
    assert [sequence.name for sequence in unlabelled_sequences(without, inventory)] == list(SEQUENCES)[1:]


def test_a_choice_is_on_disk_when_the_answer_comes_and_can_be_taken_back(window, store):
    answer = send(window, "choose", sequence="S005/002", emotion="fear", seen="")
    assert answer.status_code == 200
    assert store.file.read_text().splitlines()[1].startswith("S005/002,fear,ann,")
    assert of(answer.json, "S005/002")["choice"] == "fear"
    assert answer.json["last"] == {"sequence": "S005/002", "emotion": "fear"}
    answer = send(window, "undo", sequence="S005/002", seen="fear")
    assert answer.status_code == 200
    assert of(answer.json, "S005/002")["choice"] == "" and answer.json["last"] is None


def test_the_guess_comes_after_the_choice_only(window):
    token = window.application.config["TOKEN"]
    assert "surprise" not in ask(window, "state").text.replace("emotion", "")
    assert "0.61" not in window.get(f"/{token}/").text
    answer = send(window, "choose", sequence="S005/002", emotion="fear", seen="")
    assert of(answer.json, "S005/002")["guess"] == {"emotion": "surprise", "probability": 0.61}
    assert of(answer.json, "S010/001")["guess"] is None


def test_two_windows_see_each_other_and_write_over_nothing_unseen(app, store):
    one, other = app.test_client(), app.test_client()
    send(one, "choose", sequence="S005/002", emotion="fear", seen="")
    stale = send(other, "choose", sequence="S005/002", emotion="anger", seen="")
    assert stale.status_code == 409
    assert "changed to fear in another window" in stale.json["error"]
    assert of(stale.json, "S005/002")["choice"] == "fear"
    assert send(other, "undo", sequence="S005/002", seen="anger").status_code == 409
    assert store.choices() == [("S005/002", "fear")]
    assert send(other, "choose", sequence="S005/002", emotion="anger", seen="fear").status_code == 200
    assert of(ask(one, "state").json, "S005/002")["choice"] == "anger"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sequence": "S777/001", "emotion": "fear", "seen": ""}, "S777/001"),
        ({"sequence": "S005/001", "emotion": "fear", "seen": ""}, "not one of the unlabelled"),
        ({"sequence": "S005/002", "emotion": "grumpy", "seen": ""}, "grumpy"),
        ({"sequence": "S005/002", "emotion": "undo", "seen": ""}, "unknown emotion 'undo'"),
        ({"sequence": "S005/002", "emotion": "fear,ann\nS005/001,anger", "seen": ""}, "unknown emotion"),
        ({"sequence": "S005/002", "emotion": "fear"}, "no 'seen'"),
        ({"sequence": ["S005/002"], "emotion": "fear", "seen": ""}, "not a choice"),
        ({}, "not one of"),
    ],
)
def test_what_is_no_choice_is_refused_in_one_line_and_not_written(window, store, change, said):
    before = store.file.read_bytes()
    answer = send(window, "choose", **change)
    assert answer.status_code == 400
    assert said in answer.json["error"] and "\n" not in answer.json["error"]
    assert store.file.read_bytes() == before


def test_what_is_no_json_or_too_long_is_refused(window, store):
    token = window.application.config["TOKEN"]
    for body in (b"", b"{", b"[]", b'"x"'):
        answer = window.post(f"/{token}/choose", data=body, content_type="application/json")
        assert answer.status_code == 400
    assert window.post(f"/{token}/choose", data=b"x" * 20_000, content_type="application/json").status_code == 413
    assert store.choices() == []


def test_a_disk_that_refuses_is_told_and_nothing_counts_as_chosen(window, store, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    answer = send(window, "choose", sequence="S005/002", emotion="fear", seen="")
    assert answer.status_code == 507
    assert "No space left on device" in answer.json["error"]
    assert of(answer.json, "S005/002")["choice"] == ""
    monkeypatch.undo()
    assert len(store.file.read_text().splitlines()) == 1


def test_frames_are_the_downloads_pixels(window, sequences):
    for index, sequence in enumerate(sequences):
        for frame, file in enumerate(sequence.frames):
            answer = ask(window, f"frame/{index}/{frame}")
            assert answer.content_type == "image/png" and answer.headers["Cache-Control"] == "no-store"
            shown = cv2.imdecode(np.frombuffer(answer.data, np.uint8), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(shown, cv2.imread(str(file), cv2.IMREAD_UNCHANGED))


def test_a_frame_that_is_gone_or_damaged_is_not_found_and_the_rest_goes_on(window, sequences):
    sequences[0].frames[0].unlink()
    sequences[0].frames[1].write_bytes(b"no picture")
    assert [ask(window, f"frame/0/{frame}").status_code for frame in range(4)] == [404, 404, 200, 404]
    assert send(window, "choose", sequence="S005/002", emotion="fear", seen="").status_code == 200


STRANGE = ["", "state", "frame/0/0", "choose", "undo"]


@pytest.mark.parametrize("path", STRANGE)
@pytest.mark.parametrize("first", ["", "x", "é", "TOKEN"])
@pytest.mark.parametrize("method", ["get", "post", "options", "head", "put"])
def test_a_stranger_gets_an_empty_404(window, store, path, first, method):
    token = window.application.config["TOKEN"]
    first = {"TOKEN": token[:-1]}.get(first, first)
    answer = window.open(f"/{first}/{path}", method=method, headers={"Host": "127.0.0.1"})
    assert (answer.status_code, answer.data) == (404, b"")
    assert store.choices() == []


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:80@127.0.0.1", "[", "", "10.0.0.1"]
)
def test_another_host_name_gets_nothing_even_with_the_token(window, host):
    for path in ("", "state", "frame/0/0"):
        answer = ask(window, path, host=host)
        assert answer.status_code in (400, 404) and answer.data == b""


@pytest.mark.parametrize(
    "path", ["frame/../../../etc/passwd", "frame/0/..%2f..%2fetc%2fpasswd", "frame/-1/0", "frame/0/-1", "frame/9/0",
             "frame/0/99999999999999999999", "labels/ann.csv", "static/label_page.html", "..%2f..%2fetc/passwd"],
)  # fmt: skip
def test_no_address_leads_to_other_files(window, path):
    answer = ask(window, path)
    assert (answer.status_code, answer.data) == (404, b"")


def test_the_page_asks_nobody_else_for_anything(window):
    answer = ask(window, "")
    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert "http://" not in answer.text and "https://" not in answer.text and 'src="' not in answer.text
    assert answer.headers["Referrer-Policy"] == "no-referrer"


def test_tokens_differ_and_are_long(sequences, store):
    tokens = {build_app(sequences, store, {}, "ck", "").config["TOKEN"] for _ in range(5)}
    assert len(tokens) == 5 and min(map(len, tokens)) >= 32


def test_agreement_and_disputes_show_of_what_one_has_chosen_oneself(window, tmp_path):
    with open_store(tmp_path / "labels", "bob") as bob:
        bob.choose("S005/002", "fear", "")
        bob.choose("S010/001", "anger", "")
    state = ask(window, "state").json
    assert of(state, "S005/002")["disputed"] is None  # nothing of bob's before ann has chosen
    assert state["agreements"] == []  # ann has no choice yet
    send(window, "choose", sequence="S005/002", emotion="fear", seen="")
    state = send(window, "choose", sequence="S010/001", emotion="sadness", seen="").json
    assert of(state, "S005/002")["disputed"] is None
    assert of(state, "S010/001")["disputed"] == {"ann": "sadness", "bob": "anger"}
    (pair,) = state["agreements"]
    assert (pair["annotators"], pair["count"]) == (["ann", "bob"], 2)
    assert pair["kappa"] == pytest.approx((0.5 - 0.25) / (1 - 0.25))  # expected: fear 1/2 x 1/2
    state = send(window, "choose", sequence="S010/001", emotion="anger", seen="sadness").json
    assert of(state, "S010/001")["disputed"] is None
    assert state["agreements"][0]["kappa"] == 1
    assert state["agreements"][0]["first_kappa"] == pair["kappa"]


def test_a_colleagues_broken_file_stops_nobody(window, tmp_path):
    (tmp_path / "labels" / "bob.csv").write_text("sequence,emotion,annotator\nS005/002,grumpy,bob\n")
    answer = send(window, "choose", sequence="S005/002", emotion="fear", seen="")
    assert answer.status_code == 200
    assert "bob.csv: unknown emotion 'grumpy'" in answer.json["problem"]


def test_guesses_are_those_of_the_last_frame(frames, tmp_path):
    file = tmp_path / "predictions.csv"
    file.write_text(
        "path,truth,prediction,p_anger,p_fear\n"
        "images/S005/002/S005_002_00000003.png,,fear,0.25,0.75\n"
        "images/S005/002/S005_002_00000002.png,,anger,0.9,0.1\n"
        "images/S010/001/S010_001_00000001.png,,anger,,\n"
        "images/elsewhere.png,,anger,1,0\n"
    )
    assert read_guesses(file, frames) == {"S005/002": Guess("fear", 0.75), "S010/001": Guess("anger", None)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        ("", "not a readable CSV"),
        ("path,truth\nx,y\n", "needed are path and prediction"),
        ("path,prediction\nimages/x.png,fear\n", "names no image of this data set"),
        ("path,prediction\nimages/S005/002/S005_002_00000003.png,grumpy\n", "unknown emotion 'grumpy'"),
        ("path,prediction,p_fear\nimages/S005/002/S005_002_00000003.png,fear,much\n", "could not convert"),
    ],
)
def test_guesses_that_cannot_be_used_are_refused(frames, tmp_path, content, said):
    file = tmp_path / "predictions.csv"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=said):
        read_guesses(file, frames)


def test_step_1_reads_what_the_page_wrote(window, tmp_path, capsys):
    send(window, "choose", sequence="S005/002", emotion="fear", seen="")
    send(window, "choose", sequence="S010/001", emotion="sadness", seen="")
    send(window, "choose", sequence="S010/002", emotion="unsure", seen="")
    with open_store(tmp_path / "labels", "bob") as bob:
        bob.choose("S005/002", "fear", "")
        bob.choose("S010/001", "anger", "")
    folder = tmp_path / "data" / "ck"
    write_inventory(folder, tmp_path / "CK+", labels=tmp_path / "labels")
    rows = read_table(folder, "inventory.csv").set_index("sequence")[["emotion", "label_source"]]
    assert rows.apply(tuple, axis=1).to_dict() == {
        "S005/001": ("disgust", "dataset"),
        "S005/002": ("fear", "manual:ann+bob"),
        "S010/001": ("", ""),
        "S010/002": ("", ""),
    }
    out = capsys.readouterr().out
    assert "labelled by hand: 1 (sequence); left without a label: nobody is sure of 1\n" in out
    assert "annotators disagree about 1 (S010/001)" in out
    assert write_inventory(folder, tmp_path / "CK+", labels=tmp_path / "labels") is None
    send(window, "choose", sequence="S010/001", emotion="anger", seen="sadness")
    assert write_inventory(folder, tmp_path / "CK+", labels=tmp_path / "labels") is not None
    rows = read_table(folder, "inventory.csv").set_index("sequence")
    assert rows.loc["S010/001", "label_source"] == "manual:ann+bob"
    assert len(read_labels(label_files(tmp_path / "labels").values())) == 5
