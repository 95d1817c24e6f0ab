"""Replies that no beanstalkd would give: from a grammar, mutated, cut anywhere, held against a plain second parser."""

from __future__ import annotations

import random
import re
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from time import perf_counter
from typing import Any

import gevent
import pytest
from gevent import socket

import gstalk
from gstalk.errors import ProtocolError
from gstalk.protocol import commands, replies
from gstalk.protocol.request import PENDING, Request
from gstalk.protocol.stream import Stream
from tests.faults import reference
from tests.faults.hub import silent_hub
from tests.faults.reference import COMMON, ENDING, GRAMMAR, KEY
from tests.servers import ok

pytestmark = [pytest.mark.soak, pytest.mark.limit(3600)]

STATISTICS = ok('---\nid: 7\nname: "tube"\nos: #1 SMP\nversion: "1.13"\ncurrent-jobs-ready: 3\nuptime: 9\nnew: x\n')
BODIES = [b"", b"x", b"12345678901", b"a\r\nb", b"\r\n", b"DELETED\r\n", bytes(range(256))]
IDS = [1, 7, 7, 7, 2**32, 2**63, 2**64 - 1]
FOREIGN = [b" ", b"0", b"-", b"+", b"\r", b"\n", b"\r\n", b"_", b"\0", b"\x0b", "\u0661".encode()]
SIZES = [b"%d" % size for size in (0, 3, 2**30, 2**30 + 1, 2**31, 2**32, 2**63, 2**64, 10**25)]


def test_second_parser_knows_the_words_of_each_command():
    """Or a new one would never be played, nor its reply compared."""
    assert {command for command, _, _ in GRAMMAR.values()} == {
        each for each in vars(commands).values() if isinstance(each, commands.Command)
    }
    for command, _, forms in GRAMMAR.values():
        words = {*command.replies, *command.refusals, *replies.REFUSALS}
        assert {form.split()[0] for form in forms} | {*COMMON, *ENDING} | {b"EXPECTED_CRLF"} == words | {
            b"EXPECTED_CRLF"
        }, command


# -- what is played ------------------------------------------------------------------------------------------------


def good_reply(rng: random.Random, name: str) -> bytes:
    """A reply as the grammar has it."""
    line, body = rng.choice([*GRAMMAR[name][2].items(), *GRAMMAR[name][2].items(), (rng.choice(list(COMMON)), None)])
    if body is not None and b"OK" in line:
        return ok("---\n- default\n- null\n- 1e5\n") if name.startswith("list") else STATISTICS
    content = rng.choice(BODIES)
    line = line.replace(reference.ID, b"%d" % rng.choice(IDS)).replace(b"(7)", b"7")
    line = line.replace(reference.TUBE, rng.choice([b"default", b"null", b"123", b"a" * 200]))
    line = line.replace(reference.NUMBER, b"%d" % (len(content) if body is not None else rng.choice([0, 1, 2**63])))
    return line + b"\r\n" + (content + b"\r\n" if body is not None else b"")


def mutated(rng: random.Random, stream: bytes) -> bytes:
    where = rng.randrange(len(stream) + 1)
    before, after = stream[:where], stream[where:]
    match rng.randrange(9):
        case 0:
            return before
        case 1:
            return before + bytes([rng.randrange(256)]) + after[1:]
        case 2:
            return before + rng.choice(FOREIGN) + after
        case 3:
            return before + after[rng.randrange(1, 5) :]
        case 4:  # a piece twice, or gone
            return before + stream[rng.randrange(len(stream) + 1) :]
        case 5:
            return re.sub(rb"\d+", lambda m: rng.choice([m[0], m[0], *SIZES]), stream)
        case 6:
            return before + rng.choice([*COMMON, *ENDING, b"NOT_FOUND", b"OK 0"]) + b"\r\n" + after
        case 7:
            return stream + rng.choice([b"\r\n", b"OK 3", b"x" * 300, b"TIMED_OUT\r\n"])
    lines = stream.split(b"\r\n")  # out of order
    rng.shuffle(lines)
    return b"\r\n".join(lines)


def play(rng: random.Random, names: list[str]) -> bytes:
    stream = b"".join(good_reply(rng, name) for name in names)
    for _ in range(rng.choice([0, 1, 1, 2])):
        stream = mutated(rng, stream)
    return stream


def pieces(rng: random.Random, stream: bytes) -> list[bytes]:
    most = 5 if rng.random() < 0.95 else len(stream)
    cuts = sorted(rng.randrange(len(stream) + 1) for _ in range(rng.randrange(most + 1)))
    return [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) if a < b]


