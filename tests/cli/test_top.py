"""`top`: on a terminal, where it follows what happens and heeds its keys, and elsewhere."""

from __future__ import annotations

import json
import signal
import termios

import gevent
import pytest

import gstalk
from gstalk.cli._servers import Outages
from gstalk.testing import Beanstalkd
from tests.cli.running import UNUSED, buried, run, start, terminal
from tests.servers import wait_until


@pytest.fixture
def busy(own_server: Beanstalkd) -> Beanstalkd:
    with gstalk.dial(own_server.uri) as conn:
        conn.put_many("mail", [b"x"] * 1234)
        conn.put("fax", b"x", delay=1000)
        buried(conn, "letters", b"1", b"2")
    return own_server


def names(text: str) -> list[str]:
    lines = text.splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("tube "))
    return [line.split()[0] for line in lines[head + 1 :] if line and not line.startswith("and ")][:-1]


def test_top_sorts_follows_and_quits(busy):
    with terminal(busy.uri, "top") as seen, gstalk.dial(busy.uri) as conn:
        text = seen.wait_for("mail", "ready, most first", "done/s")
        assert text.startswith(f"{busy.uri}  beanstalkd 1.")
        assert names(text) == ["mail", "default", "fax", "letters"]
        row = next(line.split() for line in text.splitlines() if line.startswith("mail"))
        assert row[:6] == ["mail", "1,234", "0", "0", "0", "0"]
        assert all(len(line) <= 80 for line in text.splitlines())
        assert len(text.splitlines()) <= 24
        seen.type("5")
        assert names(seen.wait_for("buried, most first"))[0] == "letters"
        seen.type("5")
        assert names(seen.wait_for("buried, least first"))[-1] == "letters"
        seen.type("1")
        assert names(seen.wait_for("tube, from a to z")) == ["default", "fax", "letters", "mail"]
        conn.put_many("new-one", [b"x"] * 5)
        seen.wait_for("new-one", seconds=10)
        seen.type("?")  # no column's
        assert seen.picture.modes == {"?1049"}
        seen.type("q")
        assert seen.finish() == 0
        assert termios.tcgetattr(seen.slave) == seen.settings
        assert "?1049" not in seen.picture.modes
        assert seen.picture.unknown == set()


def test_top_many_tubes_keeps_to_the_screen(own_server):
    with gstalk.dial(own_server.uri) as conn:
        for number in range(60):
            conn.watch(f"a-tube-with-a-rather-long-name-{number:02}")
        with terminal(own_server.uri, "top") as seen:
            text = seen.wait_for("and ", "more tubes", "q: quit")
            assert len(text.splitlines()) == 24
            assert len(names(text)) == 18
            assert "and 43 more tubes" in text  # `default` is one
            seen.type("\x03")
            assert seen.finish() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_top_signal_puts_the_terminal_back(busy, number):
    with terminal(busy.uri, "top") as seen:
        seen.wait_for("most first")
        seen.process.send_signal(number)
        assert seen.finish() == 0
        assert termios.tcgetattr(seen.slave) == seen.settings
        assert "?1049" not in seen.picture.modes


def test_top_server_restarts_it_goes_on(busy):
    with terminal(busy.uri, "top") as seen:
        seen.wait_for("mail")
        busy.kill()
        seen.wait_for("connection refused", seconds=15)
        busy.start()
        seen.wait_for("beanstalkd 1.", seconds=15)
        seen.type("q")
        assert seen.finish() == 0


def test_top_server_stands_still_the_keys_do_not(busy):
    with terminal(busy.uri, "top") as seen:
        seen.wait_for("mail")
        busy.pause()
        try:
            for _ in range(3):
                seen.type("5")
                seen.wait_for("buried, most first", seconds=3)
                seen.type("1")
                seen.wait_for("tube, from a to z", seconds=3)
            seen.type("q")
            assert seen.finish() == 0
        finally:
            busy.resume()


def test_top_several_servers_one_down(busy):
    with terminal("localhost:1", "--uri", busy.uri, "top") as seen:
        text = seen.wait_for("mail", "connect to beanstalk://localhost:1: connection refused")
        assert f"2 {busy.uri}  beanstalkd 1." in text
        assert [line.split()[:3] for line in text.splitlines() if " mail " in line] == [["2", "mail", "1,234"]]
        assert all(column in text for column in ("reserved", "waiting", "put/s", "done/s", "oldest"))
        seen.type("q")
        assert seen.finish() == 0


def test_top_elsewhere_is_refused(own_server):
    expected = "gstalk: top needs a terminal, or --json; `gstalk tubes` shows the tubes once\n"
    assert run("top", uri=own_server.uri) == (1, "", expected)
    assert run("top", uri="localhost:1").code == 1


def test_top_no_server_is_no_connection():
    with terminal("localhost:1", "top") as seen:
        assert seen.finish() == 3
        assert seen.picture.text == "gstalk: connect to beanstalk://localhost:1: connection refused"


def test_top_json_is_a_stream(busy):
    process = terminal(busy.uri, "top", "--json", columns=500)
    with process as seen, gstalk.dial(busy.uri) as conn:
        wait_until(lambda: seen.read() and seen.written.count(b"\n") >= 4)
        conn.put_many("mail", [b"x"] * 100)
        wait_until(lambda: seen.read() and seen.written.count(b"\n") >= 12)
        seen.type("\x03")
        assert seen.finish() == 0
    rows = [json.loads(line) for line in seen.written.splitlines() if line.startswith(b"{")]
    mine = [each for each in rows if each["name"] == "mail"]
    assert mine[0]["puts_per_second"] is None
    assert mine[0]["oldest"] >= 0
    assert max(each["puts_per_second"] or 0 for each in mine) > 0


def test_top_json_tells_an_outage_once_and_goes_on(busy, tmp_path):
    """A stream that is silent looks like a server without jobs."""
    said = tmp_path / "said"
    down = f"gstalk: connect to beanstalk://{UNUSED}: connection refused"
    with said.open("w") as err, start("--uri", UNUSED, "top", "--json", uri=busy.uri, stderr=err) as process:
        try:
            assert json.loads(process.stdout.readline())["uri"] == busy.uri
            assert said.read_text().splitlines() == [down]
            busy.kill()
            wait_until(lambda: said.read_text().count("\n") == 2)
            gevent.sleep(1.2)  # for another look that finds it away
            busy.start()
            with gstalk.dial(busy.uri) as conn:
                conn.watch("later")
                rows = (json.loads(line) for line in process.stdout)
                assert any(row["name"] == "later" for row in rows)
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
        finally:
            process.kill()
            process.stdout.close()
    first, lost, back = said.read_text().splitlines()
    assert first == down
    assert busy.uri in lost
    assert back == f"gstalk: {busy.uri} tells its figures again"


def test_outages_are_told_when_they_begin_and_when_they_end(capfd):
    outages = Outages()
    for error in (None, OSError("first"), OSError("second"), None, None, OSError("third")):
        outages.note("here", error)
    outages.note("there", None)
    expected = ["first", "here tells its figures again", "third"]
    assert capfd.readouterr().err.splitlines() == [f"gstalk: {line}" for line in expected]
