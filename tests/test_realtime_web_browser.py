"""The realtime program's page in headless Chromium, whose fake camera plays a clip of the sample portrait."""

import asyncio
import base64
import csv
import http.server
import json
import signal
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import cv2
import numpy as np
import pytest
from conftest import own_address
from selenium.webdriver.support.ui import WebDriverWait
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from benchmarks.common import write_portrait_video
from benchmarks.web import chromium, message, served, socket_address, write_clip
from preprocessing.datasets.sample import PORTRAIT
from realtime import analyze

pytestmark = pytest.mark.system
COLLECT = "window.results = []; document.addEventListener('recognized', event => window.results.push(event.detail))"
CONTROLS, NAME = "button, select, input, a, summary", "x => (x.labels?.[0] ?? x).textContent.trim()"
SIZES = [(320, 640), (768, 1024), (1440, 900), (3840, 2160)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> tuple[Path, Path, list[bytes]]:
    """A video, the same as the fake camera plays it, and its JPEGs."""
    folder = tmp_path_factory.mktemp("clip")
    video = write_portrait_video(folder / "portrait.avi", 90)
    return video, folder / "clip.mjpeg", write_clip(folder / "clip.mjpeg", video)


@pytest.fixture
def browser(clip, tmp_path):
    with chromium(clip[1], with_requests=True, download__default_directory=str(tmp_path)) as browser:
        yield browser


class Page:
    """A browser window with the page."""

    def __init__(self, browser, address: str):
        self.browser = browser
        browser.get(address)
        browser.execute_script(COLLECT)
        self.wait("connection", "connected")

    def run(self, script: str, *arguments):
        return self.browser.execute_script(script, *arguments)

    def text(self, part: str) -> str:
        return self.run("return document.getElementById(arguments[0]).textContent", part)

    def wait(self, part: str, expected: str) -> None:
        WebDriverWait(self.browser, 60).until(
            lambda _: expected in self.text(part),
            f"{part}: {self.text(part)!r}, not {expected!r}; {self.text('problem')}",
        )

    def until(self, condition: str) -> None:
        WebDriverWait(self.browser, 60).until(lambda _: self.run(f"return {condition}"), condition)

    def click(self, part: str) -> None:
        self.until(f"!document.getElementById('{part}').disabled")
        self.browser.find_element("id", part).click()

    def open(self, file: Path) -> None:
        self.browser.find_element("id", "file").send_keys(str(file))

    def more_results(self, count: int = 5) -> None:
        self.run("window.results.length = 0")
        self.until(f"window.results.length >= {count}")

    def picture(self, part: str) -> np.ndarray:
        data = self.run("return document.getElementById(arguments[0]).toDataURL('image/png')", part)
        return pixels(base64.b64decode(data.split(",")[1]))

    def fetch(self, name: str) -> str:
        link = f"document.querySelector('[data-table=\"{name}\"]').href"
        return self.run(f"return fetch({link}).then(response => response.text())")


def pixels(content: bytes) -> np.ndarray:
    image_bgr = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert image_bgr is not None
    return image_bgr


def overlap(box: list[float], face) -> float:
    left, top = max(box[0], face.left), max(box[1], face.top)
    right, bottom = min(box[0] + box[2], face.left + face.width), min(box[1] + box[3], face.top + face.height)
    shared = max(0.0, right - left) * max(0.0, bottom - top)
    return shared / (box[2] * box[3] + face.width * face.height - shared)


def check_boxes(page: Page, faces: list[dict]) -> None:
    """Compare the faces with those of `analyze` on the frame that the page shows."""
    expected = analyze(cv2.cvtColor(page.picture("frame"), cv2.COLOR_BGR2RGB))
    assert len(expected) == 1 and [overlap(face["box"], expected[0].face) > 0.5 for face in faces] == [True]


def requested_hosts(browser) -> set[str]:
    parts = str(browser.get_log("performance")).replace("\\", "").split('"url":"')[1:]
    return {urlsplit(part.split('"')[0]).netloc for part in parts if part.startswith(("http", "ws"))}


def test_camera(browser, tmp_path):
    with served() as (_, address):
        page = Page(browser, address)
        page.click("camera")
        page.wait("spoken", "Face 1: ")
        page.click("log")
        page.until("document.getElementById('log').getAttribute('aria-pressed') === 'true'")
        page.more_results(20)
        page.click("log")
        page.until("!document.getElementById('downloads').hidden")
        rows = list(csv.DictReader(page.fetch("log.csv").splitlines()))
        logged = page.run("return window.results.filter(result => result.log)")
        assert len(rows) >= 20 and {result["index"] for result in logged} <= {int(row["frame"]) for row in rows}
        assert "1" in {row["track_id"] for row in rows}
        assert "track_id,start,end" in page.fetch("segments.csv") and "<svg" in page.fetch("summary.html")

        page.click("freeze")
        page.until("document.getElementById('stage').dataset.mode === 'still'")
        check_boxes(page, page.run("return window.results.at(-1).faces"))
        assert page.picture("overlay").any()  # boxes and labels are drawn
        page.click("snapshot")
        WebDriverWait(browser, 30).until(lambda _: (tmp_path / "expressions.png").exists())
        page.click("freeze")
        page.more_results()
        page.click("camera")
        page.until("document.getElementById('video').srcObject === null")
        assert browser.get_log("browser") == []
        assert requested_hosts(browser) == {urlsplit(address).netloc}


def test_anonymous_page_shows_covered_faces_only(browser):
    with served("--anonymous") as (_, address):
        page = Page(browser, address)
        page.click("camera")
        page.until("window.results.length && window.results.at(-1).faces.length")
        page.click("freeze")
        page.until("document.getElementById('freeze').getAttribute('aria-pressed') === 'true'")
        assert page.run("return getComputedStyle(document.getElementById('video')).visibility") == "hidden"
        assert analyze(cv2.cvtColor(page.picture("frame"), cv2.COLOR_BGR2RGB)) == []
        assert page.picture("frame").max() > 0


def test_keys_do_what_the_buttons_do(browser):
    from selenium.webdriver.common.action_chains import ActionChains

    def press(key: str) -> None:
        ActionChains(browser).send_keys(key).perform()

    with served() as (_, address):
        page = Page(browser, address)
        press("c")
        page.more_results()
        for key, part in (("f", "freeze"), ("l", "log")):
            press(key)
            page.until(f"document.getElementById('{part}').getAttribute('aria-pressed') === 'true'")
        press("f")
        page.more_results()
        press("c")
        page.until("document.getElementById('stage').dataset.mode === 'empty'")
        page.until("!document.getElementById('downloads').hidden")  # stopping the camera finishes the log
        assert page.fetch("log.csv").startswith("time,")


def test_video_does_not_replace_a_log_that_is_kept(browser, clip):
    with served() as (_, address):
        page = Page(browser, address)
        page.click("camera")
        page.click("log")
        page.more_results(20)
        page.open(clip[0])
        page.wait("problem", "Download it, then open the video again")
        assert "camera" in page.fetch("log.csv")
        page.open(clip[0])
        page.until("place.max > 3")


def test_video_is_recognized_and_stepped_through(browser, clip, tmp_path):
    (tmp_path / "kept").mkdir()
    with served(TMPDIR=str(tmp_path / "kept")) as (_, address):
        page = Page(browser, address)
        page.open(clip[0])
        page.until("place.max > 3")
        page.open(clip[0])  # in place of the first one
        page.until("!document.getElementById('downloads').hidden")
        page.wait("clock", "1 / 90")
        assert {row["frame"] for row in csv.DictReader(page.fetch("log.csv").splitlines())} == set(map(str, range(90)))
        assert len(list((tmp_path / "kept").rglob("*.csv"))) == 2
        for place in (60, 12):
            page.run(f"place.value = {place}; place.dispatchEvent(new Event('input'))")
            page.wait("clock", f"{place + 1} / 90")
            original = pixels(clip[2][place])
            WebDriverWait(browser, 30).until(
                lambda _, original=original: np.abs(page.picture("frame") - original.astype(float)).mean() < 3
            )
        page.click("play")
        page.wait("play", "Pause")
        page.wait("clock", "90 / 90")
        page.open(PORTRAIT)
        page.wait("spoken", "Face: ")
        page.until("document.getElementById('seek').hidden")
        page.browser.get("about:blank")
        WebDriverWait(browser, 30).until(lambda _: not list((tmp_path / "kept").iterdir()))


def test_closed_terminal_deletes_videos(clip, tmp_path):
    async def upload(server, address: str) -> None:
        async with connect(socket_address(address)) as client:
            visitor = json.loads(await client.recv())["visitor"]
            await asyncio.to_thread(urlopen, f"{address}video/{visitor}", clip[0].read_bytes())
            assert list(tmp_path.rglob("log.csv"))
            server.send_signal(signal.SIGHUP)
            await client.wait_closed()

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a server that starts under nohup ignores it
    try:
        with served(TMPDIR=str(tmp_path)) as (server, address):
            asyncio.run(asyncio.wait_for(upload(server, address), 120))
            server.wait(60)
            assert list(tmp_path.iterdir()) == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_picture_and_files_that_are_none(browser, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "text.png").write_text("no picture")
    with served() as (_, address):
        page = Page(browser, address)
        page.open(PORTRAIT)
        page.wait("spoken", "Face: ")
        assert page.picture("frame").shape == pixels(PORTRAIT.read_bytes()).shape
        page.open(tmp_path / "text.mp4")
        page.wait("problem", "text.mp4 is no video of a known kind")
        page.open(tmp_path / "text.png")
        page.wait("problem", "text.png is no picture that this browser can read")


@pytest.mark.parametrize(
    ("has_camera", "preferences", "expected"),
    [
        (True, {"profile__default_content_setting_values__media_stream_camera": 2}, "does not allow this page"),
        (False, {}, "There is no camera. Plug one in"),
    ],
)
def test_camera_errors_name_the_remedy(clip, has_camera, preferences, expected):
    with served() as (_, address), chromium(clip[1] if has_camera else None, **preferences) as browser:
        page = Page(browser, address)
        page.click("camera")
        page.wait("problem", expected)


def test_page_without_https_says_why_there_is_no_camera(browser):
    with served("--host", "0.0.0.0") as (_, address):
        parts = urlsplit(address)
        assert len(parts.path) > 20
        if own_address().startswith("127."):
            pytest.skip("this machine has no address on a network")
        page = Page(browser, f"http://{own_address()}:{parts.port}{parts.path}")
        page.click("camera")
        page.wait("problem", "Browsers give no camera to a page without HTTPS")


def test_page_reconnects_to_a_server_that_was_started_again(browser):
    with served() as (_, address):
        page = Page(browser, address)
        page.click("camera")
        page.click("log")
        page.wait("spoken", "Face 1: ")
    page.wait("connection", "no connection")
    page.wait("problem", "The connection was lost, and the log with it")
    assert page.text("spoken") == "No face yet." and not page.picture("overlay").any()
    with served(port=urlsplit(address).port or 0):
        page.wait("connection", "connected")
        page.more_results()
        assert page.run("return window.results.at(-1).index") < 100  # a new visitor


def test_two_tabs_have_a_tracker_each(browser):
    with served() as (_, address):
        pages = []
        for _ in range(2):
            browser.switch_to.new_window("window")
            pages.append((browser.current_window_handle, Page(browser, address)))
            pages[-1][1].click("camera")
            pages[-1][1].wait("spoken", "Face 1: ")
        browser.switch_to.window(pages[0][0])
        pages[0][1].more_results()


def test_another_website_reaches_nothing(browser, tmp_path):
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with served() as (_, address), http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as hostile:
        threading.Thread(target=hostile.serve_forever, daemon=True).start()
        browser.get(f"http://localhost:{hostile.server_port}/")
        script = """const [address, done] = arguments, socket = new WebSocket(address);
            socket.onopen = () => done("open"); socket.onclose = event => done(event.code);"""
        assert browser.execute_async_script(script, socket_address(address)) == 1006
        assert (
            browser.execute_async_script("fetch(arguments[0]).then(arguments[1], () => arguments[1]('no'))", address)
            == "no"
        )
        hostile.shutdown()


def test_widths_and_names_of_controls(browser):
    with served() as (_, address):
        for width, height in SIZES:
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            page = Page(browser, address)
            page.open(PORTRAIT)
            page.wait("spoken", "Face: ")
            assert page.run("return document.documentElement.scrollWidth") <= width
            names = page.run(f"return [...document.querySelectorAll('{CONTROLS}')].map({NAME})")
            assert len(names) > 10 and all(names)
            heights = page.run(
                "return [...document.querySelectorAll('button, select, .file')].map(x => x.offsetHeight)"
            )
            assert min(filter(None, heights)) >= 40  # large enough for a finger


async def together(*visits):
    return await asyncio.gather(*visits)


async def answers(address: str, jpegs: list[bytes], count: int) -> int:
    async with connect(socket_address(address)) as client:
        await client.recv()
        for index in range(count):
            await client.send(message(jpegs[index % len(jpegs)], index / 30))
            await client.recv()
        return count


async def reason(address: str, content: bytes | str) -> tuple[int, str]:
    async with connect(socket_address(address), max_size=None, compression=None) as client:
        await client.recv()
        try:
            await client.send(content)
            while True:
                await client.recv()
        except ConnectionClosed as closed:
            return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (0, "")


async def stalled(address: str, jpegs: list[bytes]) -> None:
    """Send frames and read no reply."""
    parts = urlsplit(address)
    _, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1)
    key = base64.b64encode(bytes(16)).decode()
    writer.write(
        f"GET /watch HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    for index in range(200):
        content = message(jpegs[index % len(jpegs)], index / 30)
        writer.write(b"\x82\xfe" + len(content).to_bytes(2) + bytes(4) + content)
    await asyncio.sleep(2)
    writer.transport.abort()


def test_hostile_and_slow_visitors_disturb_nobody(clip, capfd):
    _, _, jpegs = clip
    small = [cv2.imencode(".jpg", cv2.resize(pixels(each), (320, 240)))[1].tobytes() for each in jpegs]
    with served() as (server, address):
        visits = [
            answers(address, jpegs, 60), stalled(address, small), reason(address, bytes(5_000_000)),
            reason(address, b"\0garbage"), reason(address, "{}"),
        ]  # fmt: skip
        count, _, large, binary, text = asyncio.run(together(*visits))
        assert count == 60
        assert large[0] in (0, 1009)  # the client may still be sending when the connection is closed
        assert binary[0] == text[0] == 1008 and "JPEG" in binary[1] and "command" in text[1]
        before = time.monotonic()
        server.terminate()
        assert server.wait(20) is not None and time.monotonic() - before < 15
    assert "Traceback" not in capfd.readouterr().err