# -- the parser ------------------------------------------------------------------------------------------------------


def test_stream_takes_what_the_second_parser_takes_and_nothing_else(rng, many, figures):
    counts: Counter[str] = Counter()
    start = perf_counter()
    for _ in range(many(25_000, 1_000_000)):
        names = rng.choices(list(GRAMMAR), k=rng.randrange(1, 6))
        sent = play(rng, names)
        stream = Stream("fuzz")
        requests = [Request(GRAMMAR[name][0], "fuzz", GRAMMAR[name][1]) for name in names]
        stream.requests.extend(requests)
        broken = None
        for piece in pieces(rng, sent):
            if (broken := stream.receive(piece)) is not None:
                break
        answered = [request for request in requests if request.result is not PENDING or request.error is not None]
        accepted = [request for request in answered if not isinstance(request.error, ProtocolError)]
        expected, verdict = reference.read(names, sent)
        if broken is not None and len(accepted) < len(expected) and expected[len(accepted)].word == b"OK":
            # Statistics are typed: only there may what the second parser takes be refused, never the other way round.
            counts["ill-typed"] += 1
            del expected[len(accepted) :]
            verdict = "refused"
        assert [outcome(request) for request in accepted] == [reference.meaning(reply) for reply in expected], sent
        assert verdict == "bad" or (broken is not None) == (verdict == "refused"), (names, sent, broken)
        assert broken is None or isinstance(broken, ProtocolError)
        assert stream.done == accepted  # the one that broke the protocol waits for `fail`
        assert list(stream.requests) == requests[len(accepted) :]
        counts[verdict] += 1
        counts["replies"] += len(accepted)
    figures |= {"streams": many(25_000, 1_000_000), **counts, "seconds": round(perf_counter() - start, 1)}


def outcome(request: Request) -> Any:
    """What a caller is told, in the words of `reference.meaning`."""
    if request.error is not None:
        return type(request.error)
    if isinstance(request.result, gstalk.ServerStats | gstalk.TubeStats | gstalk.JobStats):
        told = {f.name.replace("_", "-"): getattr(request.result, f.name) for f in fields(request.result)[:-1]}
        return Typed({key: value for key, value in told.items() if value is not None} | request.result.extra)
    return request.result


class Typed(dict[str, Any]):
    """Statistics, equal to their texts."""

    def __eq__(self, texts: object) -> bool:
        return isinstance(texts, dict) and {key: same(value, texts.get(key)) for key, value in self.items()} == texts

    __hash__ = None


def same(value: Any, text: str | None) -> object:
    """The text, if the value is what it says."""
    if text is None or isinstance(value, bool):
        return text if str(value).lower() == text else value
    return text if type(value)(text) == value else value


@pytest.mark.parametrize(
    ("command", "key", "text"),
    [(commands.STATS_JOB, 7, "---\nid: 8\npri: 3\n"), (commands.STATS_TUBE, b"mine", "---\nname: yours\n")],
)
def test_statistics_of_another_job_or_tube_break_the_protocol(command, key, text):
    stream = Stream("fuzz")
    stream.requests.append(Request(command, "fuzz", key))
    assert isinstance(stream.receive(ok(text)), ProtocolError)


# -- sizes -----------------------------------------------------------------------------------------------------------


