"""Random scripts on three connections: what the engine says at each step, the real server says too.

First one command at a time; then bursts: several connections send several commands each, while the real server stands
still, and it must answer them in the engine's order. In between connections end in all ways, and time passes.
"""

from __future__ import annotations

import random
import re
import struct
import sys
from contextlib import closing
from dataclasses import dataclass, replace

import gevent
import pytest
from gevent import socket

from gstalk.connection.clock import monotonic
from gstalk.testing import Beanstalkd
from gstalk.testing.engine import Engine
from gstalk.testing.wire import Client
from tests.conformance.conftest import Both, Wire

CLIENTS = 3
STEPS = 400
CHANGING = "version pid rusage uptime id hostname os platform age time-left pause-time-left".split()
COMMANDS = """
    put {pri} 0 {time} 1|put {pri} 0 {time} 1|put {pri} {time} {time} 1|use {tube}|watch {tube}|ignore {tube}
    reserve|reserve-with-timeout 0|reserve-with-timeout 0|reserve-with-timeout -1|reserve-job {id}
    delete {id}|release {id} {pri} 0|release {id} {pri} {time}|bury {id} {pri}|touch {id}|kick {few}|kick-job {id}
    peek {id}|peek-ready|peek-delayed|peek-buried|stats|stats-job {id}|stats-tube {tube}|list-tubes
    list-tubes-watched|list-tube-used|pause-tube {tube} {time}|pause-tube {tube} 0|pause-tube {tube} 0
    put {pri} 0 {time} 70000|put {odd} 0 {time} 1|delete {odd}|release {id} {odd} 0|kick {odd}|touch {odd}
    reserve-job {odd}|bury {id}{odd}|pause-tube {tube}{odd}|peek{odd}|statsx|stats-job {odd}|use {odd}|{odd}
    reserve-with-timeout -{time}
""".replace("\n", "|").split("|")
ODD = [
    "",
    " ",
    " 1",
    "  1 ",
    "-1",
    "+1",
    "1.5",
    "1x",
    "x",
    "\t1",
    "4294967296",
    "18446744073709551616",
    "0x1",
    "01",
    "\0",
]


