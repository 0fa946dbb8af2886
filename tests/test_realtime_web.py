"""The web application as a page or an attacker talks to it; `test_realtime_web_browser` drives the page itself."""

import csv
import json
import struct
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from realtime_fakes import FACE, LABELS, FakeClassifier, FakeDetector, read_video, scene, write_video
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from realtime.anonymity import _FILL
from realtime.recognition import recognize, watch
from realtime.serving import app as serving_app
from realtime.serving import messages, visitor
from realtime.serving.app import build_app
from realtime.serving.visitor import Recognizer
from realtime.sources.video import timestamp

JPEG = cv2.imencode(".jpg", scene(3))[1].tobytes()


def make_client(**options) -> TestClient:
    shared = Recognizer(FakeClassifier(), FakeDetector(FACE), "own.keras", **options)
    return TestClient(build_app(shared), base_url="http://127.0.0.1:8000")


@pytest.fixture
def client():
    with make_client() as client:
        yield client


class Page:
    """An open page."""

    def __init__(self, client: TestClient, socket):
        self.client, self.socket = client, socket
        self.hello = socket.receive_json()
        self.visitor = self.hello["visitor"]

    def send(self, time: float, jpeg: bytes = JPEG, kind: int = 0) -> dict:
        self.socket.send_bytes(struct.pack("<Bd", kind, time) + jpeg)
        return self.reply()

    def command(self, **content) -> dict:
        self.socket.send_json(content)
        return self.reply()

    def reply(self) -> dict:
        reply = self.socket.receive_json()
        return reply | {"jpeg": self.socket.receive_bytes() if reply["picture"] else None}

    def upload(self, content: bytes, name: str = "clip.mp4"):
        return self.client.post(f"/video/{self.visitor}", params={"name": name}, content=content)

    def table(self, name: str):
        return self.client.get(f"/table/{self.visitor}/{name}")

    def closing(self) -> tuple[int, str]:
        with pytest.raises(WebSocketDisconnect) as caught:
            self.socket.receive_json()
        return caught.value.code, caught.value.reason


@contextmanager
def opened(client: TestClient):
    with connected(client) as socket:
        yield Page(client, socket)


def connected(client: TestClient, path: str = "/watch", **headers: str):
    return client.websocket_connect(f"ws://{client.base_url.netloc.decode()}{path}", headers=headers)


def pixels(jpeg: bytes) -> np.ndarray:
    image_bgr = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert image_bgr is not None
    return image_bgr


def test_camera_frames_are_tracked_and_logged_on_request(client):
    with opened(client) as page:
        assert page.hello["labels"] == list(LABELS) and page.hello["model"] == "own.keras"
        first, second = page.send(100.0), page.send(100.2)
        assert first["size"] == [320, 240] and first["faces"][0]["tentative"] and not first["log"]
        face = second["faces"][0]
        assert (face["id"], face["label"], face["box"]) == (1, "happiness", [20.0, 16.0, 24.0, 30.0])
        assert face["probabilities"] == [0.1, 0.7, 0.2] and second["server"] > 0 and second["jpeg"] is None
        assert page.table("log.csv").status_code == 404
        page.command(type="log", on=True)
        assert page.send(100.4)["log"] and page.send(100.6)["log"]
        assert page.table("log.csv").status_code == 404  # it is not finished
        page.command(type="log", on=False)
        rows = list(csv.DictReader(page.table("log.csv").text.splitlines()))
        assert [(row["frame"], row["time"], row["track_id"], row["label"]) for row in rows] == [
            ("2", "0.4", "1", "happiness"), ("3", "0.6", "1", "happiness"),
        ]  # fmt: skip
        assert "happiness" in page.table("segments.csv").text and "own.keras" in page.table("summary.html").text
        assert page.table("../log.csv").status_code == page.table("other.csv").status_code == 404
        page.command(type="log", on=True)
        page.command(type="log", on=False)
        assert len(page.table("log.csv").text.splitlines()) == 1


def test_camera_frames_are_mirrored_and_pictures_are_not(client):
    left = np.zeros((64, 96, 3), np.uint8)
    left[:, :48] = 255
    jpeg = cv2.imencode(".jpg", left)[1].tobytes()
    detector = FakeDetector(FACE)
    with TestClient(build_app(Recognizer(FakeClassifier(), detector)), base_url="http://127.0.0.1:8000") as client:
        with opened(client) as page:
            page.send(0.0, jpeg)
            assert page.send(0.0, jpeg, kind=1)["faces"][0]["id"] == 0
    assert [seen[0, 0, 0] for seen in detector.seen] == [0, 255]


