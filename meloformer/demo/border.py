"""What a request must satisfy before anybody looks at what it wants.

A page of this kind has two enemies in the browser of its own user: a foreign site that posts to it,
and a foreign name that is made to mean this machine (DNS rebinding). Browsers say whom they believe
to talk to and on whose behalf; both are checked here.
"""

import ipaddress
import json
import re
from email.message import Message
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from meloformer.errors import MeloFormerError

# Nothing but the page's own files, no frame around it, no guessing of types, nothing remembered.
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

_CONTENT_TYPES = ("application/octet-stream", "application/json")
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]/@]+))(?::\d{1,5})?")
# An address of this server's disk in the message of an error is nobody's business.
_PATH = re.compile(r"(?<![^\s'\"(])(?:[A-Za-z]:\\|/)[^\s'\",;)]*")


class PageError(MeloFormerError):
    """What a visitor is told instead of what was asked for.

    Args:
        code: a short slug, by which the page finds its own words.
        line: the same for those who have none.
        status: of the answer.
        values: that the page's words take.
    """

    def __init__(
        self,
        code: str,
        line: str,
        status: HTTPStatus = HTTPStatus.BAD_REQUEST,
        **values: float | str,
    ) -> None:
        super().__init__(line)
        self.code, self.status, self.values = code, status, values

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"event": "error", "code": self.code, "line": str(self), "values": self.values}


def as_page_error(error: MeloFormerError) -> PageError:
    """The line of an error of ours, without the dashes of flags and without paths.

    >>> str(as_page_error(MeloFormerError("--tempo 5: found /home/me/x.mid; allowed 6/8")))
    'tempo 5: found …; allowed 6/8'
    """
    if isinstance(error, PageError):
        return error
    line = " ".join(str(error).split())
    return PageError("refused", _PATH.sub("…", re.sub(r"(?<!\S)--(?=\w)", "", line)))


def is_loopback(name: str) -> bool:
    """Whether a host's name or address means this machine itself.

    >>> is_loopback("localhost"), is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("a.b")
    (True, True, True, False)
    """
    if name.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def check_sender(headers: Message, host: str, *, changes: bool) -> None:
    """Refuse requests that were meant for, or made by, another site.

    Args:
        headers: of the request.
        host: that the server listens on.
        changes: the request wants work done.

    Raises:
        PageError: it is not for this page, or not from it.
    """
    named = headers.get_all("Host") or []
    name = _host_name(named[0]) if len(named) == 1 else None
    if name is None or not _is_ours(name, host):
        raise PageError(
            "foreign_host",
            "Host: found a name that is not this server's; allowed: the address it listens on",
            HTTPStatus.FORBIDDEN,
        )
    origin = headers.get("Origin")
    site = headers.get("Sec-Fetch-Site", "same-origin")
    is_foreign = origin is not None and _netloc(origin) != named[0].strip().lower()
    if changes and (is_foreign or site not in ("same-origin", "none")):
        raise PageError(
            "foreign_site",
            "Origin: found another site; allowed: requests of this page",
            HTTPStatus.FORBIDDEN,
        )
    # A form of another site can send neither; whoever sends them from there asks first, in vain.
    if changes and headers.get_content_type() not in _CONTENT_TYPES:
        raise PageError(
            "bad_request",
            f"Content-Type: found another one; allowed: {' or '.join(_CONTENT_TYPES)}",
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        )


def _host_name(value: str) -> str | None:
    """Name or address alone, of any port: whoever tunnels comes by another one.

    >>> _host_name("LocalHost:7860"), _host_name("[::1]:80"), _host_name("a b")
    ('localhost', '::1', None)
    """
    match = _HOST.fullmatch(value.strip())
    return (match[1] or match[2]).lower() if match else None


def _netloc(origin: str) -> str | None:
    """Host and port of an origin; None where it is none.

    >>> _netloc("http://LocalHost:7860"), _netloc("http://[")
    ('localhost:7860', None)
    """
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _is_ours(name: str, host: str) -> bool:
    """Whether a browser that was not lied to can have come by this name."""
    if is_loopback(name):
        return True
    if is_loopback(host):
        return False
    # Lies are told of names: a browser that was given an address has come to that address.
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.rstrip(".") == host.lower().rstrip(".")
    return True


def content_length(headers: Message, most: int) -> int:
    """Bytes of the body.

    Raises:
        PageError: none are announced, in an honest way, or too many.
    """
    stated = headers.get_all("Content-Length") or []
    if (
        len(stated) != 1
        or "Transfer-Encoding" in headers
        or not re.fullmatch(r"\d{1,15}", stated[0])
    ):
        raise PageError(
            "no_length",
            "Content-Length: found none; allowed: one number of bytes",
            HTTPStatus.LENGTH_REQUIRED,
        )
    if int(stated[0]) > most:
        raise PageError(
            "too_large",
            f"the request: found {int(stated[0])} bytes; allowed: up to {most}",
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            found=int(stated[0]),
            most=most,
        )
    return int(stated[0])


def read_json(body: bytes) -> dict[str, Any]:
    """The object that a body holds.

    Raises:
        PageError: it holds none.
    """
    try:
        found = json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise PageError("bad_request", "the request: found no JSON; allowed: an object") from error
    if not isinstance(found, dict):
        raise PageError(
            "bad_request", f"the request: found a {type(found).__name__}; allowed: an object"
        )
    return found
