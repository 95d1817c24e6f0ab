"""`gstalk serve`, beside beanstalkd where it takes the same flags."""

from __future__ import annotations

import os
import signal
import socket as plain_socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest
from gevent import subprocess

import gstalk
from gstalk.cli._listen import Listen, Place, join
from gstalk.testing import Beanstalkd
from gstalk.testing.beanstalkd import free_port
from tests.cli.running import COMMAND, Outcome, finish
from tests.servers import wait_until

pytestmark = pytest.mark.slow

KINDS = ["gstalk serve", pytest.param("beanstalkd", marks=pytest.mark.real)]


def begin(*flags: str, kind: str = "gstalk serve", place: Path | None = None) -> Any:
    program = [*COMMAND, "serve"] if kind == "gstalk serve" else [str(Beanstalkd.find())]
    pipes: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([*program, *flags], cwd=place, stdin=subprocess.DEVNULL, **pipes)


@contextmanager
def serving(*flags: str, uri: str, kind: str = "gstalk serve", place: Path | None = None) -> Iterator[Any]:
    """A server with these flags, from when it answers."""
    process = begin(*flags, kind=kind, place=place)
    try:
        wait_until(lambda: answers(uri) or process.poll() is not None)
        yield process
    finally:
        process.kill()
        finish(process)


def answers(uri: str) -> bool:
    try:
        gstalk.dial(uri).close()
    except gstalk.ConnectError:
        return False
    return True


def outcome(*flags: str) -> Outcome:
    return finish(begin(*flags))


# -- where to listen, as `exporter` takes it, too ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("127.0.0.1", ("127.0.0.1", None)),
        ("q1.example", ("q1.example", None)),
        ("q1.example:11301", ("q1.example", 11301)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("11301", ("127.0.0.1", 11301)),
        (":11301", ("0.0.0.0", 11301)),
        ("::", ("::", None)),
        ("::1", ("::1", None)),
        ("fe80::1%eth0", ("fe80::1%eth0", None)),
        ("2001:db8:0:0:0:0:0:1", ("2001:db8:0:0:0:0:0:1", None)),
        ("[::1]", ("::1", None)),
        ("[::1]:65535", ("::1", 65535)),
        ("unix:/run/socket", ("", None, "/run/socket")),
        ("unix:here", ("", None, "here")),
    ],
)
def test_address_to_listen_on(text, place):
    assert Listen(unix=True).convert(text, None, None) == Place(*place)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is no HOST, HOST:PORT, PORT or :PORT"),
        (":", "':' is no HOST, HOST:PORT, PORT or :PORT"),
        ("here:", "'here:' is no HOST, HOST:PORT, PORT or :PORT"),
        ("here:x", "'here:x' is no HOST, HOST:PORT, PORT or :PORT"),
        ("here:-1", "'here:-1' is no HOST, HOST:PORT, PORT or :PORT"),
        ("h:²", "'h:²' is no HOST, HOST:PORT, PORT or :PORT"),
        ("*", "'*' is no HOST, HOST:PORT, PORT or :PORT"),
        ("*:1", "'*:1' is no HOST, HOST:PORT, PORT or :PORT"),
        ("a:b:1", "'a:b:1' is no HOST, HOST:PORT, PORT or :PORT"),
        ("[]:1", "'[]:1' is no HOST, HOST:PORT, PORT or :PORT"),
        ("[q1]:1", "'[q1]:1' is no HOST, HOST:PORT, PORT or :PORT"),
        ("[::1]1", "'[::1]1' is no HOST, HOST:PORT, PORT or :PORT"),
        ("unix:/run/socket", "'unix:/run/socket' is no HOST, HOST:PORT, PORT or :PORT"),
        ("here:65536", "port 65536 is larger than 65535"),
        ("65536", "port 65536 is larger than 65535"),
        ("::1:9126", "'::1:9126' may mean two things: write [::1]:9126, or [::1:9126]"),
    ],
)
def test_address_to_listen_on_that_is_none(text, said):
    with pytest.raises(click.BadParameter) as raised:
        Listen().convert(text, None, None)
    assert raised.value.message == said


