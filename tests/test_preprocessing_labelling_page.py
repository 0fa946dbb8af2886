from pathlib import Path

import cv2
import numpy as np
import pytest
from raw_data import write_ckplus
from starlette.testclient import TestClient

from preprocessing.datasets.ckplus import read_ckplus
from preprocessing.inventory import write_inventory
from preprocessing.labelling.page import build_app, unlabelled_sequences
from preprocessing.labelling.store import open_store
from preprocessing.tables import read_table

# Sequence -> number of its frames, and the code in its emotion file.
SEQUENCES = {"S005/001": (4, 3), "S005/002": (3, None), "S010/001": (1, None), "S010/002": (9, None)}


def write_download(root: Path) -> Path:
    write_ckplus(root, SEQUENCES)
    for frame in (1, 4, 5, 8):
        (root / f"cohn-kanade-images/S010/002/S010_002_{frame:08d}.png").unlink()
    return root


@pytest.fixture
def frames(tmp_path):
    root = write_download(tmp_path / "CK+")
    write_inventory(tmp_path / "data" / "ck", root)
    return read_ckplus({file.relative_to(root).as_posix(): file for file in sorted(root.rglob("*.*"))})


@pytest.fixture
def sequences(frames, tmp_path):
    return unlabelled_sequences(frames, read_table(tmp_path / "data" / "ck", "inventory.csv"))


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "labels", "ann") as store:
        yield store


class Window:
    """A browser window: its requests carry the token and this machine's name."""

    def __init__(self, app):
        self.client = TestClient(app, base_url="http://127.0.0.1:5000", raise_server_exceptions=False)
        self.token = app.state.token

    def get(self, path: str, **headers: str):
        return self.client.get(f"/{self.token}/{path}", headers=headers)

    def send(self, action: str, **change: object):
        return self.client.post(f"/{self.token}/{action}", json=change)


@pytest.fixture
def app(sequences, store):
    return build_app(sequences, store, "ck", "python -m next")


@pytest.fixture
def window(app) -> Window:
    return Window(app)


def of(response, name: str) -> dict:
    return next(sequence for sequence in response.json()["sequences"] if sequence["name"] == name)


def test_unlabelled_sequences_and_missing_frames(frames, sequences, tmp_path):
    assert [(s.name, len(s.frames), s.missing) for s in sequences] == [
        ("S005/002", 3, ""), ("S010/001", 1, ""), ("S010/002", 5, "1, 4-5, 8"),
    ]  # fmt: skip
    inventory = read_table(tmp_path / "data" / "ck", "inventory.csv")
    without_emotion_files = unlabelled_sequences(frames.assign(emotion=""), inventory)
    assert [sequence.name for sequence in without_emotion_files] == list(SEQUENCES)[1:]


def test_names_with_html_are_shown_as_text(sequences, store):
    page = Window(build_app(sequences, store, "</script><img src=x>", "next '</script>'")).get("").text
    assert page.count("<script") == page.count("</script") == 1 and "<img src=x>" not in page


def test_two_windows_overwrite_nothing_unseen(app, store, tmp_path):
    (tmp_path / "labels" / "bob.csv").write_text("sequence,emotion,annotator\nS005/002,grumpy,bob\n")  # is reported
    one, other = Window(app), Window(app)
    one.send("choose", sequence="S005/002", emotion="fear", seen="")
    stale = other.send("choose", sequence="S005/002", emotion="anger", seen="")
    assert stale.status_code == 409 and "changed to fear in another window" in stale.json()["error"]
    assert of(stale, "S005/002")["choice"] == "fear"
    assert other.send("undo", sequence="S005/002", seen="anger").status_code == 409
    assert store.choices() == [("S005/002", "fear")]
    assert other.send("choose", sequence="S005/002", emotion="anger", seen="fear").status_code == 200
    state = one.get("state")
    assert of(state, "S005/002")["choice"] == "anger"
    assert "bob.csv: unknown emotion 'grumpy'" in state.json()["problem"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sequence": "S005/001", "emotion": "fear", "seen": ""}, "not one of the unlabelled"),
        ({"sequence": "S005/002", "emotion": "undo", "seen": ""}, "unknown emotion 'undo'"),
        ({"sequence": "S005/002", "emotion": "fear,ann\nS005/001,anger", "seen": ""}, "unknown emotion"),
        ({"sequence": "S005/002", "emotion": "fear"}, "a choice needs sequence, emotion, seen"),
        ({"sequence": ["S005/002"], "emotion": "fear", "seen": ""}, "a choice needs"),
    ],
)
def test_invalid_choice_is_refused_in_one_line(window, store, change, expected):
    before = store.file.read_bytes()
    response = window.send("choose", **change)
    assert response.status_code == 400
    assert expected in response.json()["error"] and "\n" not in response.json()["error"]
    for body, status in ((b"", 400), (b"[]", 400), (b"[" * 9_000, 400), (b"x" * 20_000, 413)):
        assert window.client.post(f"/{window.token}/choose", content=body).status_code == status
    assert store.file.read_bytes() == before


