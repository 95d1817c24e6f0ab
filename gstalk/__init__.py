"""A beanstalkd client for gevent: many greenlets share few connections to a job queue.

`Producer` puts jobs, `Consumer` works them off, `Conn` is one connection, and `Config` what they share.
"""

from __future__ import annotations

from gstalk.config import Config, Event, PutParams
from gstalk.conn import Conn, dial
from gstalk.consumer import Consumer
from gstalk.errors import (
    BadFormatError,
    BuriedError,
    Bury,
    CommandTimeoutError,
    ConnectError,
    ConnectionClosedError,
    ConnectionLostError,
    DeadlineSoonError,
    DisconnectedError,
    DrainingError,
    ExpectedCrlfError,
    GstalkError,
    InternalError,
    InvalidArgumentError,
    JobFinishedError,
    JobLostError,
    JobNotFinishedError,
    JobTooBigError,
    NotFoundError,
    NotIgnoredError,
    OutOfMemoryError,
    ProtocolError,
    PutManyError,
    PutTimeoutError,
    RetriesExhaustedError,
    Retry,
    ServerError,
    UnknownCommandError,
    WrongHubError,
)
from gstalk.job import Job
from gstalk.pool.handling import TimeLimitExceeded
from gstalk.producer import Producer
from gstalk.protocol.stats import JobStats, ServerStats, TubeStats
from gstalk.retry import RetryPolicy
from gstalk.uri import Address, parse_uri, validate_uris

__version__ = "0.1.0"

__all__ = [
    "Address",
    "BadFormatError",
    "BuriedError",
    "Bury",
    "CommandTimeoutError",
    "Config",
    "Conn",
    "ConnectError",
    "ConnectionClosedError",
    "ConnectionLostError",
    "Consumer",
    "DeadlineSoonError",
    "DisconnectedError",
    "DrainingError",
    "Event",
    "ExpectedCrlfError",
    "GstalkError",
    "InternalError",
    "InvalidArgumentError",
    "Job",
    "JobFinishedError",
    "JobLostError",
    "JobNotFinishedError",
    "JobStats",
    "JobTooBigError",
    "NotFoundError",
    "NotIgnoredError",
    "OutOfMemoryError",
    "Producer",
    "ProtocolError",
    "PutManyError",
    "PutParams",
    "PutTimeoutError",
    "RetriesExhaustedError",
    "Retry",
    "RetryPolicy",
    "ServerError",
    "ServerStats",
    "TimeLimitExceeded",
    "TubeStats",
    "UnknownCommandError",
    "WrongHubError",
    "dial",
    "parse_uri",
    "validate_uris",
]