def test_address_is_shown_as_it_may_be_typed():
    for host, port in (("127.0.0.1", 1), ("::1", 11300)):
        assert Listen().convert(join(host, port), None, None) == Place(host, port)


def test_port_behind_the_host():
    port = free_port()
    for listen in (f"127.0.0.1:{port}", str(port), f":{port}"):
        host = "0.0.0.0" if listen.startswith(":") else "127.0.0.1"
        with serving("-l", listen, uri=f"beanstalk://127.0.0.1:{port}") as process:
            assert process.stdout.readline().decode() == f"beanstalk://{host}:{port}\n"


# -- flags, signals, sockets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_flags_of_beanstalkd_say_where_it_listens_and_how_large_jobs_may_be(kind):
    port = free_port()
    uri = f"beanstalk://127.0.0.1:{port}"
    with serving("-l", "127.0.0.1", "-p", str(port), "-z10", uri=uri, kind=kind), gstalk.dial(uri) as conn:
        assert conn.stats().max_job_size == 10
        assert conn.put("mail", b"x" * 10) == 1
        with pytest.raises(gstalk.JobTooBigError):
            conn.put("mail", b"x" * 11)


@pytest.mark.parametrize("kind", KINDS)
def test_usr1_drains(kind):
    port = free_port()
    uri = f"beanstalk://127.0.0.1:{port}"
    with serving("-l127.0.0.1", f"-p{port}", uri=uri, kind=kind) as process, gstalk.dial(uri) as conn:
        conn.put("default", b"before")
        process.send_signal(signal.SIGUSR1)
        wait_until(lambda: conn.stats().draining)
        with pytest.raises(gstalk.DrainingError):
            conn.put("default", b"after")
        conn.reserve().delete()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) in (0, -signal.SIGTERM)


@pytest.mark.parametrize("kind", KINDS)
def test_unix_socket_that_was_left_is_replaced(kind, tmp_path):
    path = tmp_path / "socket"
    with plain_socket.socket(plain_socket.AF_UNIX) as left:
        left.bind(str(path))
    with serving("-l", f"unix:{path}", uri=f"unix://{path}", kind=kind), gstalk.dial(f"unix://{path}") as conn:
        assert conn.put("mail", b"hello") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_file_in_the_place_of_a_unix_socket_stays(kind, tmp_path):
    path = tmp_path / "file"
    path.write_text("kept")
    process = begin("-l", f"unix:{path}", kind=kind)
    assert process.wait(10) > 0
    assert path.read_text() == "kept"
    finish(process)


def test_unix_socket_is_named_by_its_whole_path_and_removed_at_the_end(tmp_path):
    with serving("-l", "unix:here", uri=f"unix://{tmp_path}/here", place=tmp_path) as process:
        assert process.stdout.readline().decode() == f"unix://{tmp_path}/here\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["-l", "unix:"], 2, "unix: needs a path behind it"),
        (["-l", "unix:/no/such/folder/socket"], 1, "can't listen on /no/such/folder/socket: No such file or directory"),
        (["-l", f"unix:/tmp/{'x' * 200}"], 1, "AF_UNIX path too long"),
        (["-z", "-1"], 2, "-1 is not in the range 0<=x<=1073741824"),
        (["-z", "1073741825"], 2, "1073741825 is not in the range 0<=x<=1073741824"),
        (["-l", ":1", "-p", "2"], 2, "--listen has a port already: leave --port out"),
        (["-p", "65536"], 2, "65536 is not in the range 0<=x<=65535"),
    ],
)
def test_flag_that_cannot_be_is_refused(flags, code, said):
    done = outcome(*flags)
    assert (done.code, done.out) == (code, "")
    assert said in done.err


@pytest.mark.parametrize("flags", [["-p", "{}"], ["-l", "127.0.0.1:{}"], ["-l", "{}"]])
def test_port_in_use_is_named(flags):
    with plain_socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = outcome(*(each.format(port) for each in flags))
    assert (done.code, done.out) == (1, "")
    assert done.err == f"gstalk: can't listen on 127.0.0.1:{port}: Address already in use\n"
