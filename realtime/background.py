"""Face detection on a thread, one image at a time."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from inference.faces import Detector, Face


class BackgroundDetector:
    """Runs a detector on a thread of its own. The networks and OpenCV release the interpreter lock meanwhile.

    Args:
        detector: Used only by this thread, as a detector serves one thread at a time.
    """

    def __init__(self, detector: Detector):
        self._detector = detector
        self._pool = ThreadPoolExecutor(1, "detector")
        self._pending: Future[list[Face]] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no detection runs and the last result was taken."""
        return self._pending is None

    def start(self, detect: Callable[[Detector], list[Face]]) -> None:
        """Start a detection, where `is_idle`.

        Args:
            detect: Returns the faces, given the detector.
        """
        self._pending = self._pool.submit(detect, self._detector)

    def take(self) -> list[Face] | None:
        """Return the faces of the finished detection, or None. Its exception is raised here."""
        if self._pending is None or not self._pending.done():
            return None
        pending, self._pending = self._pending, None
        return pending.result()

    def close(self) -> None:
        """Wait for the running detection and end the thread."""
        self._pool.shutdown(cancel_futures=True)