def test_each_visitor_has_its_own_tracks_and_a_closed_page_makes_room(client, monkeypatch):
    monkeypatch.setattr(serving_app, "WEB", replace(serving_app.WEB, visitors=3))
    with ExitStack() as stack:
        pages = [stack.enter_context(opened(client)) for _ in range(3)]
        for page in pages:
            page.send(1.0)
        assert [page.send(1.2)["faces"][0]["id"] for page in pages] == [1, 1, 1]
        with connected(client) as fourth:
            with pytest.raises(WebSocketDisconnect) as caught:
                fourth.receive_json()
        assert caught.value.code == 1013 and "3 visitors already" in caught.value.reason
    with opened(client) as page:
        assert page.send(0.0)["faces"]


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9", "https://127.0.0.1:8000"])
def test_other_websites_reach_nothing(client, origin):
    with opened(client) as page:
        with pytest.raises(WebSocketDisconnect), connected(client, origin=origin):
            pass
        with pytest.raises(WebSocketDisconnect), connected(client, "/other"):
            pass
        for method, path in (("GET", "/"), ("POST", f"/video/{page.visitor}"), ("GET", "/main.js")):
            response = client.request(method, path, headers={"origin": origin})
            assert (response.status_code, response.content) == (404, b"")
        assert client.get("/", headers={"origin": "http://127.0.0.1:8000"}).status_code == 200
        assert client.get("/", headers={"host": "evil.example"}).status_code == 404
        assert page.send(0.0)["faces"]


def test_token_guards_page_and_socket():
    app = build_app(Recognizer(FakeClassifier(), FakeDetector()), "a-token-of-twenty", "0.0.0.0")
    with TestClient(app, base_url="http://192.0.2.7:8000") as client:
        assert client.get("/a-token-of-twenty/").status_code == 200
        assert client.get("/a-token-of-twenty/", headers={"host": "rebound.example"}).status_code == 404
        for path in ("/", "/main.js", "/a-token-of-twent/"):
            assert client.get(path).status_code == 404
        with pytest.raises(WebSocketDisconnect), connected(client):
            pass
        with connected(client, "/a-token-of-twenty/watch") as socket:
            assert socket.receive_json()["type"] == "hello"


def test_page_loads_its_own_files_only(client):
    response = client.get("/")
    policy = response.headers["content-security-policy"]
    assert "script-src 'self'" in policy and "unsafe" not in policy and "default-src 'none'" in policy
    assert "<style" not in response.text and " style=" not in response.text and "<script>" not in response.text
    for file in Path(serving_app.__file__).with_name("page").iterdir():
        content = client.get(f"/{file.name}").text
        assert "http://" not in content.replace("http://localhost", "") and "https://" not in content, file
    assert client.get("/..%2fapp.py").status_code == client.get("/app.py").status_code == 404
    assert client.get(f"/frame/nobody/{'9' * 5000}").status_code == 404


def declared(width: int, height: int) -> bytes:
    """Return the JPEG with another size in its header."""
    start = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:start] + struct.pack(">HH", height, width) + JPEG[start + 4 :]


GARBAGE = [
    b"", b"\0", struct.pack("<Bd", 0, 1.0), struct.pack("<Bd", 2, 1.0) + JPEG, struct.pack("<Bd", 0, np.nan) + JPEG,
    struct.pack("<Bd", 0, 1.0) + JPEG[:300], struct.pack("<Bd", 0, 1.0) + declared(30_000, 30_000),
    struct.pack("<Bd", 1, 1.0) + declared(0, 5), "", "[]", "{}", '{"type": "log"}', '{"type": "log", "on": 1}',
    '{"type": "log", "on": true, "file": "/etc/passwd"}', '{"type": ["log"]}', "[" * 9_000,
    '{"type": "next", "picture": false}', '{"type": "log", "on": NaN}',
]  # fmt: skip


def check_refused(client: TestClient, message: bytes | str) -> None:
    with opened(client) as page:
        page.socket.send({"type": "websocket.receive", "bytes" if isinstance(message, bytes) else "text": message})
        code, reason = page.closing()
        assert code == 1008 and 10 < len(reason) <= 120