@contextmanager
def memory(most: int) -> Iterator[None]:
    """At no moment within does Python hold so many bytes more than before."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("line", [b"FOUND 7 %b", b"OK %b"])
@pytest.mark.parametrize(
    "size", [b"1073741825", b"%d" % 2**32, b"%d" % 2**63, b"%d" % 2**64, pytest.param(b"9" * 5000, id="9...")]
)
def test_session_refuses_at_once_a_size_that_no_server_can_hold(line, size):
    stream = Stream("fuzz")
    stream.requests.append(Request(commands.PEEK if b"FOUND" in line else commands.STATS, "fuzz", KEY))
    with memory(100_000):
        assert isinstance(stream.receive(line % size + b"\r\n"), ProtocolError)


@pytest.mark.parametrize("piece", [b"xy", b"x" * 5000])
def test_stream_takes_memory_for_what_came_and_not_for_what_was_announced(piece):
    stream = Stream("fuzz")
    stream.requests.append(Request(commands.PEEK, "fuzz", KEY))
    with memory(3_000_000):
        assert stream.receive(b"FOUND 7 %d\r\nabc" % 2**30) is None
        for _ in range(1_000_000 // len(piece)):
            assert stream.receive(piece) is None


@pytest.mark.parametrize("junk", [b"x" * 1000, b"OK " * 1000, b"\r" * 1000, b"\n" * 1000])
def test_session_refuses_a_line_without_an_end_after_a_few_hundred_bytes(junk):
    stream = Stream("fuzz")
    stream.requests.append(Request(commands.PEEK, "fuzz", KEY))
    received = [stream.receive(junk[n : n + 10]) for n in range(0, 300, 10)]
    assert any(isinstance(broken, ProtocolError) for broken in received)


# -- the connection ---------------------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[gstalk.Conn], Any]] = {
    "put": lambda conn: conn.put("default", b"x"),
    "list-tube-used": lambda conn: conn.list_tube_used(),
    "reserve": lambda conn: conn.reserve_with_timeout(0),
    "reserve-job": lambda conn: conn.reserve_job(KEY),
    "peek": lambda conn: conn.peek(KEY),
    "peek-ready": lambda conn: conn.peek_ready("default"),
    "delete": lambda conn: conn.delete(KEY),
    "release": lambda conn: conn.release(KEY, 5),
    "bury": lambda conn: conn.bury(KEY, 5),
    "touch": lambda conn: conn.touch(KEY),
    "kick": lambda conn: conn.kick("default", 1),
    "kick-job": lambda conn: conn.kick_job(KEY),
    "pause-tube": lambda conn: conn.pause_tube("default", 1),
    "stats": lambda conn: conn.stats(),
    "stats-job": lambda conn: conn.stats_job(KEY),
    "list-tubes": lambda conn: conn.list_tubes(),
}
LATE = 0.2  # the patience of a connection whose server falls silent


class Hostile:
    """A server that plays a stream in pieces to the next connection, and then ends it, or falls silent."""

    def __init__(self) -> None:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.uri = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._listener.close()

    def play(self, parts: list[bytes], *, greets: bool, ends: bool) -> None:
        sock, _ = self._listener.accept()
        with sock:
            try:
                sock.recv(65536)
                if greets:
                    sock.sendall(ok("---\nid: 4a\n"))
                    sock.recv(65536)
                for part in parts:
                    sock.sendall(part)
                    gevent.sleep(0)
                while not ends and sock.recv(65536):
                    pass
            except OSError:
                pass  # refused: it has closed


@pytest.fixture
def hostile() -> Iterator[Hostile]:
    server = Hostile()
    yield server
    server.close()


def test_conn_ends_every_call_with_a_result_or_an_error_of_ours(hostile, rng, many, figures):
    outcomes: Counter[str] = Counter()

    def meet(stream: bytes, names: list[str], parts: list[bytes], greets: bool, ends: bool) -> None:
        server = gevent.spawn(hostile.play, parts, greets=greets, ends=ends)
        try:
            with gstalk.dial(hostile.uri, conn_timeout=5 if ends else LATE) as conn:
                calls = [gevent.spawn(call, CALLS[name], conn) for name in names]
                assert len(gevent.joinall(calls, timeout=20)) == len(calls), (names, stream)
                told = [each.get() for each in calls]
                taken = [not issubclass(each, ProtocolError | gstalk.DisconnectedError) for each in told]
                # What comes before its command has gone out is refused too, so this is an upper bound.
                assert taken == sorted(taken, reverse=True), (names, stream)
                assert sum(taken) <= len(reference.read(names, stream)[0]), (names, stream)
                outcomes.update(each.__name__ for each in told)
        except gstalk.ConnectError:
            outcomes["no connection"] += 1
        server.join()

    with silent_hub():
        for n in range(many(500, 10_000)):
            names = rng.sample(list(CALLS), rng.randrange(1, 6))  # after DEADLINE_SOON a second reserve is not asked
            stream = mutated(rng, b"".join(good_reply(rng, name) for name in names))
            meet(stream, names, pieces(rng, stream), greets=n % 20 > 0, ends=n % 25 > 0)
    figures |= outcomes


def call(method: Callable[[gstalk.Conn], Any], conn: gstalk.Conn) -> type[object]:
    try:
        return type(method(conn))
    except gstalk.GstalkError as error:
        return type(error)


def test_conn_takes_no_memory_for_a_body_that_was_announced_and_never_comes(hostile):
    server = gevent.spawn(hostile.play, [b"FOUND 7 %d\r\n" % 2**30] + [b"x" * 1000] * 100, greets=True, ends=True)
    with memory(5_000_000), gstalk.dial(hostile.uri) as conn, pytest.raises(gstalk.ConnectionLostError):
        conn.peek(KEY)
    server.join()
