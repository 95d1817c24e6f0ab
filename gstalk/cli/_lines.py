"""A job as a line of JSON, which `dump` writes and `load` reads, and lines of any input in bounded memory."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import gevent

import gstalk

__all__ = ["MAX_JOB_SIZE", "BadLine", "Row", "dumps", "encode", "lines", "params_of", "parse", "shown"]

CHUNK = 65536
MAX_JOB_SIZE = 65535  # of a server that does not tell


class Row(NamedTuple):
    """A job to be put."""

    tube: str
    body: bytes
    params: gstalk.PutParams


class BadLine(ValueError):
    """A line that is no job; the message says why."""


def params_of(stats: gstalk.JobStats) -> gstalk.PutParams:
    """What to put a job with so that it is the same: the seconds left of a delay, rounded up, since the server rounds
    them down."""
    delay = (stats.time_left or 0) + 1 if stats.state == "delayed" else 0
    return gstalk.PutParams(priority=stats.pri or 0, delay=delay, ttr=stats.ttr or 1)


def shown(tube: str | None, body: bytes, params: gstalk.PutParams) -> dict[str, Any]:
    """The fields of a job's line."""
    fields = {"tube": tube, "priority": params.priority, "delay": params.delay, "ttr": params.ttr}
    try:
        return {**fields, "body": body.decode("utf-8")}
    except UnicodeDecodeError:
        return {**fields, "body_base64": base64.b64encode(body).decode("ascii")}


def dumps(fields: dict[str, Any]) -> str:
    """A line of JSON without its end. No control character is in it, whatever the fields hold."""
    return json.dumps(fields).replace("\x7f", "\\u007f")  # the one that JSON leaves as it is


def encode(tube: str, body: bytes, params: gstalk.PutParams) -> bytes:
    """A job's line."""
    return dumps(shown(tube, body, params)).encode("ascii") + b"\n"


def parse(line: bytes | None) -> Row:
    """Read a job's line.

    Raises:
        BadLine: It isn't one.
    """
    if line is None:
        raise BadLine("longer than any job of this server can be")
    try:
        fields = json.loads(line)
    except ValueError:
        raise BadLine("not JSON" if line.endswith(b"\n") else "cut off: not JSON, and without a line end") from None
    except RecursionError:
        raise BadLine("nested too deep") from None
    if not isinstance(fields, dict):
        raise BadLine("not a JSON object")
    for ignored in ("id", "state", "uri"):  # what `peek --json` tells beyond a job's line
        fields.pop(ignored, None)
    body = _body(fields)
    if not isinstance(tube := fields.pop("tube", None), str):
        raise BadLine("tube is missing, or no string")
    numbers = {name: fields.pop(name) for name in ("priority", "delay", "ttr") if name in fields}
    if fields:
        raise BadLine(f"unknown field {ascii(min(fields)[:40])}")
    try:
        gstalk.protocol.checks.check_tube(tube)
        return Row(tube, body, gstalk.PutParams(**numbers))
    except (TypeError, gstalk.InvalidArgumentError) as error:
        raise BadLine(str(error)) from None


def _body(fields: dict[str, Any]) -> bytes:
    if ("body" in fields) == ("body_base64" in fields):
        raise BadLine("needs either body or body_base64")
    name = "body" if "body" in fields else "body_base64"
    text = fields.pop(name)
    if not isinstance(text, str):
        raise BadLine(f"{name} is no string")
    try:
        return text.encode("utf-8") if name == "body" else base64.b64decode(text, validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError):
        raise BadLine("body is no Unicode text" if name == "body" else "body_base64 is no base64") from None


def lines(fd: int, longest: int) -> Iterator[list[bytes | None]]:
    """Read lines as they come, each with its end: each time all that one read completed.

    A line longer than `longest` bytes is read over, and `None` stands for it.
    """
    rest = bytearray()
    too_long = False
    while data := _read(fd):
        rest += data
        end = rest.rfind(b"\n", max(len(rest) - len(data), 0)) + 1
        if end:
            # Not `splitlines`: a carriage return is part of a line.
            found: list[bytes | None] = [line + b"\n" for line in bytes(rest[: end - 1]).split(b"\n")]
            if too_long:
                found[0], too_long = None, False
            yield found
            del rest[:end]
        if len(rest) > longest:
            too_long = True
            rest.clear()
    if too_long:
        yield [None]
    elif rest:
        yield [bytes(rest)]


def _read(fd: int) -> bytes:
    gevent.sleep(0)  # a signal that came a moment ago strikes here, not when the read that blocks the hub is over
    return os.read(fd, CHUNK)
