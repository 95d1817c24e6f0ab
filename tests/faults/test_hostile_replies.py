"""Replies that no beanstalkd would give: from a grammar, mutated, cut anywhere, held against a plain second parser."""

from __future__ import annotations

import random
import re
import resource
from collections import Counter
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent import socket

import gstalk
from gstalk.errors import ProtocolError
from gstalk.protocol import commands
from gstalk.protocol.session import PENDING, Session, Slot
from tests.servers import ok

pytestmark = [pytest.mark.soak, pytest.mark.limit(3600)]

KEY = 7  # the id that commands on one job are about
ID = rb"[1-9][0-9]{0,19}"
NUMBER = rb"0|[1-9][0-9]{0,19}"
TUBE = rb"[A-Za-z0-9+/;.$_()][A-Za-z0-9\-+/;.$_()]{0,199}"
DICT = rb"---\n(?:[^\n:]+:[^\n]*\n|\n)*(?:[^\n:]+:[^\n]*)?"
LIST = rb"---\n(?:- [^\n]+\n|\n)*(?:- [^\n]+)?"

#: A command, its key, and its good replies: a line's pattern, and that of the body behind it.
GRAMMAR: dict[str, tuple[commands.Command, Any, dict[bytes, bytes | None]]] = {
    "put": (commands.PUT, None, {b"INSERTED (%b)" % ID: None, b"BURIED (%b)" % ID: None, b"JOB_TOO_BIG": None}),
    "use": (commands.USE, b"tube", {rb"USING tube": None}),
    "list-tube-used": (commands.LIST_TUBE_USED, None, {b"USING (%b)" % TUBE: None}),
    "reserve": (
        commands.RESERVE,
        None,
        {b"RESERVED (%b) (%b)" % (ID, NUMBER): b".*", b"TIMED_OUT": None, b"DEADLINE_SOON": None},
    ),
    "reserve-job": (commands.RESERVE_JOB, KEY, {b"RESERVED 7 (%b)" % NUMBER: b".*", b"NOT_FOUND": None}),
    "peek": (commands.PEEK, KEY, {b"FOUND 7 (%b)" % NUMBER: b".*", b"NOT_FOUND": None}),
    "delete": (commands.DELETE, KEY, {b"DELETED": None, b"NOT_FOUND": None}),
    "release": (commands.RELEASE, KEY, {b"RELEASED": None, b"BURIED": None, b"NOT_FOUND": None}),
    "bury": (commands.BURY, KEY, {b"BURIED": None, b"NOT_FOUND": None}),
    "touch": (commands.TOUCH, KEY, {b"TOUCHED": None, b"NOT_FOUND": None}),
    "watch": (commands.WATCH, None, {b"WATCHING (%b)" % NUMBER: None}),
    "ignore": (commands.IGNORE, None, {b"WATCHING (%b)" % NUMBER: None, b"NOT_IGNORED": None}),
    "kick": (commands.KICK, None, {b"KICKED (%b)" % NUMBER: None}),
    "kick-job": (commands.KICK_JOB, KEY, {b"KICKED": None, b"NOT_FOUND": None}),
    "pause-tube": (commands.PAUSE_TUBE, None, {b"PAUSED": None, b"NOT_FOUND": None}),
    "stats": (commands.STATS, None, {b"OK (%b)" % NUMBER: DICT}),
    "stats-tube": (commands.STATS_TUBE, None, {b"OK (%b)" % NUMBER: DICT, b"NOT_FOUND": None}),
    "stats-job": (commands.STATS_JOB, KEY, {b"OK (%b)" % NUMBER: DICT, b"NOT_FOUND": None}),
    "list-tubes": (commands.LIST_TUBES, None, {b"OK (%b)" % NUMBER: LIST}),
}
COMMON = [b"OUT_OF_MEMORY", b"INTERNAL_ERROR", b"DRAINING"]
ENDING = [b"BAD_FORMAT", b"UNKNOWN_COMMAND", b"EXPECTED_CRLF"]
PATTERNS = {
    name: [(re.compile(line), None if body is None else re.compile(body, re.DOTALL)) for line, body in replies.items()]
    for name, (_, _, replies) in GRAMMAR.items()
}


