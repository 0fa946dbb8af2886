from typing import TYPE_CHECKING, Any

import common  # noqa: F401  # first: from then on, Ctrl-C ends a command in one line

if TYPE_CHECKING:
    from realtime.recognition import analyze, analyze_many, watch
    from realtime.sinks.log import to_frame

__all__ = ["analyze", "analyze_many", "to_frame", "watch"]


def __getattr__(name: str) -> Any:
    """Import the public functions on first use, so that commands start fast."""
    if name == "to_frame":
        from realtime.sinks import log

        return log.to_frame
    if name in __all__:
        from realtime import recognition

        return getattr(recognition, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
