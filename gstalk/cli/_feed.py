"""Putting a job for each line of an input, pipelined, in order, and in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import gevent

import gstalk
from gstalk.cli._lines import BadLine, Row
from gstalk.cli._output import complain, exit_code
from gstalk.errors import TakesNoJobs

__all__ = ["feed"]

IN_FLIGHT = 64
LAST_SECONDS = 2.0  # after an interruption: time in which what is under way may end

Result = int | BadLine | gstalk.GstalkError


def feed(
    conn: gstalk.Conn,
    batches: Iterable[Sequence[bytes | None]],
    read: Callable[[bytes | None], Row],
    stored: Callable[[list[int]], None],
) -> int:
    """Put the lines' jobs. A line that is bad or refused is named, and doesn't stop the others.

    Nothing is in flight while the next batch is waited for, so that a slow input may block.

    Args:
        read: Makes a job of a line, or raises `BadLine`.
        stored: Called with the ids of each batch, in order.

    Returns:
        The exit code.
    """
    code = before = 0
    for batch in batches:
        results, interruption = _put(conn, batch, read)
        stored([result for result in results if isinstance(result, int)])
        errors = [(number, result) for number, result in enumerate(results) if not isinstance(result, int)]
        if any(_is_final(error) for _, error in errors):
            last = max((number for number, result in enumerate(results) if _may_be_there(result)), default=-1)
            for number, error in errors:
                code = max(code, _code(error))
                if number > last:
                    complain(f"line {before + number + 1}: {error}; nothing after line {before + last + 1} was put")
                    break
                complain(f"line {before + number + 1}: {error}")
            else:
                complain(f"nothing after line {before + last + 1} was put")
            return code
        for number, error in errors:
            code = max(code, _code(error))
            complain(f"line {before + number + 1}: {error}")
        if interruption is not None:
            raise interruption
        before += len(batch)
    return code


def _put(
    conn: gstalk.Conn, batch: Sequence[bytes | None], read: Callable[[bytes | None], Row]
) -> tuple[list[Result], BaseException | None]:
    """Put a batch; the results are of all its lines, or of those that were put when it was interrupted."""
    results: dict[int, Result] = {}
    todo = iter(enumerate(batch))
    interruption: BaseException | None = None

    def work() -> None:
        for number, line in todo:
            try:
                results[number] = conn.put(*read(line))
            except (BadLine, gstalk.GstalkError) as error:
                results[number] = error
            if interruption is not None:
                return

    # They take lines and put them in turn, so the jobs reach the server in the lines' order.
    workers = [gevent.spawn(work) for _ in range(min(IN_FLIGHT, len(batch)))]
    try:
        gevent.joinall(workers, raise_error=True)
    except BaseException as error:
        interruption = error
        gevent.joinall(workers, LAST_SECONDS)
    finally:
        gevent.killall(workers)
    return [results[number] for number in sorted(results)], interruption


def _is_final(error: Result) -> bool:
    """Whether there is no use in going on."""
    return isinstance(error, gstalk.DisconnectedError | gstalk.ProtocolError | TakesNoJobs)


def _may_be_there(result: Result) -> bool:
    return isinstance(result, int | gstalk.BuriedError | gstalk.InternalError) or getattr(result, "sent", "") == "maybe"


def _code(error: Result) -> int:
    return exit_code(error) if isinstance(error, gstalk.DisconnectedError) else 1