def reference(names: list[str], stream: bytes) -> list[bytes]:
    """The plain parser: the lines, with their bodies, of all replies up to the first that breaks the protocol."""
    accepted = []
    for name in names:
        line, mark, rest = stream.partition(b"\r\n")
        if not mark:
            break
        if line not in COMMON:
            match = next(((m, body) for form, body in PATTERNS[name] if (m := form.fullmatch(line))), None)
            if match is None or any(int(n) >= 2**64 for n in match[0].groups() if n.isdigit()):
                break
            if match[1] is not None:
                size = int(match[0].groups()[-1])
                if size > 2**30 or rest[size : size + 2] != b"\r\n" or not match[1].fullmatch(rest[:size]):
                    break
                line, rest = line + rest[:size], rest[size + 2 :]
        accepted.append(line)
        stream = rest
    return accepted


# -- what is played ------------------------------------------------------------------------------------------------


def good_reply(rng: random.Random, name: str) -> bytes:
    body = rng.choice([b"", b"x", b"12345678901", b"a\r\nb", b"\r\n", bytes(range(256))])
    size = b"%d" % len(body)
    job_id = b"%d" % rng.choice([1, 7, 7, 7, 2**32, 2**64 - 1])
    match name:
        case "stats" | "stats-tube" | "stats-job":
            return ok('---\nid: 7\nname: "tube"\nos: #1 SMP\nversion: "1.13"\ncurrent-jobs-ready: 3\npri: 9\n')
        case "list-tubes":
            return ok("---\n- default\n- null\n- 1e5\n")
        case "reserve":
            return (
                rng.choice([b"RESERVED %b %b\r\n%b" % (job_id, size, body), b"TIMED_OUT", b"DEADLINE_SOON"]) + b"\r\n"
            )
        case "reserve-job" | "peek":
            word = b"FOUND" if name == "peek" else b"RESERVED"
            return rng.choice([b"%b 7 %b\r\n%b" % (word, size, body), b"NOT_FOUND"]) + b"\r\n"
        case "put":
            return rng.choice([b"INSERTED %b", b"INSERTED %b", b"BURIED %b"]) % job_id + b"\r\n"
        case "list-tube-used":
            return rng.choice([b"USING default\r\n", b"USING null\r\n", b"USING %b\r\n" % (b"t" * 200)])
    line = rng.choice(list(GRAMMAR[name][2]))
    return re.sub(rb"\(.*\)", lambda _: b"%d" % rng.choice([0, 1, 10, 2**63]), line) + b"\r\n"


def mutated(rng: random.Random, stream: bytes) -> bytes:
    where = rng.randrange(len(stream) + 1)
    match rng.randrange(9):
        case 0:
            return stream[:where]
        case 1:
            return stream[:where] + bytes([rng.randrange(256)]) + stream[where + 1 :]
        case 2:
            return (
                stream[:where]
                + rng.choice([b" ", b"0", b"-", b"+", b"\r", b"\n", b"\r\n", b"_", b"\0"])
                + stream[where:]
            )
        case 3:
            return stream[:where] + stream[where + rng.randrange(1, 5) :]
        case 4:
            return stream[:where] + stream[rng.randrange(len(stream) + 1) :]
        case 5:
            return re.sub(rb"\d+", lambda m: rng.choice([m[0], b"0", b"%d" % 2 ** rng.choice([31, 63, 64])]), stream)
        case 6:
            return rng.choice([*COMMON, *ENDING]) + b"\r\n" + stream[where:]
        case 7:
            return stream + rng.choice([b"\r\n", b"OK 3", b"x" * 300])
    return stream


def play(rng: random.Random) -> tuple[list[str], bytes]:
    names = rng.choices(list(GRAMMAR), k=rng.randrange(1, 6))
    stream = b"".join(good_reply(rng, name) for name in names)
    for _ in range(rng.choice([0, 1, 1, 2])):
        stream = mutated(rng, stream)
    return names, stream


def pieces(rng: random.Random, stream: bytes) -> list[bytes]:
    cuts = sorted(rng.randrange(len(stream) + 1) for _ in range(rng.randrange(6)))
    return [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) if a < b]


# -- the parser ------------------------------------------------------------------------------------------------------


def test_session_accepts_what_the_second_parser_accepts_and_nothing_else(rng, many, figures):
    counts: Counter[str] = Counter()
    for _ in range(many(50_000, 1_000_000)):
        names, stream = play(rng)
        session = Session("fuzz")
        slots = [Slot(GRAMMAR[name][0], session, GRAMMAR[name][1]) for name in names]
        session.slots.extend(slots)
        broken = None
        for piece in pieces(rng, stream):
            if (broken := session.receive(piece)) is not None:
                break
        answered = [slot for slot in slots if slot.result is not PENDING or slot.error is not None]
        accepted = [slot for slot in answered if not isinstance(slot.error, ProtocolError)]
        expected = reference(names, stream)
        # Statistics are typed: there, what the second parser takes may still be refused, but not the other way round.
        typed = len(accepted) < len(expected) and names[len(accepted)].startswith(("stats", "list"))
        assert len(accepted) == len(expected) or (typed and broken), (names, stream, broken)
        for slot, line in zip(accepted, expected, strict=False):
            check(slot, line)
        assert all(isinstance(slot.error, gstalk.GstalkError | None) for slot in answered)
        assert session.done == answered
        counts["streams"] += 1
        counts["broken"] += broken is not None
        counts["replies"] += len(accepted)
    figures |= counts


