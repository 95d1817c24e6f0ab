"""Signs of life, and what is decided by them: clocks, bytes and files passed in."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket

from gstalk.cli import _memory, _notify, _signals, _signs
from gstalk.cli._book import Book
from gstalk.cli._greenlets import is_running
from gstalk.cli._lookout import Lookout, Told, to_tell
from gstalk.cli._memory import resident
from gstalk.cli._signals import is_at_once, is_hang_up_heard
from gstalk.cli._signs import Heartbeat, Pulse, Silence, ToParent, UntouchableError, period
from tests.servers import wait_until


@pytest.mark.parametrize(
    ("limits", "seconds"), [((), 1), ((None, None), 1), ((30,), 1), ((2, None), 0.5), ((None, 1), 0.25), ((2, 1), 0.25)]
)
def test_signs_come_each_second_or_four_in_the_shortest_limit(limits, seconds):
    assert period(*limits) == seconds


# -- silence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("looks", "seconds"),
    [
        ([(1, True)], 0),
        ([(1, False)], 1),
        ([(1, False), (2.5, False)], 2.5),
        ([(1, False), (2, True)], 0),
        ([(1, False), (2, True), (3, False)], 1),
        ([(1, False), (3601, False)], 3),  # who looks has slept for an hour: he could not hear
        ([(3600, False), (3601, False), (3602, True)], 0),
    ],
)
def test_silence_is_counted_by_looks(looks, seconds):
    silence = Silence(0, 1)
    for now, is_heard in looks:
        silence.look(now, is_heard)
    assert silence.seconds == seconds


def test_silence_while_the_looker_stood_still_counts_as_two_periods():
    silence = Silence(0, 0.25)
    assert silence.look(3600, False) == 0.5


# -- what is told ------------------------------------------------------------------------------------------------


NEVER = float("-inf")


@pytest.mark.parametrize(
    ("told", "silence", "since_stop", "limit", "new"),
    [
        (Told(), 0.9, 100, None, Told()),
        (Told(), 1.1, NEVER, None, Told(unpatched=True)),
        (Told(unpatched=True), 1000, NEVER, None, Told()),
        (Told(unpatched=True), 1.1, 0.5, None, Told()),  # it has just been asked
        (Told(unpatched=True), 1.1, 1.1, None, Told(late=True)),
        (Told(unpatched=True, late=True), 1000, 1000, None, Told()),
        (Told(unpatched=True), 4.9, NEVER, 5, Told()),
        (Told(unpatched=True), 5, NEVER, 5, Told(still=True)),
        (Told(unpatched=True, still=True), 6, NEVER, 5, Told()),
        (Told(), 5, 5, 5, Told(unpatched=True, late=True, still=True)),
    ],
)
def test_what_is_told_of_a_blocked_loop_is_told_once(told, silence, since_stop, limit, new):
    assert to_tell(told, silence, since_stop, limit) == new


def test_lookout_hears_nothing_of_the_signals_of_a_child():
    """Two that a handler sends to a process which it has forked would else end the worker."""
    lookout = Lookout(Pulse(1, []), Book(1), True, None, None)
    lookout.start()
    pid = os.fork()
    if pid == 0:
        os._exit(signal.set_wakeup_fd(-1) != -1)
    assert os.waitpid(pid, 0)[1] == 0
    lookout.stop()


def test_greenlet_runs_if_it_has_begun_and_is_not_suspended():
    greenlets: list[Any] = []
    seen: list[list[bool]] = []

    def look() -> None:
        seen.append([is_running(each) for each in greenlets])

    greenlets += [gevent.spawn(gevent.sleep, 0.1), gevent.spawn(look), gevent.spawn(int)]
    gevent.joinall(greenlets)
    look()
    assert seen == [[False, True, False], [False, False, False]]


# -- the heartbeat -----------------------------------------------------------------------------------------------


def test_heartbeat_makes_its_file_and_touches_it(tmp_path):
    path = tmp_path / "alive"
    beat = Heartbeat(str(path))
    assert not path.exists()  # a probe may wait for it: nothing turns yet
    beat()
    assert path.read_bytes() == b""
    os.utime(path, (0, 0))
    beat()
    assert abs(path.stat().st_mtime - time.time()) < 10
    path.unlink()  # somebody has cleaned up
    beat()
    assert path.exists()


def test_heartbeat_that_can_not_be_touched_is_told_at_first_and_once_later(tmp_path, capfd, monkeypatch):
    path = tmp_path / "run" / "alive"
    with pytest.raises(UntouchableError) as caught:
        Heartbeat(str(path))
    sentence = f"heartbeat {path} can't be touched: "
    assert str(caught.value) == f"{sentence}there is no directory {path.parent}"
    path.parent.mkdir()
    with monkeypatch.context() as patched, pytest.raises(UntouchableError) as caught:
        patched.setattr(os, "access", lambda *_: False)  # root may write everywhere
        Heartbeat(str(path))
    assert str(caught.value) == f"{sentence}permission denied"
    beat = Heartbeat(str(path))
    path.parent.rmdir()
    beat()
    beat()
    assert capfd.readouterr().err == f"gstalk: {sentence}No such file or directory\n"


def test_pulse_counts_turns_and_gives_signs_at_their_period():
    signs: list[int] = []
    pulse = Pulse(0.01, [lambda: signs.append(pulse.turns)])
    beating = gevent.spawn(pulse.run)
    wait_until(lambda: len(signs) >= 3)
    beating.kill()
    assert signs[:3] == [1, 2, 3]
    rare: list[int] = []
    slower = Pulse(1000, [lambda: rare.append(slower.turns)])
    assert (pulse.tick, slower.tick) == (0.01, 0.25)
    slower.tick = 0.001
    beating = gevent.spawn(slower.run)
    wait_until(lambda: slower.turns >= 5)
    beating.kill()
    assert rare == [1]


def test_word_to_a_parent_that_does_not_listen_or_is_gone_is_dropped():
    parent, mine = socket.socketpair()
    to_parent = ToParent(os.dup(mine.fileno()))
    with gevent.Timeout(10):
        for _ in range(100_000):  # more than fit in
            to_parent.say(_signs.TURNED)
        parent.close()
        to_parent.say(_signs.TURNED)
    assert not os.get_inheritable(to_parent._fd)
    os.close(to_parent._fd)
    mine.close()


def test_what_a_process_forks_gives_no_signs_of_its_life(monkeypatch):
    """A child has copies of all greenlets, and the socket to the parent, too."""
    signs: list[int] = []
    pulse = Pulse(0.01, [lambda: signs.append(pulse.turns)])
    parent, mine = socket.socketpair()
    to_parent = ToParent(os.dup(mine.fileno()))
    beating = gevent.spawn(pulse.run)
    wait_until(lambda: signs)
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        beating.join(timeout=5)
        assert beating.ready()
        to_parent.say(_signs.TURNED)
    to_parent.say(_signs.READY)
    assert parent.recv(10) == _signs.READY
    os.close(to_parent._fd)
    for each in (parent, mine):
        each.close()


def test_memory_that_a_process_holds_is_told():
    before = resident()
    held = bytearray(os.urandom(1)) * 2**26
    assert 2**25 < resident() - before < 2**28
    del held


def test_memory_where_the_system_does_not_tell_of_now_is_the_most_that_there_was(monkeypatch):
    def refuse(*_: object) -> None:
        raise FileNotFoundError

    now = resident()
    monkeypatch.setattr(_memory, "open", refuse, raising=False)
    most = {}
    for platform in ("linux", "darwin"):
        monkeypatch.setattr(sys, "platform", platform)
        most[platform] = resident()
    assert now * 0.9 < most["linux"] < now * 100
    assert 1 <= most["darwin"] * 1024 / most["linux"] < 1.1  # it counts in bytes there, and in KiB elsewhere


# -- the service manager -----------------------------------------------------------------------------------------


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A socket as systemd has one for `$NOTIFY_SOCKET`."""
    path = str(tmp_path / "notify")
    address = path if request.param == "path" else f"@gstalk-{os.getpid()}-{os.urandom(4).hex()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address if address[0] == "/" else f"\0{address[1:]}")
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        yield sock


