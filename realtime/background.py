"""A search for faces beside everything else: on a thread, in its own time, one at a time."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from inference.faces import Detector, Face


class Searcher:
    """Searches pictures on a thread of its own. The networks and OpenCV let other threads run meanwhile.

    Args:
        detector: What finds the faces; this thread's alone, as a detector serves one thread at a time.
    """

    def __init__(self, detector: Detector):
        self._detector = detector
        self._pool = ThreadPoolExecutor(1, "searcher")
        self._search: Future[list[Face]] | None = None

    @property
    def is_idle(self) -> bool:
        """There is room for the next search: none is running, and the last one's faces were taken."""
        return self._search is None

    def start(self, search: Callable[[Detector], list[Face]]) -> None:
        """Begin a search, where `is_idle`.

        Args:
            search: Finds the faces, by the detector that it is given.
        """
        self._search = self._pool.submit(search, self._detector)

    def take(self) -> list[Face] | None:
        """Return the faces of the search that has ended, or None: none has. What went wrong in it is raised here."""
        if self._search is None or not self._search.done():
            return None
        search, self._search = self._search, None
        return search.result()

    def close(self) -> None:
        """End the thread, once the search that is running has ended."""
        self._pool.shutdown(cancel_futures=True)
