"""Addresses of streams without credentials, for messages, windows and files."""

import re

_HIDDEN = "***"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_HOST = re.compile(r"(?:[\w.-]+|\[[0-9A-Fa-f:.]+(?:%\w+)?\])(?::\d{1,5})?")  # a name, an IPv4 or an [IPv6] address
# Words and short numbers, as in `Streaming/Channels/101`, `h264` or `media.amp`. Random letters do not fit.
_WORD = r"(?:[A-Z]?[a-z]{1,12}|[A-Z]{1,4})?\d{0,4}"
_PLAIN = re.compile(rf"{_WORD}(?:[-_.]{_WORD}){{0,3}}(?:\.m3u8)?")
_MOST_DIGITS = 5  # in a part of the path; more indicate an identifier or a password
_SECRET = re.compile(
    r"pass|pwd|user|usr|login|auth|token|key|secret|sig|cred|admin|root|session|account", re.IGNORECASE
)


def redacted(source: str) -> str:
    """Return the address of a stream without credentials; paths of files are not changed.

    User, password, query and fragment are always hidden. A part of the path is hidden unless it consists of words and
    short numbers, and also if it or the part before names a secret (`/token/...`). If an `@` follows the host, the
    password cannot be located, and only the scheme is kept.

    Args:
        source: Address of a stream or path of a file; it may be malformed.

    Returns:
        One line, such as `rtsp://door:554/live/***?***`.
    """
    scheme, separator, rest = source.partition("://")
    if not separator:
        return _without_scheme(source)
    scheme = scheme if _SCHEME.fullmatch(scheme) else _HIDDEN
    authority = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    tail = rest[len(authority) :]
    if "@" in tail:
        return f"{scheme}://{_HIDDEN}"
    host = authority.rpartition("@")[2]
    path, query, _ = re.split(r"([?#])", tail, maxsplit=1) if re.search(r"[?#]", tail) else (tail, "", "")
    shown = host if not host or _HOST.fullmatch(host) else _HIDDEN
    return f"{scheme}://{shown}{_redacted_path(path)}{query and query + _HIDDEN}"


def _without_scheme(source: str) -> str:
    """Hide a password before the last `@` of an address that lacks `://`, and a query that assigns a value."""
    *before, after = re.split("(@|%40)", source)
    shown = f"{_HIDDEN}@{after}" if re.search(":|%3a", "".join(before), re.IGNORECASE) else source
    return re.sub(r"\?[^?]*=.*", f"?{_HIDDEN}", shown, flags=re.DOTALL)


def _redacted_path(path: str) -> str:
    shown, follows_secret = [], False
    for part in path.split("/"):
        names_secret = bool(_SECRET.search(part))
        is_plain = _PLAIN.fullmatch(part) and sum(map(str.isdigit, part)) <= _MOST_DIGITS
        shown.append(part if not part or (is_plain and not names_secret and not follows_secret) else _HIDDEN)
        follows_secret = names_secret
    return "/".join(shown)