def test_choice_is_on_disk_before_the_response_and_can_be_undone(window, store, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    choice = {"sequence": "S005/002", "emotion": "fear", "seen": ""}
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        response = window.send("choose", **choice)
    assert response.status_code == 507 and "No space left on device" in response.json()["error"]
    assert of(response, "S005/002")["choice"] == "" and len(store.file.read_text().splitlines()) == 1
    response = window.send("choose", **choice)
    assert response.status_code == 200 and of(response, "S005/002")["choice"] == "fear"
    assert store.file.read_text().splitlines()[1].startswith("S005/002,fear,ann,")
    assert response.json()["last"] == {"sequence": "S005/002", "emotion": "fear"}
    response = window.send("undo", sequence="S005/002", seen="fear")
    assert response.status_code == 200
    assert of(response, "S005/002")["choice"] == "" and response.json()["last"] is None


def test_frames_have_the_pixels_of_the_download(window, sequences):
    for index, sequence in enumerate(sequences):
        for frame, file in enumerate(sequence.frames):
            response = window.get(f"frame/{index}/{frame}")
            assert response.headers["content-type"] == "image/png" and response.headers["cache-control"] == "no-store"
            shown = cv2.imdecode(np.frombuffer(response.content, np.uint8), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(shown, cv2.imread(str(file), cv2.IMREAD_UNCHANGED))
    sequences[0].frames[0].unlink()
    sequences[0].frames[1].write_bytes(b"no image")
    assert [window.get(f"frame/0/{frame}").status_code for frame in range(4)] == [404, 404, 200, 404]


@pytest.mark.parametrize("first", ["", "x", "é", "CUT"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD"])
def test_request_without_the_token_gets_an_empty_404(window, store, first, method):
    first = window.token[:-1] if first == "CUT" else first
    for path in ("", "state", "frame/0/0", "choose"):
        response = window.client.request(method, f"/{first}/{path}")
        assert (response.status_code, response.content) == (404, b"")
    assert store.choices() == []


@pytest.mark.parametrize(
    "headers",
    [{"host": host} for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:80@127.0.0.1", "[")]
    + [{"origin": origin} for origin in ("http://evil.example", "null", "http://[")],
)
def test_other_host_or_origin_gets_an_empty_404_even_with_the_token(window, headers):
    for path in ("", "state", "frame/0/0"):
        response = window.get(path, **headers)
        assert (response.status_code, response.content) == (404, b"")
    assert window.get("state", origin="http://127.0.0.1:5000").status_code == 200


def test_page_and_its_addresses_lead_nowhere_else(window):
    for path in (
        "frame/../../../etc/passwd", "frame/0/..%2f..%2fetc%2fpasswd", "frame/-1/0", "frame/0/-1", "frame/9/0",
        "frame/0/99999999999999999999", "labels/ann.csv", "..%2f..%2fetc/passwd",
    ):  # fmt: skip
        response = window.get(path)
        assert (response.status_code, response.content) == (404, b""), path
    response = window.get("")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "unsafe" not in policy
    assert "http://" not in response.text and "https://" not in response.text and 'src="' not in response.text
    assert response.headers["referrer-policy"] == "no-referrer" and len(window.token) >= 32


def test_agreement_and_disputes_show_for_chosen_sequences_only(window, tmp_path):
    with open_store(tmp_path / "labels", "bob") as bob:
        bob.choose("S005/002", "fear", "")
        bob.choose("S010/001", "anger", "")
    response = window.get("state")
    assert of(response, "S005/002")["disputed"] is None and response.json()["agreements"] == []
    window.send("choose", sequence="S005/002", emotion="fear", seen="")
    response = window.send("choose", sequence="S010/001", emotion="sadness", seen="")
    assert of(response, "S005/002")["disputed"] is None
    assert of(response, "S010/001")["disputed"] == {"ann": "sadness", "bob": "anger"}
    (pair,) = response.json()["agreements"]
    assert (pair["annotators"], pair["count"]) == (["ann", "bob"], 2)
    assert pair["kappa"] == pytest.approx((0.5 - 0.25) / (1 - 0.25))  # expected: fear 1/2 x 1/2
    response = window.send("choose", sequence="S010/001", emotion="anger", seen="sadness")
    assert of(response, "S010/001")["disputed"] is None
    assert response.json()["agreements"][0]["kappa"] == 1
    assert response.json()["agreements"][0]["first_kappa"] == pair["kappa"]


def test_step_1_reads_the_labels_of_the_page(window, tmp_path, capsys):
    for sequence, emotion in (("S005/002", "fear"), ("S010/001", "sadness"), ("S010/002", "unsure")):
        window.send("choose", sequence=sequence, emotion=emotion, seen="")
    with open_store(tmp_path / "labels", "bob") as bob:
        bob.choose("S005/002", "fear", "")
        bob.choose("S010/001", "anger", "")
    folder, labels = tmp_path / "data" / "ck", tmp_path / "labels"
    write_inventory(folder, tmp_path / "CK+", labels=labels)
    rows = read_table(folder, "inventory.csv").set_index("sequence")[["emotion", "label_source"]]
    assert rows.apply(tuple, axis=1).to_dict() == {
        "S005/001": ("disgust", "dataset"),
        "S005/002": ("fear", "manual:ann+bob"),
        "S010/001": ("", ""),
        "S010/002": ("", ""),
    }
    out = capsys.readouterr().out
    assert "1 disputed (S010/001)" in out and "1 unsure" in out
    assert write_inventory(folder, tmp_path / "CK+", labels=labels) is None
    window.send("choose", sequence="S010/001", emotion="anger", seen="sadness")
    assert write_inventory(folder, tmp_path / "CK+", labels=labels) is not None
    rows = read_table(folder, "inventory.csv").set_index("sequence")
    assert rows.loc["S010/001", "label_source"] == "manual:ann+bob"
