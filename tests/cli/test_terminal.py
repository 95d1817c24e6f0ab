"""On a terminal: `top`, progress, questions, Ctrl-C, and what a server may not do to it."""

from __future__ import annotations

import json
import signal
import termios
from typing import Any

import pytest

import gstalk
from gstalk.testing import Beanstalkd
from tests.cli.running import COMMAND, buried, run, states
from tests.cli.terminal import Terminal
from tests.servers import wait_until

BAR = "\N{BOX DRAWINGS HEAVY HORIZONTAL}" * 40


def terminal(uri: str, *args: str, **options: Any) -> Terminal:
    return Terminal([*COMMAND, "--uri", uri, *args], **options)


# -- questions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, {}), ("n", 1, {"buried": 2}), ("", 1, {"buried": 2})])
def test_delete_asks_first(own_server, answer, code, left):
    with gstalk.dial(own_server.uri) as conn:
        buried(conn, "mail", b"1", b"2")
        with terminal(own_server.uri, "delete") as seen:
            seen.wait_for(f"Delete 2 buried jobs on {own_server.uri}? [y/N]:")
            seen.type(f"{answer}\n")
            assert seen.finish() == code
            assert ("2 jobs deleted" if code == 0 else "gstalk: nothing was done") in seen.picture.text
        assert states(conn, "mail") == left


def test_question_ctrl_c_does_nothing(own_server):
    with gstalk.dial(own_server.uri) as conn:
        conn.put("mail", b"1")
        with terminal(own_server.uri, "purge", "mail") as seen:
            seen.wait_for(f"Delete 1 ready job of mail on {own_server.uri}? [y/N]:")
            seen.type("\x03")
            assert seen.finish() == 1
            assert seen.picture.text.endswith("gstalk: interrupted")
        assert states(conn, "mail") == {"ready": 1}


def test_dump_to_a_file_asks_on_the_terminal(own_server, tmp_path):
    with gstalk.dial(own_server.uri) as conn:
        conn.put("mail", b"1")
        with (tmp_path / "jobs").open("wb") as file, terminal(own_server.uri, "dump", "mail", stdout=file) as seen:
            seen.wait_for(f"Take 1 job out of mail on {own_server.uri}? [y/N]:")
            seen.type("y\n")
            assert seen.finish() == 0
        assert json.loads((tmp_path / "jobs").read_text())["body"] == "1"


# -- progress ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "seen_at_end"),
    [
        (["purge", "mail", "--yes"], f"deleted {BAR} 500/500"),
        (["move", "mail", "fax"], f"moved {BAR} 500/500"),
    ],
    ids=["purge", "move"],
)
def test_progress_is_a_bar_on_a_terminal(own_server, arguments, seen_at_end):
    with gstalk.dial(own_server.uri) as conn:
        conn.put_many("mail", [b"x"] * 500)
    with terminal(own_server.uri, *arguments) as seen:
        assert seen.finish() == 0
        assert seen_at_end in seen.picture.text
        assert seen.picture.text.splitlines()[-1].startswith("500 jobs")
        assert "?25" in seen.picture.modes  # the cursor is there again
        assert seen.picture.unknown == set()


def test_progress_ctrl_c_says_how_far_it_came(own_server):
    with gstalk.dial(own_server.uri) as conn:
        conn.put_many("mail", [b"x"] * 30_000)
        with terminal(own_server.uri, "move", "mail", "fax") as seen:
            wait_until(lambda: states(conn, "fax").get("ready", 0) > 100, 30)
            seen.type("\x03")
            assert seen.finish() == 1
            said, complaint = [line for line in seen.picture.text.splitlines() if line][-2:]
            assert complaint == "gstalk: interrupted"
            count = int(said.split()[0].replace(",", ""))
        assert states(conn, "fax") == {"ready": count}
        assert states(conn, "mail") == {"ready": 30_000 - count}


def test_put_lines_typed_by_a_person(own_server):
    with terminal(own_server.uri, "put", "mail", "--lines") as seen:
        seen.type("one\ntwo\n")
        seen.wait_for("1\n2")
        seen.type("\x04")
        assert seen.finish() == 0
    with gstalk.dial(own_server.uri) as conn:
        assert states(conn, "mail") == {"ready": 2}


@pytest.mark.parametrize("arguments", [["put", "mail"], ["put", "mail", "--lines"], ["load"]])
def test_ctrl_c_at_an_input_ends(own_server, arguments):
    with gstalk.dial(own_server.uri) as conn:
        before = conn.stats().total_connections or 0
        with terminal(own_server.uri, *arguments) as seen:
            wait_until(lambda: (conn.stats().total_connections or 0) > before, 30)
            wait_until(lambda: reads_terminal(seen))
            seen.type("\x03")
            assert seen.finish() == 1
            assert seen.picture.text.endswith("gstalk: interrupted")


def reads_terminal(seen: Terminal) -> bool:
    """Whether the process waits in a read of its terminal; where the system doesn't tell, it soon will."""
    try:
        with open(f"/proc/{seen.process.pid}/wchan", encoding="ascii") as file:
            return file.read() in ("wait_woken", "n_tty_read", "0", "")
    except OSError:
        return True


# -- what comes from a server --------------------------------------------------------------------------------------


def test_peek_escapes_on_a_terminal(own_server):
    with gstalk.dial(own_server.uri) as conn:
        conn.put("mail", "evil \x1b[2J\x1b]0;x\x07\x9b1m \u202e\tend\nnext \xff".encode("latin-1", "replace") + b"\xff")
    with terminal(own_server.uri, "peek", "1") as seen:
        assert seen.finish() == 0
        assert seen.picture.unknown == {"\t"}
        assert b"\x1b" not in seen.written
        first, second = seen.picture.text.splitlines()
        assert first.startswith(r"evil \x1b[2J\x1b]0;x\x07")
        assert second.startswith("next ")


# -- top -----------------------------------------------------------------------------------------------------------


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
    process = Terminal([*COMMAND, "--uri", busy.uri, "top", "--json"], columns=500)
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
