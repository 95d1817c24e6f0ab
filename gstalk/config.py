"""What Conn, Producer and Consumer share: their settings, a put's parameters, and the event that hooks get."""

from __future__ import annotations

import dataclasses
import ssl
import typing
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypedDict

from gstalk.errors import InvalidArgumentError
from gstalk.job import Job, Seconds
from gstalk.protocol import checks, commands
from gstalk.records import record
from gstalk.retry import RetryPolicy

if TYPE_CHECKING:
    from typing_extensions import Unpack  # type checkers bring it with them
else:
    # Annotations may be read at run time, too; Python 3.10 lacks it, and `Optional` is as good there as another one.
    Unpack = getattr(typing, "Unpack", typing.Optional)

__all__ = [
    "DEFAULT_PARAMS",
    "EVENT_KINDS",
    "LEFT_OUT",
    "Config",
    "Event",
    "Options",
    "Plain",
    "PutParams",
    "Unpack",
    "configure",
    "put_params",
]

#: What a handler or a hook may give back; it is dropped. Not `object`, or type checkers would let an `async def` pass:
#: its call gives back a coroutine, which is an object too.
Plain = float | str | bytes | list[Any] | tuple[Any, ...] | dict[Any, Any] | set[Any] | None

#: Stands for an argument that was left out, where `None` means something else.
LEFT_OUT: Any = type("LeftOut", (), {"__repr__": lambda self: "..."})()


class _Head:
    """What a put with these parameters begins with. Not in `vars()`, which has the fields alone."""

    __slots__ = ("head",)

    head: bytes


@record(frozen=True)
class PutParams(_Head):
    """A put's parameters, to be used again.

    Attributes:
        priority: 0 to 4294967295, 0 the most urgent.
        delay: Seconds until the job is ready, rounded up to whole ones.
        ttr: Seconds that whoever reserves the job may take, at least 1, rounded up.
    """

    priority: int = 1024
    delay: int | float | timedelta = 0
    ttr: int | float | timedelta = 60

    def __init__(  # spelled out: one is made for each put with keywords
        self, priority: int = 1024, delay: int | float | timedelta = 0, ttr: int | float | timedelta = 60
    ) -> None:
        vars(self).update(priority=priority, delay=delay, ttr=ttr)
        self.__post_init__()

    def __post_init__(self) -> None:
        priority = checks.check_priority(self.priority)
        if priority is not self.priority:  # seldom, and puts with keywords come through here
            object.__setattr__(self, "priority", priority)
        delay, ttr = checks.check_delay(self.delay), checks.check_ttr(self.ttr)
        object.__setattr__(self, "delay", delay)
        object.__setattr__(self, "ttr", ttr)
        object.__setattr__(self, "head", commands.put_head(priority, delay, ttr))

    def __getstate__(self) -> dict[str, Any]:
        return vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.__post_init__()


DEFAULT_PARAMS = PutParams()


def put_params(params: PutParams | None, priority: int | None, delay: Seconds | None, ttr: Seconds | None) -> PutParams:
    """Put together what a put is given: its `params` or none, and keywords that override it."""
    if params is None:
        params = DEFAULT_PARAMS
    elif type(params) is not PutParams:
        if not isinstance(params, PutParams):
            raise TypeError(f"params must be a PutParams, got {type(params).__name__}")
        params = PutParams(params.priority, params.delay, params.ttr)  # a subclass may have left out the checks
    if priority is None and delay is None and ttr is None:
        return params
    return PutParams(
        priority=params.priority if priority is None else priority,
        delay=params.delay if delay is None else delay,
        ttr=params.ttr if ttr is None else ttr,
    )


#: Every kind of `Event`, and when it is told; docs/events.md says the same at length.
EVENT_KINDS = {
    "connect": "a Producer's or Consumer's connection is up; above `attempt` 1 it was up before",
    "disconnect": "such a connection was lost",
    "put": "a put has ended, well or with an exception, after `attempt` tries",
    "put_retry": "a Producer's try to put has failed, and another follows",
    "handling": "a Consumer calls a handler; `duration` is how long the job was ready, where that is known",
    "handled": "it has ended, and its job has its fate; `exception` is what it raised, `Retry` and `Bury` included",
    "given_up": "a job's attempts are used up, and it was buried, deleted, or finished by `given_up_func`",
    "delete": "a delete of a job has ended, well or with an exception",
    "release": "the same of a release",
    "bury": "the same of a bury",
}


