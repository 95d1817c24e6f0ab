"""Where a server is: the forms that an address may be written in. Nothing here looks a name up."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gstalk.errors import InvalidArgumentError
from gstalk.protocol import checks
from gstalk.records import record

__all__ = ["Address", "is_ipv6", "parse_uri", "server_name", "validate_uris"]

PLAIN_PORT, TLS_PORT = 11300, 11400
MAX_PATH = 107  # sockaddr_un has 108 bytes, the last of them NUL

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_\-]{0,62})"  # a name's parts have 63 characters at most
_HOST = rf"{_LABEL}(?:\.{_LABEL})*\.?"  # compiled when the first URI is read, not at import; `re` keeps it
MAX_HOST = 253  # characters, a final dot not counted: what DNS can carry


@record(frozen=True)
class Address:
    """A server's address: host and port, or the path of a unix socket.

    `str()` gives its canonical URI.
    """

    scheme: str
    host: str | None = None
    port: int | None = None
    path: str | None = None

    @property
    def is_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme in ("beanstalks", "tls")

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix://{self.path}"
        host = f"[{self.host}]" if self.host is not None and ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def parse_uri(text: str) -> Address:
    """Read `host`, `host:port`, `[::1]:port`, `beanstalk://`, `beanstalks://`, `tls://` or `unix:///path`.

    Raises:
        TypeError: It isn't a str.
        InvalidArgumentError: It is malformed, or has user info, a query or a fragment.
    """
    text = checks.text("a server URI", text)
    if not text.isascii() or not text.isprintable() or " " in text:
        raise _invalid(text, "only printable ASCII characters are allowed")
    scheme, mark, rest = text.partition("://")
    if not mark:
        scheme, rest = "beanstalk", text
    scheme = scheme.lower()
    if scheme not in ("beanstalk", "beanstalks", "tls", "unix"):
        raise _invalid(text, "scheme must be beanstalk, beanstalks, tls or unix")
    for sign, what in (("@", "user info"), ("?", "a query"), ("#", "a fragment")):
        if sign in rest:
            raise _invalid(text, f"{what} has no meaning here")
    if scheme == "unix":
        if not rest.startswith("/") or rest == "/":
            raise _invalid(text, "a unix socket needs an absolute path: unix:///path")
        if len(rest) > MAX_PATH:
            raise _invalid(text, f"the path has {len(rest)} bytes, at most {MAX_PATH} allowed")
        return Address("unix", path=rest)
    rest = rest.removesuffix("/") if mark else rest
    if rest.startswith("["):
        host, closed, port = rest[1:].partition("]")
        if not closed or not is_ipv6(host) or (port and not port.startswith(":")):
            raise _invalid(text, "malformed IPv6 address")
        number = port[1:] if port else None
    else:
        host, colon, port = rest.partition(":")
        number = port if colon else None
        if not re.fullmatch(_HOST, host) or len(host.removesuffix(".")) > MAX_HOST:
            raise _invalid(text, "malformed host name")
    if number is None:
        return Address(scheme, host=host, port=TLS_PORT if scheme in ("beanstalks", "tls") else PLAIN_PORT)
    if not re.fullmatch(r"[0-9]{1,5}", number) or not 1 <= int(number) <= 65535:
        raise _invalid(text, "port must be a number from 1 to 65535")
    return Address(scheme, host=host, port=int(number))


def validate_uris(uris: str | Iterable[str]) -> list[Address]:
    """Check a list of URIs; one str means a list of one.

    Raises:
        TypeError: It is neither a str nor an iterable of str.
        InvalidArgumentError: One is malformed, or there is none.
    """
    addresses = [parse_uri(uri) for uri in checks.texts("uris", uris)]
    if not addresses:
        raise InvalidArgumentError("at least one server URI is needed")
    return addresses


def server_name(host: str) -> str:
    """Make of a host what TLS asks a server for, and what its certificate must name.

    The dot at the end of an absolute name is for the look-up alone, and so is the zone of a link-local address
    (``fe80::1%eth0``). Names are the same in capitals, but not every server knows.
    """
    return host.partition("%")[0].removesuffix(".").lower()


def is_ipv6(host: str) -> bool:
    """Tell whether it is an IPv6 address, without brackets; a zone may follow (``fe80::1%eth0``).

    Read here, and not by `ipaddress`: to import that took a tenth of the time of gstalk's own import.
    """
    address, percent, zone = host.partition("%")
    if percent and not re.fullmatch("[^%/]+", zone):
        return False
    front, _, last = address.rpartition(":")
    if "." in last:  # the last four bytes may be written as those of IPv4 are
        if not _is_ipv4(last):
            return False
        address = f"{front}:0:0"
    halves = address.split("::")  # that stands once at most, for a group of zeros or more
    groups = [group for half in halves if half for group in half.split(":")]
    fits = len(groups) == 8 if len(halves) == 1 else len(halves) == 2 and len(groups) < 8
    return fits and all(re.fullmatch("[0-9A-Fa-f]{1,4}", group) for group in groups)


def _is_ipv4(text: str) -> bool:
    numbers = text.split(".")
    return len(numbers) == 4 and all(re.fullmatch("0|[1-9][0-9]{0,2}", each) and int(each) < 256 for each in numbers)


def _invalid(text: str, why: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"invalid server URI {ascii(text)}: {why}")