@pytest.mark.parametrize("message", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_closes_its_own_connection_with_a_reason(client, message):
    with opened(client) as other:
        check_refused(client, message)
        assert other.send(0.0)["faces"]


def test_any_garbage_closes_the_connection():
    with make_client() as client:

        @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(
            st.binary(max_size=60)
            | st.text(max_size=60).filter(lambda text: "discard" not in text)
            | st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
            .map(json.dumps)
            .filter(lambda text: "discard" not in text)
            | st.binary(max_size=40).map(lambda tail: struct.pack("<Bd", 0, 1.0) + JPEG[:20] + tail)
        )
        def check(message):
            check_refused(client, message)

        check()


def test_time_that_does_not_go_on_is_garbage(client):
    with opened(client) as page:
        page.send(1.0)
        page.socket.send_bytes(struct.pack("<Bd", 0, 1.0) + JPEG)
        assert page.closing() == (1008, "the time of a frame must be later than that of the frame before")


def test_video_gives_the_results_of_watch_and_exact_frames(client, tmp_path):
    file = write_video(tmp_path / "clip.mp4", frames=30)
    expected = list(watch(str(file), FakeClassifier(), FakeDetector(FACE)))
    with opened(client) as page:
        opened_video = page.upload(file.read_bytes(), "..\\a/clip.mp4").json()
        assert opened_video == {"name": "clip.mp4", "count": 30, "fps": 10.0, "size": [96, 64]}
        replies = []
        while (reply := page.command(type="next", picture=not replies))["type"] != "end":
            replies.append(reply)
        assert [(r["time"], r["index"], len(r["faces"])) for r in replies] == [
            (round(r.frame.time, 4), r.frame.index, len(r.recognitions)) for r in expected
        ]
        assert pixels(replies[0]["jpeg"]).shape == (64, 96, 3) and reply["warning"] == ""
        assert len(page.table("log.csv").text.splitlines()) == 31
        images = read_video(file)[0]
        for place in [29, 0, 17, 16, 3, 28, 29, 0]:
            shown = pixels(client.get(f"/frame/{page.visitor}/{place}").content)
            errors = [np.abs(shown.astype(int) - image).mean() for image in images]
            assert int(np.argmin(errors)) == place
        assert client.get(f"/frame/{page.visitor}/30").status_code == 404
        assert client.get("/frame/nobody/0").status_code == 404


@pytest.mark.parametrize("shift", [lambda stamp: stamp - 0.3, lambda stamp: max(stamp - 0.3, 5.0)])
def test_frames_are_exact_where_time_stamps_repeat(tmp_path, monkeypatch, shift):
    file = write_video(tmp_path / "clip.mp4", frames=200)
    images = read_video(file)[0]

    def repeated(capture: cv2.VideoCapture) -> float:
        stamp = timestamp(capture)
        return stamp if stamp < 5 else shift(stamp)  # three or four frames have the time stamps of others

    for module in ("sources.video", "serving.frames"):
        monkeypatch.setattr(f"realtime.{module}.timestamp", repeated)
    guest = visitor.Visitor(Recognizer(FakeClassifier(), FakeDetector()), tmp_path)
    guest.open(file, "clip.mp4")
    while guest.advance(False)[0]["type"] != "end":
        pass
    for place in (150, 10, 199, 120):
        content = guest.read_frame(place)
        assert content
        errors = [np.abs(pixels(content).astype(int) - image).mean() for image in images]
        assert int(np.argmin(errors)) == place


def test_video_is_deleted_with_its_page(client, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    content = write_video(tmp_path / "clip.mp4").read_bytes()

    def kept() -> list[bytes]:
        return [file.read_bytes() for file in (tmp_path / "temporary").rglob("*") if file.is_file() and not file.suffix]

    with opened(client) as page:
        page.upload(content)
        assert kept() == [content]
        page.upload(content)
        assert kept() == [content]  # the second one replaces the first one
        page.command(type="discard")
        assert kept() == []
        page.upload(content)
        page.command(type="log", on=True)
    assert list((tmp_path / "temporary").iterdir()) == []
    assert page.upload(content).status_code == 404


@pytest.mark.parametrize(
    ("content", "status", "expected"),
    [
        (b"", 400, "clip.mp4 is no video of a known kind"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", 400, "no video of a known kind"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", 400, "no video of a known kind"),
        (b"\0\0\0\x18ftypmp42" + bytes(100), 400, "clip.mp4 is no video that can be read"),
        (bytes(60_001), 400, "too large; accepted are 0 MB"),
    ],
)
def test_upload_that_is_no_video_is_refused_in_one_line(client, monkeypatch, content, status, expected):
    monkeypatch.setattr(serving_app, "WEB", replace(serving_app.WEB, upload=60_000))
    with opened(client) as page:
        response = page.upload(content)
        assert response.status_code == status and expected in response.json()["error"]
        assert page.send(0.0)["faces"]


def test_anonymous_pictures_have_covered_faces(tmp_path):
    def is_covered(jpeg: bytes) -> bool:
        inner = pixels(jpeg)[20:40, 24:40].astype(int)
        return bool(np.abs(inner - _FILL[0]).max() < 12)

    with make_client(anonymous=True) as client, opened(client) as page:
        assert page.hello["anonymous"] and is_covered(page.send(0.0, kind=1)["jpeg"])
        replies = [page.send(1 + 0.12 * place) for place in range(12)]
        assert all(reply["faces"] == [] and reply["jpeg"] is None for reply in replies[:4])
        assert all(reply["faces"] and is_covered(reply["jpeg"]) for reply in replies[6:])
        page.upload(write_video(tmp_path / "clip.mp4", frames=20).read_bytes())
        for _ in range(20):
            assert page.command(type="next", picture=True)["jpeg"] is None
        assert client.get(f"/frame/{page.visitor}/19").status_code == 404  # a face may be detected after it
        assert is_covered(client.get(f"/frame/{page.visitor}/7").content)
        assert page.command(type="next", picture=False)["type"] == "end"
        assert is_covered(client.get(f"/frame/{page.visitor}/19").content)


@pytest.mark.parametrize("anonymous", [False, True])
def test_detection_is_synchronous_where_faces_are_covered(monkeypatch, anonymous):
    """A late detection would leave a face visible."""
    used = []

    def watched(*given, **keywords):
        used.append(keywords.pop("background"))
        return recognize(*given, **keywords)

    monkeypatch.setattr(visitor, "recognize", watched)
    shared = Recognizer(FakeClassifier(), FakeDetector(FACE), anonymous=anonymous)
    background = FakeDetector(FACE)
    object.__setattr__(shared, "background", background)
    with TestClient(build_app(shared), base_url="http://127.0.0.1:8000") as client, opened(client) as page:
        page.send(0.0)
    assert used == [None if anonymous else background]


def test_camera_is_not_logged_after_a_video(client, tmp_path):
    content = write_video(tmp_path / "clip.mp4").read_bytes()
    with opened(client) as page:
        page.upload(content)
        page.command(type="next", picture=False)
        assert not page.send(0.0)["log"]
        page.command(type="discard")
        assert not page.send(0.2)["log"]
        assert {row["name"] for row in csv.DictReader(page.table("log.csv").text.splitlines())} == {"clip.mp4"}


def test_log_ends_at_its_largest_size(client, monkeypatch, tmp_path):
    monkeypatch.setattr("realtime.serving.visitor.WEB", replace(messages.WEB, log=300))
    with opened(client) as page:
        page.command(type="log", on=True)
        assert [page.send(float(second))["log"] for second in range(5)] == [True, True, False, False, False]
        assert page.table("log.csv").status_code == 200
        page.upload(write_video(tmp_path / "clip.mp4").read_bytes())
        assert [page.command(type="next", picture=False)["index"] for _ in range(12)] == list(range(12))
        assert 2 < len(page.table("log.csv").text.splitlines()) < 12


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--token", "short"], "--token needs 16 or more"),
        (["--token", "a/../b/c/d/e/f/g/h/i"], "--token needs 16 or more"),
        (["--certificate", "a.pem"], "--certificate and --key belong together"),
        (["--certificate", "a.pem", "--key", "b.pem"], "--certificate a.pem with --key b.pem cannot be used"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid is no address of this machine"),
        (["--host", "192.168..1"], "--host '192.168..1' is no address of this machine"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1 is no address of this machine"),
        (["--model", "none.keras", "--port", "0"], "none.keras"),
    ],
)
def test_mistakes_are_refused_in_one_line(run_step, options, expected):
    done = run_step("realtime.web", "--no-browser", *options)
    assert done.returncode == 2 and expected in done.stderr and done.stderr.count("\n") <= 2