def check(slot: Slot, line: bytes) -> None:
    """The value is the one on the line."""
    words = line.split(b" ")
    match words[0]:
        case b"INSERTED" | b"WATCHING" | b"KICKED" if len(words) == 2:
            assert slot.result == int(words[1])
        case b"RESERVED" | b"FOUND":
            job_id, body = slot.result
            assert line == b"%b %d %d%b" % (words[0], job_id, len(body), body)
        case b"USING":
            assert slot.result.encode() == words[1]
        case b"BURIED" if len(words) == 2:
            assert slot.error is not None
            assert str(slot.error).count(words[1].decode())


@pytest.mark.parametrize("size", [2**30 + 1, 2**31, 2**63, 2**64, 10**30])
def test_size_that_no_server_can_hold_is_refused_at_once(size):
    session = Session("fuzz")
    session.slots.append(Slot(commands.PEEK, session, KEY))
    assert isinstance(session.receive(b"FOUND 7 %d\r\n" % size), ProtocolError)


def test_size_that_is_announced_takes_no_memory_before_it_comes():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(100):
        session = Session("fuzz")
        session.slots.append(Slot(commands.PEEK, session, KEY))
        assert session.receive(b"FOUND 7 %d\r\nabc" % 2**30) is None
        for _ in range(100):
            assert session.receive(b"x" * 100) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KB


@pytest.mark.parametrize("junk", [b"x" * 1000, b"OK " * 1000, b"\r" * 1000, b"\n" * 1000])
def test_line_without_an_end_is_refused_after_a_few_hundred_bytes(junk):
    session = Session("fuzz")
    session.slots.append(Slot(commands.PEEK, session, KEY))
    for n in range(0, 300, 10):
        if session.receive(junk[n : n + 10]) is not None:
            return
    pytest.fail("it waits for more")


# -- the connection ---------------------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[gstalk.Conn], Any]] = {
    "put": lambda conn: conn.put("default", b"x"),
    "list-tube-used": lambda conn: conn.list_tube_used(),
    "reserve-job": lambda conn: conn.reserve_job(KEY),
    "peek": lambda conn: conn.peek(KEY),
    "delete": lambda conn: conn.delete(KEY),
    "release": lambda conn: conn.release(KEY, 5),
    "bury": lambda conn: conn.bury(KEY, 5),
    "touch": lambda conn: conn.touch(KEY),
    "kick": lambda conn: conn.kick("default", 1),
    "kick-job": lambda conn: conn.kick_job(KEY),
    "stats": lambda conn: conn.stats(),
    "stats-job": lambda conn: conn.stats_job(KEY),
    "list-tubes": lambda conn: conn.list_tubes(),
}


def test_conn_ends_every_call_with_a_result_or_an_error_of_ours(rng, many, figures):
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    uri = f"127.0.0.1:{listener.getsockname()[1]}"
    outcomes: Counter[str] = Counter()

    def serve(stream: bytes) -> None:
        sock, _ = listener.accept()
        with sock:
            sock.recv(65536)
            sock.sendall(ok("---\nid: 4a\n"))
            sock.recv(65536)
            try:
                for piece in pieces(rng, stream):
                    sock.sendall(piece)
                    gevent.sleep(0)
            except OSError:
                pass  # refused: it has closed

    try:
        for _ in range(many(500, 10_000)):
            names = rng.choices(list(CALLS), k=rng.randrange(1, 6))
            stream = mutated(rng, b"".join(good_reply(rng, name) for name in names))
            server = gevent.spawn(serve, stream)
            with gstalk.dial(uri) as conn:
                calls = [gevent.spawn(outcome, CALLS[name], conn) for name in names]
                assert len(gevent.joinall(calls, timeout=4)) == len(calls), (names, stream)
                outcomes.update(call.get() for call in calls)
            server.join()
    finally:
        listener.close()
    figures |= outcomes


def outcome(call: Callable[[gstalk.Conn], Any], conn: gstalk.Conn) -> str:
    try:
        call(conn)
    except gstalk.GstalkError as error:
        return type(error).__name__
    return "answered"