@record(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened, for `Config.event_func`. What doesn't apply, or isn't known, is `None`.

    Attributes:
        kind: One of `EVENT_KINDS`, which says what the other fields mean there.
        uri: The server.
        tube: The tube, if known.
        job_id: The job.
        attempt: Which one this is, from 1.
        exception: What went wrong; `None`: nothing did.
        duration: Seconds that it took.
    """

    kind: str
    uri: str | None = None
    tube: str | None = None
    job_id: int | None = None
    attempt: int | None = None
    exception: BaseException | None = None
    duration: float | None = None

    def __init__(  # spelled out: one is made for each put and each job
        self,
        *,
        kind: str,
        uri: str | None = None,
        tube: str | None = None,
        job_id: int | None = None,
        attempt: int | None = None,
        exception: BaseException | None = None,
        duration: float | None = None,
    ) -> None:
        write = object.__setattr__
        write(self, "kind", kind)
        write(self, "uri", uri)
        write(self, "tube", tube)
        write(self, "job_id", job_id)
        write(self, "attempt", attempt)
        write(self, "exception", exception)
        write(self, "duration", duration)


@record(frozen=True, kw_only=True)
class Config:
    """Settings; checked when made. Durations are seconds: int, float or timedelta.

    Attributes:
        multiply: Connections per URI.
        num_greenlets: Handlers running at once in `Consumer.receive`, so jobs in flight.
        conn_timeout: Seconds to connect, and seconds without progress after which a connection is closed; `None`:
            no limit. Raise it if a slow line brings `CommandTimeoutError`.
        put_timeout: Seconds for a whole `Producer.put`; `None`: no limit.
        reserve_timeout: Seconds that one reserve waits on the server before it is sent anew; at least 1.
        reconnect_timeout: The longest pause, in seconds, between two attempts to connect.
        stop_timeout: Seconds that `stop` lets handlers and puts finish; `None`: no limit.
        tls_context: For TLS; `None`: the system's CAs, host name checked, TLS 1.2 or newer.
        info_func: Called with a message; `None`: the logger "gstalk". No hook may wait.
        error_func: Called with an exception and a message; `None`: the logger "gstalk".
        event_func: Called with an `Event`; `None`: nobody listens, and it costs nothing.
        retry: What becomes of a job whose handler failed.
        retry_ambiguous: Whether a put whose reply was lost is tried again; the job may then exist twice.
        given_up_func: Called with a job whose attempts are used up, and what it failed with, before the job is buried
            or deleted; it may be finished there. One that raises is logged, and the job is buried.
        auto_delete: Whether a handler that returns without finishing its job deletes it.
        auto_touch: Whether jobs in flight are touched at a third of their ttr.
        time_limit: Seconds that a handler may run; `None`: no limit.
    """

    multiply: int = 1
    num_greenlets: int = 10
    conn_timeout: float | None = 5
    put_timeout: float | None = 15
    reserve_timeout: float = 30
    reconnect_timeout: float = 3
    stop_timeout: float | None = 25
    tls_context: ssl.SSLContext | None = None
    info_func: Callable[[str], Plain] | None = None
    error_func: Callable[[BaseException, str], Plain] | None = None
    event_func: Callable[[Event], Plain] | None = None
    retry: RetryPolicy = RetryPolicy()
    retry_ambiguous: bool = True
    given_up_func: Callable[[Job, BaseException], Plain] | None = None
    auto_delete: bool = False
    auto_touch: bool = False
    time_limit: float | None = None

    if TYPE_CHECKING:  # the fields above are what a Config holds; it takes a timedelta for a duration, too

        def __init__(self, **options: Unpack[Options]) -> None: ...

    def __post_init__(self) -> None:
        for name in ("multiply", "num_greenlets"):
            object.__setattr__(self, name, checks.whole_number(name, getattr(self, name), 1, 2**20))
        for name in ("conn_timeout", "put_timeout", "stop_timeout", "time_limit"):
            self._duration(name, may_be_none=True)
        for name in ("reserve_timeout", "reconnect_timeout"):
            self._duration(name)
        for name in ("conn_timeout", "reconnect_timeout", "time_limit"):
            if getattr(self, name) == 0:
                raise InvalidArgumentError(f"{name} must be more than 0 seconds")
        if self.reserve_timeout < 1:
            raise InvalidArgumentError(f"reserve_timeout must be 1 second or more, got {self.reserve_timeout}")
        if self.reserve_timeout >= 2**31:  # the server would wait for ever, or refuse it
            raise InvalidArgumentError(f"reserve_timeout must be below 2147483648 seconds, got {self.reserve_timeout}")
        if self.tls_context is not None and not hasattr(self.tls_context, "wrap_bio"):
            raise TypeError(f"tls_context must be an ssl.SSLContext, got {type(self.tls_context).__name__}")
        for name, arguments in (("info_func", 1), ("error_func", 2), ("event_func", 1), ("given_up_func", 2)):
            value = getattr(self, name)
            if value is not None:
                checks.check_callable(name, value, arguments)
        if not isinstance(self.retry, RetryPolicy):
            raise TypeError(f"retry must be a RetryPolicy, got {type(self.retry).__name__}")
        for name in ("retry_ambiguous", "auto_delete", "auto_touch"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, got {type(getattr(self, name)).__name__}")

    def replace(self, **options: Unpack[Options]) -> Config:
        """Make a copy with some fields changed; an unknown one is a `TypeError`."""
        fields: dict[str, Any] = {**options}
        return dataclasses.replace(self, **fields) if fields else self

    def _duration(self, name: str, may_be_none: bool = False) -> None:
        value = getattr(self, name)
        if value is None and may_be_none:
            return
        object.__setattr__(self, name, checks.seconds(name, value))


class Options(TypedDict, total=False):
    """The fields of `Config` as keyword arguments: what `dial`, `Producer`, `Consumer` and `Config.replace` take.

    For type checkers and editors alone. A function of your own that hands options on says so too:
    ``def consumer(**options: Unpack[gstalk.config.Options])``.
    """

    multiply: int
    num_greenlets: int
    conn_timeout: float | timedelta | None
    put_timeout: float | timedelta | None
    reserve_timeout: float | timedelta
    reconnect_timeout: float | timedelta
    stop_timeout: float | timedelta | None
    tls_context: ssl.SSLContext | None
    info_func: Callable[[str], Plain] | None
    error_func: Callable[[BaseException, str], Plain] | None
    event_func: Callable[[Event], Plain] | None
    retry: RetryPolicy
    retry_ambiguous: bool
    given_up_func: Callable[[Job, BaseException], Plain] | None
    auto_delete: bool
    auto_touch: bool
    time_limit: float | timedelta | None


def configure(config: Config | None, options: Options) -> Config:
    """Put together what `dial`, `Producer` and `Consumer` are given: a Config or none, and fields that override it."""
    if config is None:
        return Config(**options)
    if not isinstance(config, Config):
        kind = type(config).__name__
        raise TypeError(f"config must be a gstalk.Config, got {kind}; fields of one may be given as keywords")
    return config.replace(**options)