def test_manager_is_told(manager):
    _notify.notify("READY=1")
    assert manager.recv(100) == b"READY=1"
    before = time.monotonic()
    _notify.notify_reloading()
    word, _, when = manager.recv(100).decode().partition("\n")
    assert word == "RELOADING=1"
    assert before * 1e6 - 1 <= int(when.removeprefix("MONOTONIC_USEC=")) <= time.monotonic() * 1e6


def test_manager_that_does_not_read_holds_nobody_up(manager):
    with gevent.Timeout(10):
        for _ in range(1000):
            _notify.notify("WATCHDOG=1")


@pytest.mark.parametrize("address", [None, "", "nonsense", "/nowhere/notify", "@nobody-is-there", "vsock:2:1234"])
def test_without_a_manager_nothing_is_told(monkeypatch, address):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    _notify.notify("READY=1")


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        (None, None, None),
        ("30000000", None, 30),
        ("500000", "me", 0.5),
        ("30000000", "1", None),  # our parent is watched, not we
        ("0", None, None),
        ("soon", None, None),
    ],
)
def test_watchdog_is_that_of_this_process(monkeypatch, usec, pid, seconds):
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", str(os.getpid()) if pid == "me" else pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert _notify.watchdog_seconds() == seconds


def test_hang_up_is_heard_unless_nohup_has_said_otherwise(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert not is_hang_up_heard()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert is_hang_up_heard()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_terminal_is_closing_if_it_was_there_a_moment_ago(monkeypatch):
    now, there = 1000.0, True
    monkeypatch.setattr(_signals, "monotonic", lambda: now)
    monkeypatch.setattr(_signals, "_is_there", lambda: there)
    terminal = _signals.Terminal()
    assert not terminal.is_closing
    there = False
    assert terminal.is_closing
    now += 4
    terminal.look()
    assert terminal.is_closing
    now += 4
    assert not terminal.is_closing  # the process outlived it
    assert not _signals.Terminal().is_closing


@pytest.mark.parametrize(
    ("stops", "alone", "under_a_parent"),
    [
        ((), False, False),
        ((signal.SIGTERM,), False, False),
        ((signal.SIGINT, signal.SIGTERM), True, False),
        ((signal.SIGTERM,) * 3, True, False),
        ((signal.SIGQUIT,), True, True),
        ((signal.SIGTERM, signal.SIGQUIT), True, True),
    ],
)
def test_second_stop_is_at_once_where_nobody_passes_signals_on(stops, alone, under_a_parent):
    assert (is_at_once(stops, False), is_at_once(stops, True)) == (alone, under_a_parent)
