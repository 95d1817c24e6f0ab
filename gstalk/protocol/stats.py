"""Statistics, typed, without a YAML library.

beanstalkd writes YAML without quoting (up to 1.12) or with quotes in dictionaries alone (1.13), so that any YAML
loader changes the type of tubes named ``null``, ``123`` or ``1e5`` and takes ``os: #1 SMP`` for a comment. Here a line
is a key, a colon and the rest; what type it has is known from the field.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from functools import cache
from typing import Any, TypeVar

from gstalk.errors import ProtocolError
from gstalk.records import record

__all__ = ["JobStats", "ServerStats", "TubeStats", "parse_dict", "parse_list"]

T = TypeVar("T")


def _lines(data: bytes) -> list[str]:
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise ProtocolError("statistics are not text") from None
    if lines[0] != "---":
        raise ProtocolError(f"statistics begin with {ascii(lines[0][:40])} instead of '---'")
    return [line for line in lines[1:] if line]


def _unquoted(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return text[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    return text


def parse_dict(data: bytes) -> dict[str, str]:
    """Read a dictionary; every value is a str, without the quotes that 1.13 puts around some."""
    found = {}
    for line in _lines(data):
        key, colon, value = line.partition(":")
        if not colon or not key:
            raise ProtocolError(f"statistics have a line that is no pair: {ascii(line[:40])}")
        value = value.strip(" ")
        found[key] = _unquoted(value) if value[:1] == '"' else value
    return found


def parse_list(data: bytes) -> list[str]:
    """Read a list of tubes."""
    found = []
    for line in _lines(data):
        if not line.startswith("- ") or len(line) < 3:
            raise ProtocolError(f"the list has a line that is no entry: {ascii(line[:40])}")
        found.append(_unquoted(line[2:]))
    return found


def _int(text: str) -> int:
    # Some counters are signed in the server (`pause`), none has a plus, blanks or underscores.
    if not (text.isdigit() or text.removeprefix("-").isdigit()) or not text.isascii() or len(text) > 20:
        raise ValueError(text)
    return int(text)


def _float(text: str) -> float:
    whole, _, part = text.partition(".")
    if not (whole.isdigit() and (part or "0").isdigit() and text.isascii() and len(text) < 40):
        raise ValueError(text)
    return float(text)


def _bool(text: str) -> bool:
    return {"true": True, "false": False}[text]


_READ: dict[str, Callable[[str], Any]] = {"int": _int, "str": str, "float": _float, "bool": _bool}


@cache
def _fields(cls: Any) -> dict[str, tuple[str, Callable[[str], Any]]]:
    """From the server's word for a field to ours, and what reads its value; all fields but `extra`."""
    kinds = {name: kind.partition(" ")[0] for name, kind in cls.__annotations__.items() if name != "extra"}
    return {name.replace("_", "-"): (name, _READ[kind]) for name, kind in kinds.items()}


def _parse(cls: type[T], data: bytes) -> T:
    """Make a dataclass of a dictionary: its fields by their type, the rest into `extra`."""
    known = _fields(cls)  # type: ignore[arg-type]  # a class can be hashed
    values: dict[str, Any] = {}
    extra: dict[str, str] = {}
    for key, text in parse_dict(data).items():
        if key in known:
            name, read = known[key]
            try:
                values[name] = read(text)
            except (ValueError, KeyError):
                raise ProtocolError(f"{key} is {ascii(text[:40])}") from None
        else:
            extra[key] = text
    return cls(**values, extra=extra)  # type: ignore[call-arg]  # T is one of the three below


@record(frozen=True)
class ServerStats:
    """What ``stats`` tells; fields as in doc/protocol.txt. A field that the server lacks is `None`."""

    current_jobs_urgent: int | None = None
    current_jobs_ready: int | None = None
    current_jobs_reserved: int | None = None
    current_jobs_delayed: int | None = None
    current_jobs_buried: int | None = None
    cmd_put: int | None = None
    cmd_peek: int | None = None
    cmd_peek_ready: int | None = None
    cmd_peek_delayed: int | None = None
    cmd_peek_buried: int | None = None
    cmd_reserve: int | None = None
    cmd_reserve_with_timeout: int | None = None
    cmd_delete: int | None = None
    cmd_release: int | None = None
    cmd_use: int | None = None
    cmd_watch: int | None = None
    cmd_ignore: int | None = None
    cmd_bury: int | None = None
    cmd_kick: int | None = None
    cmd_touch: int | None = None
    cmd_stats: int | None = None
    cmd_stats_job: int | None = None
    cmd_stats_tube: int | None = None
    cmd_list_tubes: int | None = None
    cmd_list_tube_used: int | None = None
    cmd_list_tubes_watched: int | None = None
    cmd_pause_tube: int | None = None
    job_timeouts: int | None = None
    total_jobs: int | None = None
    max_job_size: int | None = None
    current_tubes: int | None = None
    current_connections: int | None = None
    current_producers: int | None = None
    current_workers: int | None = None
    current_waiting: int | None = None
    total_connections: int | None = None
    pid: int | None = None
    version: str | None = None
    rusage_utime: float | None = None
    rusage_stime: float | None = None
    uptime: int | None = None
    binlog_oldest_index: int | None = None
    binlog_current_index: int | None = None
    binlog_records_migrated: int | None = None
    binlog_records_written: int | None = None
    binlog_max_size: int | None = None
    draining: bool | None = None
    id: str | None = None
    hostname: str | None = None
    os: str | None = None
    platform: str | None = None
    extra: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes) -> ServerStats:
        """Read an OK reply's body; `ProtocolError` where it isn't one."""
        return _parse(cls, data)


@record(frozen=True)
class TubeStats:
    """What ``stats-tube`` tells; fields as in doc/protocol.txt. A field that the server lacks is `None`."""

    name: str | None = None
    current_jobs_urgent: int | None = None
    current_jobs_ready: int | None = None
    current_jobs_reserved: int | None = None
    current_jobs_delayed: int | None = None
    current_jobs_buried: int | None = None
    total_jobs: int | None = None
    current_using: int | None = None
    current_watching: int | None = None
    current_waiting: int | None = None
    cmd_delete: int | None = None
    cmd_pause_tube: int | None = None
    pause: int | None = None
    pause_time_left: int | None = None
    extra: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes) -> TubeStats:
        """Read an OK reply's body; `ProtocolError` where it isn't one."""
        return _parse(cls, data)


@record(frozen=True)
class JobStats:
    """What ``stats-job`` tells; fields as in doc/protocol.txt. A field that the server lacks is `None`."""

    id: int | None = None
    tube: str | None = None
    state: str | None = None
    pri: int | None = None
    age: int | None = None
    delay: int | None = None
    ttr: int | None = None
    time_left: int | None = None
    file: int | None = None
    reserves: int | None = None
    timeouts: int | None = None
    releases: int | None = None
    buries: int | None = None
    kicks: int | None = None
    extra: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes) -> JobStats:
        """Read an OK reply's body; `ProtocolError` where it isn't one."""
        return _parse(cls, data)