def script(seed: int) -> list[tuple[int, bytes]]:
    chance = random.Random(seed)
    steps: list[tuple[int, bytes]] = []
    while len(steps) < STEPS:
        command = chance.choice(COMMANDS).strip()
        if not command:
            continue
        line = command.format(
            pri=chance.choice((0, 1, 1023, 1024, 4294967295)),
            time=chance.choice((1000, 2000)),
            tube=chance.choice(("default", "a", "b", "c")),
            id=chance.randint(1, 1 + len(steps) // 6),
            few=chance.randint(0, 3),
            odd=chance.choice(ODD),
        ).encode()
        body = b""
        if command.startswith("put"):
            body = chance.choice((b"x\r\n", b"x\r\n", b"x\r\n", b"xyz")) if command.endswith(" 1") else b"z" * 70002
        steps.append((chance.randrange(CLIENTS), line + b"\r\n" + body))
    return steps


def steady(reply: bytes) -> list[bytes]:
    """A reply without the lines that differ from server to server, and without a later one's quotes."""
    differing = (b"OK ", *(key.encode() for key in CHANGING))
    return [line.replace(b'"', b"") for line in reply.split(b"\n") if not line.startswith(differing)]


def taken_by_all(data: bytes) -> bytes:
    """Commands, without the one that servers later than 1.12 refuse: a reserve for ever that has a timeout."""
    return re.sub(rb"^reserve-with-timeout -\d+\r\n", b"reserve\r\n", data, flags=re.MULTILINE)


class Expected:
    """The engine, asked step by step."""

    def __init__(self) -> None:
        self.engine = Engine()
        Client(self.engine).feed(b"list-tube-used\r\nquit\r\n", 0)  # as the real one is asked whether it is there
        self.clients = [Client(self.engine) for _ in range(CLIENTS)]

    def must_not_say(self, number: int, data: bytes) -> bool:
        """Whether nothing would come of it: its client waits in a reserve, or would be the last one to."""
        waiting = [client.is_waiting for client in self.clients]
        waits = data.startswith((b"reserve\r", b"reserve-with-timeout -"))
        return waiting[number] or (waits and sum(waiting) == CLIENTS - 1)

    def step(self, number: int, data: bytes) -> list[bytes]:
        """What each client is sent because of this."""
        self.clients[number].feed(data, 0)
        said = [bytes(client.out) for client in self.clients]
        for client in self.clients:
            client.out.clear()
        return said


@pytest.mark.real
@pytest.mark.parametrize("seed", range(12))
def test_engine_and_real_server_say_the_same(seed):
    if Beanstalkd.find() is None:
        pytest.skip("no beanstalkd on this machine: install it, or name it in $GSTALK_BEANSTALKD")
    with Beanstalkd() as server, closing(Both(server)) as both:
        wires = [both.wire() for _ in range(CLIENTS)]
        expected = Expected()
        greetings = [(number, b"list-tube-used\r\n") for number in range(CLIENTS)]  # answered: it has been accepted
        is_later = wires[0].ask(b"stats\r\n")["version"] != "1.12"
        expected.step(0, b"stats\r\n")
        for number, line in greetings + script(seed):
            data = taken_by_all(line) if is_later else line
            if expected.must_not_say(number, data):
                continue
            replies = expected.step(number, data)
            wires[number].send(data)
            for wire, reply in zip(wires, replies, strict=True):
                assert steady(wire.replies(reply)) == steady(reply), data


# -- bursts --------------------------------------------------------------------------------------------------------

ROUNDS = 40
LARGEST = 1000  # bytes of a job: all that is sent while the server stands still must fit into the kernel's buffers
PUTS = "put {pri} 0 1000 1|put {pri} 0 1000 1|put {pri} 1000 1000 1|put {pri} 0 1000 300|put {pri} 0 1000 1500".split(
    "|"
)
# What ends by itself, and when. Each once between two passings of PASSING seconds, so that no two ends fall together.
PASSING = 1.1
TIMED = {
    "put {pri} 1 1000 1": 1,
    "release {id} {pri} 1": 1,
    "pause-tube a 2": 2,
    "reserve-with-timeout 3": 3,
}
PLAIN = [each.strip() for each in COMMANDS if each.strip() and "70000" not in each]
BURST = [*PLAIN, *PUTS, *PUTS, *TIMED, "reserve", "kick 9"]
TRAPS = [b"use a\rb\r\n", b"x" * 224 + b"\r\n", b"use " + b"a" * 219 + b"\r\n", b"y" * 700 + b"\r\n", b"\r\n", b"pu"]


@dataclass
class Step:
    """What a connection does in a round."""

    number: int
    data: bytes
    end: str = ""  # "half-close", "close" or "reset" behind it


def command(chance: random.Random, ids: int, ends: set[int]) -> bytes:
    if chance.random() < 0.02:
        return chance.choice(TRAPS)
    template = chance.choice(BURST)
    while TIMED.get(template) in ends:
        template = chance.choice(BURST)
    if template in TIMED:
        ends.add(TIMED[template])
    line = template.format(
        pri=chance.choice((0, 1, 1023, 1024, 4294967295)),
        time=chance.choice((1000, 2000)),
        tube=chance.choice(("default", "a", "b", "c")),
        id=chance.randint(1, 1 + ids),
        few=chance.randint(0, 3),
        odd=chance.choice(ODD),
    )
    body = b""
    if template.startswith("put"):
        size = int(template.split()[-1])
        end = b"yz" if chance.random() < 0.05 else b"\r\n"
        body = bytes(chance.choices(b"abc", k=size)) + end
    return line.encode() + b"\r\n" + body


def rounds(seed: int, clients: int) -> list[list[Step]]:
    """A round without a step is a time that passes."""
    chance = random.Random(seed)
    script: list[list[Step]] = []
    ends: set[int] = set()
    for ids in range(0, 4 * ROUNDS, 4):
        if chance.random() < 0.06:
            script.append([])
            ends.clear()
            continue
        steps = [
            Step(number, b"".join(command(chance, ids, ends) for _ in range(chance.randint(1, 6))))
            for number in chance.sample(range(clients), chance.randint(1, clients))
        ]
        for step in steps:
            if chance.random() < 0.08:
                step.end = chance.choice(("half-close", "close", "reset"))
        script.append(steps)
    return script


class Counterpart:
    """The engine's connections, and the clock that they live by."""

    def __init__(self, clients: int) -> None:
        self.now = 0.0
        self.engine = Engine(LARGEST)
        Client(self.engine).feed(b"list-tube-used\r\nquit\r\n", 0)  # as the real one is asked whether it is there
        self.observer = self.connect()
        self.clients = [self.connect() for _ in range(clients)]

    def connect(self) -> Client:
        client = Client(self.engine)
        client.feed(b"list-tube-used\r\n", self.now)
        client.out.clear()
        return client

    def take(self, step: Step) -> None:
        client = self.clients[step.number]
        if step.end in ("close", "reset"):
            # After a reset nothing can be written; to one that has closed, the first reply can.
            writable = [step.end == "close"]
            client.is_gone = lambda: not (writable and writable.pop())
        client.take(step.data)
        if step.end:
            client.half_close()

    def said(self, client: Client) -> bytes:
        data = bytes(client.out)
        client.out.clear()
        return data

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := self.engine.next_deadline) is not None and due <= end:
            self.now = due
            self.engine.run(due)
        self.now = end


