"""Measure the realtime program in a browser: round trip, frame rate, processor time, fairness and memory. Linux only.

The page runs in headless Chromium, whose fake camera plays a clip. Several visitors are WebSocket clients in Python,
since browsers throttle hidden tabs.

    python -m benchmarks.web
    python -m benchmarks.web --video talk.mkv --minutes 2
"""

import asyncio
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import cv2
import numpy as np
import typer

from benchmarks.common import JsonFile, Row, finish, read_frames, resident_bytes, write_portrait_video
from common.command_line import run
from common.errors import InputError
from configuration import ROOT

FRAMES = 300  # of the clip
RATE = 30.0  # frames per second of a camera
WARM_UP = 5.0  # seconds
SECONDS = 20.0  # of each measurement
VISITORS = 4
# A script that keeps the round trips of the page, and returns those since the last call.
COLLECT = """window.trips ??= (document.addEventListener('recognized', e => window.trips.push(e.detail.trip)), []);
return window.trips.splice(0);"""


def main(
    video: Annotated[Path | None, typer.Option(help="Video for the camera. [default: the sample portrait]")] = None,
    minutes: Annotated[float, typer.Option(min=0, help="Length of the memory test, minutes; 0: none.")] = 30.0,
    output: JsonFile = None,
) -> None:
    """Measure the realtime program in a browser."""
    with TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mjpeg"
        jpegs = write_clip(clip, video or write_portrait_video(Path(folder) / "portrait.avi", FRAMES))
        rows = []
        with served() as (server, address), chromium(clip) as browser:
            start_camera(browser, address)
            rows += measure_page(browser, server.pid)
            if minutes:
                rows.append(measure_memory(browser, server.pid, minutes))
        with served() as (_, address):
            rows.append(measure_visitors(address, jpegs))
    finish(rows, output, "the realtime program in a browser")


def write_clip(file: Path, video: Path) -> list[bytes]:
    """Write the first frames of a video as Motion JPEG, forth and back, for Chromium's fake camera, which repeats it.

    Returns:
        The JPEGs, each once.
    """
    jpegs = [cv2.imencode(".jpg", image_bgr)[1].tobytes() for image_bgr in read_frames(video, FRAMES)[0]]
    file.write_bytes(b"".join([*jpegs, *reversed(jpegs)]))
    return jpegs


@contextmanager
def served(*options: str, port: int = 0, **environment: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """Run `python -m realtime.web` while the block runs; yield its process and the address of the page."""
    command = [sys.executable, "-m", "realtime.web", "--no-browser", "--port", str(port), *options]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment
    )
    try:
        assert process.stdout
        line = process.stdout.readline().split()
        if not line:
            raise InputError("python -m realtime.web does not start; run it to see why")
        yield process, line[1]
    finally:
        process.terminate()
        process.wait()


@contextmanager
def chromium(clip: Path | None, *arguments: str, with_requests: bool = False, **preferences: Any) -> Iterator[Any]:
    """Run headless Chromium while the block runs; yield its Selenium driver.

    Args:
        clip: Motion JPEG of the fake camera; None: no camera.
        arguments: Further arguments of Chromium.
        with_requests: Log the requests of the pages, which slows them down.
        preferences: Chromium's preferences, with `__` for each dot.

    Raises:
        InputError: Chromium, its driver or Selenium is not installed.
    """
    program, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    try:
        from selenium import webdriver
    except ImportError:
        webdriver = None
    if not (program and driver and webdriver):
        raise InputError(
            "Chromium, its driver and Selenium are needed: apt-get install chromium chromium-driver; "
            "pip install -r requirements-dev.txt"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = program
    camera = ["--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={clip}"] if clip else []
    standard = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=900,900")
    for argument in (*standard, *camera, *arguments):
        options.add_argument(argument)
    names = {name.replace("__", "."): value for name, value in preferences.items()}
    permitted = {"profile.default_content_setting_values.media_stream_camera": 1}
    options.add_experimental_option("prefs", permitted | names)
    logs = {"browser": "ALL", **({"performance": "ALL"} if with_requests else {})}
    options.set_capability("goog:loggingPrefs", logs)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


def start_camera(browser: Any, address: str) -> None:
    """Open the page and start its camera."""
    browser.get(address)
    browser.execute_script(COLLECT)
    browser.find_element("id", "camera").click()
    time.sleep(WARM_UP)


def measure_page(browser: Any, server: int) -> list[Row]:
    """Measure one visitor's page.

    Args:
        browser: Its driver, with a running camera.
        server: Process number of the server.
    """
    browser.execute_script(COLLECT)
    start, used = time.monotonic(), processor_seconds(server)
    time.sleep(SECONDS)
    trips = browser.execute_script(COLLECT)
    seconds, used = time.monotonic() - start, processor_seconds(server) - used
    median, late = np.percentile(trips, [50, 95])
    return [
        {"work": "round trip, frame captured to result drawn", "ours_ms": median, "percentile_95_ms": late},
        {"work": "frames answered, one visitor", "per_second": len(trips) / seconds},
        {"work": "server's processor time per frame", "ours_ms": 1000 * used / len(trips)},
    ]


def measure_memory(browser: Any, server: int, minutes: float) -> Row:
    """Measure the growth of the server's memory after the first minute."""
    time.sleep(60)
    first = resident_bytes(server) / 1e6
    time.sleep(60 * minutes)
    growth = resident_bytes(server) / 1e6 - first
    frames = len(browser.execute_script(COLLECT))
    return {"work": f"memory, growth in {minutes:g} minutes", "megabytes": growth, "of": first, "frames": frames}


def measure_visitors(address: str, jpegs: list[bytes]) -> Row:
    """Measure several visitors at once."""

    async def visit_all() -> list[int]:
        return await asyncio.gather(*(visit(address, jpegs, WARM_UP, SECONDS) for _ in range(VISITORS)))

    rates = [count / SECONDS for count in asyncio.run(visit_all())]
    fairness = min(rates) / max(rates)
    return {"work": f"{VISITORS} visitors, frames per second each", "per_second": min(rates), "fairness": fairness}


async def visit(address: str, jpegs: list[bytes], warm_up: float, seconds: float) -> int:
    """Send the newest frame of a camera whenever the one before is answered; return the answers after the warm-up."""
    from websockets.asyncio.client import connect

    async with connect(socket_address(address), compression=None) as socket:
        await socket.recv()
        start, index, count = time.monotonic(), -1, 0
        while (now := time.monotonic() - start) < warm_up + seconds:
            if int(now * RATE) <= index:
                await asyncio.sleep((index + 1) / RATE - now)
                continue
            index = int(now * RATE)
            await socket.send(message(jpegs[index % len(jpegs)], index / RATE))
            reply = json.loads(await socket.recv())
            if not isinstance(reply["faces"], list):
                raise RuntimeError(f"the server answers {reply}")
            count += now >= warm_up
    return count


def socket_address(address: str) -> str:
    """Return the address of a page's WebSocket."""
    return address.replace("http", "ws", 1) + "watch"


def message(jpeg: bytes, seconds: float) -> bytes:
    """Return a camera frame as the page sends it."""
    return struct.pack("<Bd", 0, seconds) + jpeg


def processor_seconds(process: int) -> float:
    """Return the processor time that a process has used."""
    user, system = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    run(main)
