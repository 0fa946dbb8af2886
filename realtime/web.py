"""Recognize expressions in a browser: serve one page that sends camera frames, pictures or a video to this program.

Reads:  models/pretrained.keras and its card
Writes: nothing; an uploaded video and its tables are deleted when the page is closed

    python -m realtime.web
    python -m realtime.web --host 0.0.0.0 --certificate cert.pem --key key.pem
"""

import os
import secrets
import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from common.command_line import run
from common.errors import InputError
from configuration import PATHS, WEB, WEBCAM

_NO_CAMERA = (
    "without HTTPS, browsers on other machines give no camera: give --certificate and --key, or forward the port: "
    "ssh -L {0}:localhost:{0} THIS_MACHINE"
)


def main(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to serve on; 0: any free port.")] = WEB.port,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    host: Annotated[str, typer.Option(help="Address to serve on; 0.0.0.0: all networks. Needs a token.")] = "127.0.0.1",
    token: Annotated[str | None, typer.Option(help="Secret part of the address. [default: random with --host]")] = None,
    certificate: Annotated[Path | None, typer.Option(help="Certificate for HTTPS, with --key: .pem.")] = None,
    key: Annotated[Path | None, typer.Option(help="Private key of the certificate: .pem.")] = None,
    model: Annotated[Path, typer.Option(help="Trained network, with its card beside it.")] = PATHS.pretrained,
    detector: Annotated[str, typer.Option(help="Face detector: mtcnn, or haar (OpenCV).")] = WEBCAM.detector,
    anonymous: Annotated[
        bool, typer.Option("--anonymous", help="Cover detected faces. Delays the picture by half a second.")
    ] = False,
) -> None:
    """Serve a page that recognizes expressions from the visitor's camera, pictures and videos."""
    from common.logging import silence_opencv
    from common.web import address, check_certificate, is_loopback, listen, serve
    from inference.emotion_classifier import EmotionClassifier
    from inference.face_detector import build_detector
    from realtime.serving.app import build_app
    from realtime.serving.visitor import Recognizer

    token = _checked_token(token, is_loopback(host))
    if bool(certificate) != bool(key):
        raise InputError("--certificate and --key belong together; give both, or none for HTTP")
    encryption = (certificate, key) if certificate and key else None
    if encryption:
        check_certificate(*encryption)
    silence_opencv()
    with listen(port, host) as listener:
        classifier = EmotionClassifier.load_litert(model)
        shared = Recognizer(classifier, build_detector(detector, classifier.faces), model.name, anonymous)
        app = build_app(shared, token, host)
        place = address(app, listener, "https" if encryption else "http")
        print(f"open {place}  (Ctrl-C ends)", flush=True)
        if not is_loopback(host) and not encryption:
            print(_NO_CAMERA.format(listener.getsockname()[1]), file=sys.stderr)
        if browser and _has_desktop():
            webbrowser.open(place)
        serve(app, listener, WEB.message, encryption)


def _checked_token(token: str | None, is_local: bool) -> str:
    """Return the token: random where one is needed and none is given.

    Raises:
        InputError: It is too short, or no part of an address.
    """
    if token is None:
        return "" if is_local else secrets.token_urlsafe(24)
    if len(token) < 16 or not token.isascii() or not token.replace("-", "").replace("_", "").isalnum():
        raise InputError("--token needs 16 or more letters, digits, - or _; leave it out for a random one")
    return token


def _has_desktop() -> bool:
    """Return whether a browser window can be opened; on a Linux server `webbrowser` would start one in the terminal."""
    is_linux = sys.platform.startswith("linux")
    return not is_linux or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def console() -> None:
    """Run the installed command."""
    run(main)


if __name__ == "__main__":
    console()
