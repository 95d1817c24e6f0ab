"""For all tests: a time limit, a look at what is left behind, servers, chance with a seed, sizes for a soak."""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import random
import signal
import ssl
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent import subprocess

import gstalk
from gstalk.testing import Beanstalkd
from tests.certificates import make_certificates
from tests.servers import HAPROXY, Played, Terminator

LIMIT = 60  # seconds for a test; `@pytest.mark.limit(seconds)` gives more
SOAK_LIMIT = 1800  # for one that does many more rounds in a soak
SETTLING = 5  # seconds in which closed sockets and ended greenlets may go
SOAK = bool(os.environ.get("GSTALK_SOAK"))
_tubes = (f"tube-{number}" for number in itertools.count())

if os.environ.get("GSTALK_LISTEN"):
    # Whoever has no listener gets one: what tells of events is then under all tests, as what doesn't is without this.
    _checked = gstalk.Config.__post_init__

    def _listened(config: gstalk.Config) -> None:
        _checked(config)
        if config.event_func is None:
            object.__setattr__(config, "event_func", lambda event: None)

    gstalk.Config.__post_init__ = _listened  # type: ignore[assignment,method-assign]
DESCRIPTORS = next((path for path in ("/proc/self/fd", "/dev/fd") if os.path.isdir(path)), None)

# A shell starts what it runs in the background with Ctrl-C ignored, and so would be the programs that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """End a test that waits too long. One that blocks the hub is pytest's `faulthandler_timeout`'s."""
    mark = item.get_closest_marker("limit")
    usual = SOAK_LIMIT if SOAK and item.get_closest_marker("soak") else LIMIT
    # No reference to the timer: a loop with nothing else to do is to end in LoopExit at once, as it does for users.
    with gevent.Timeout(mark.args[0] if mark else usual, ref=False):
        return (yield)


def _open() -> tuple[int, int]:
    gc.collect()
    greenlets = sum(isinstance(each, gevent.Greenlet) and not each.dead for each in gc.get_objects())
    return len(os.listdir(DESCRIPTORS)) if DESCRIPTORS else 0, greenlets


@pytest.fixture(scope="session")
def _warm() -> None:
    """Have gevent, and the library below ctypes, open what they keep for ever, before anything is counted."""
    ctypes.CFUNCTYPE(None)(int)
    waker = gevent.get_hub().loop.async_()
    waker.start(lambda: None)
    waker.close()
    gevent.get_hub().threadpool.apply(int)
    subprocess.call(["true"])


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Beyond `unit`, which opens nothing, a test ends with as many descriptors as it began with, and no greenlet."""
    if Path(__file__).parent / "unit" in request.path.parents or request.path.parent == Path(__file__).parent:
        yield
        return
    request.getfixturevalue("_warm")
    gc.collect()
    gc.freeze()  # what is there by now is not this test's: to look at all of it again took most of a short test's time
    before = _open()
    yield
    after = _open()
    end = monotonic() + SETTLING
    while any(now > then for now, then in zip(after, before, strict=True)) and monotonic() < end:
        gevent.sleep(0.02)
        after = _open()
    assert all(now <= then for now, then in zip(after, before, strict=True)), (
        f"left open: {after[0] - before[0]} descriptors, {after[1] - before[1]} greenlets"
    )


# -- servers -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def server() -> Iterator[Beanstalkd]:
    """A real beanstalkd that all tests share, each with a tube of its own."""
    with Beanstalkd() as running:
        yield running


@pytest.fixture
def own_server() -> Iterator[Beanstalkd]:
    """A real beanstalkd for this test alone, which may drain, stop or kill it."""
    with Beanstalkd() as running:
        yield running


@pytest.fixture
def play() -> Iterator[Callable[..., Played]]:
    """Start a `Played` server: ``play({"put": b"DRAINING\\r\\n"})``."""
    with ExitStack() as stack:

        def start(replies: dict[str, Any] | None = None) -> Played:
            played = Played(replies or {})
            stack.callback(played.close)
            return played

        yield start


@pytest.fixture
def tube() -> str:
    return next(_tubes)


@pytest.fixture
def connect(server: Beanstalkd, tube: str) -> Iterator[Callable[..., gstalk.Conn]]:
    """Dial; closed at the test's end. Without a URI: the shared server, watching the test's tube alone."""
    conns = []

    def dial(uri: str | None = None, **options: Any) -> gstalk.Conn:
        conn = gstalk.dial(uri or server.uri, **options)
        conns.append(conn)
        if uri is None:
            conn.watch(tube)
            conn.ignore("default")
        return conn

    yield dial
    for conn in conns:
        conn.close()


@pytest.fixture
def conn(connect: Callable[..., gstalk.Conn]) -> gstalk.Conn:
    return connect()


@pytest.fixture
def other(connect: Callable[..., gstalk.Conn]) -> gstalk.Conn:
    """A second connection, for what somebody else does or sees."""
    return connect()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tls")
    make_certificates(place)
    return place


@pytest.fixture(scope="session")
def terminator(certificates: Path, server: Beanstalkd) -> Iterator[Terminator]:
    if HAPROXY is None:
        pytest.skip("no haproxy on this machine")
    running = Terminator(certificates, server.port)
    running.start()
    yield running
    running.kill()


@pytest.fixture
def trusting(certificates: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificates / "ca.crt"))


# -- chance and size ---------------------------------------------------------------------------------------------


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Chance; a failing test shows the seed, and `GSTALK_SEED` runs it again."""
    seed = int(os.environ.get("GSTALK_SEED") or random.SystemRandom().getrandbits(32))
    print(f"seed: GSTALK_SEED={seed}")
    request.node.user_properties.append(("GSTALK_SEED", seed))
    return random.Random(seed)


@pytest.fixture
def many() -> Callable[[int, int], int]:
    """How many rounds: `many(normal, soak)`."""
    return lambda normal, soak: soak if SOAK else normal


@pytest.fixture
def figures(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Iterator[dict[str, object]]:
    """What a test counted; printed by `make soak` even where nothing fails."""
    counted: dict[str, object] = {}
    yield counted
    line = ", ".join(f"{name} {value}" for name, value in [*request.node.user_properties, *counted.items()])
    if SOAK:
        with capsys.disabled():
            print(f"\n{request.node.name}: {line}")
    else:
        print(line)
