"""Random scripts on three connections: what the engine says at each step, the real server says too."""

from __future__ import annotations

import random
from contextlib import closing

import pytest

from gstalk.testing import Beanstalkd
from gstalk.testing.engine import Engine
from gstalk.testing.wire import Client
from tests.conformance.conftest import Both

CLIENTS = 3
STEPS = 400
CHANGING = ("pid", "rusage", "uptime", "id", "hostname", "os", "platform", "age", "time-left", "pause-time-left")
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
    """A reply without the lines that differ from server to server."""
    return [
        line for line in reply.split(b"\n") if not line.startswith((b"OK ", *(f"{key}".encode() for key in CHANGING)))
    ]


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
        for number, data in greetings + script(seed):
            if expected.must_not_say(number, data):
                continue
            replies = expected.step(number, data)
            wires[number].send(data)
            for wire, reply in zip(wires, replies, strict=True):
                assert steady(wire.replies(reply)) == steady(reply), data