def connect(both: Both) -> Wire:
    wire = both.wire()
    wire.say(b"list-tube-used\r\n", b"USING default\r\n")
    return wire


def send(wire: Wire, step: Step) -> None:
    wire.send(step.data)
    if step.end == "half-close":
        wire.sock.shutdown(socket.SHUT_WR)
    elif step.end:
        if step.end == "reset":
            wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wire.sock.close()


def compare_bursts(clients: int, both: Both, script: list[list[Step]]) -> None:
    observer, wires = connect(both), [connect(both) for _ in range(clients)]
    expected = Counterpart(clients)

    def agree(what: object, is_over: bool) -> None:
        for number, (wire, client) in enumerate(zip(wires, expected.clients, strict=True)):
            if wire.sock.fileno() >= 0:
                said = expected.said(client)
                replies = wire.replies(said)
                if b"\0" not in said:  # a peek at a job that is still coming: the real one shows what was in memory
                    assert steady(replies) == steady(said), (what, number)
        if not is_over:
            settle()
        asked = b"stats\r\nlist-tubes\r\nstats-tube default\r\nstats-tube a\r\nstats-tube b\r\nstats-tube c\r\n"
        expected.observer.feed(asked, expected.now)
        said = expected.said(expected.observer)
        observer.send(asked)
        assert steady(observer.replies(said)) == steady(said), what

    def settle() -> None:
        """Let the server come to those that are gone, as often as any of them may need it; nobody hears of that."""
        for _ in range(100):
            expected.observer.feed(b"list-tube-used\r\n", expected.now)
            observer.say(b"list-tube-used\r\n", expected.said(expected.observer))

    # It may have been asked more than once whether it is there.
    told = observer.ask(b"stats\r\n")
    expected.observer.feed(b"stats\r\n", 0)
    expected.said(expected.observer)
    expected.engine.commands["list-tube-used"] = int(told["cmd-list-tube-used"])
    expected.engine.total_connections = int(told["total-connections"])
    if told["version"] != "1.12":
        script = [[replace(step, data=taken_by_all(step.data)) for step in steps] for steps in script]
    passed, busy = monotonic(), [0.0]  # seconds that were spent between two passings
    for number, steps in enumerate(script):
        if sum(busy[-2:]) + monotonic() - passed > 0.7:
            pytest.skip("so slow a machine that what is due in a second may be due already")
        if not steps:
            busy.append(monotonic() - passed)
            gevent.sleep(PASSING)
            expected.pass_time(PASSING)
            passed = monotonic()
        with both.held():
            for step in steps:
                send(wires[step.number], step)
        for step in steps:
            expected.take(step)
        expected.engine.run(expected.now)
        agree((number, steps), is_over=not any(step.end in ("close", "reset") for step in steps))
        for index, client in enumerate(expected.clients):
            if client.ended:
                wires[index].close()
                wires[index], expected.clients[index] = connect(both), expected.connect()


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.limit(1200)
@pytest.mark.skipif(sys.platform != "linux", reason="the real server's turns are epoll's")
@pytest.mark.parametrize("seed", range(10))
def test_engine_and_real_server_answer_bursts_in_the_same_order(seed, many):
    if Beanstalkd.find() is None:
        pytest.skip("no beanstalkd on this machine: install it, or name it in $GSTALK_BEANSTALKD")
    for number in range(many(1, 40)):
        with Beanstalkd("-z", str(LARGEST)) as server, closing(Both(server)) as both:
            compare_bursts(CLIENTS, both, rounds(seed + 1000 * number, CLIENTS))
