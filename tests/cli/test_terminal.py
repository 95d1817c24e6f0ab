"""On a terminal: progress, questions, Ctrl-C, and what a server may not do to it."""

from __future__ import annotations

import json

import pytest

import gstalk
from tests.cli.running import buried, states, terminal
from tests.cli.terminal import Terminal
from tests.servers import wait_until

BAR = "\N{BOX DRAWINGS HEAVY HORIZONTAL}" * 40


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
            wait_until(lambda: sleeps(seen))
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
    with terminal(own_server.uri, *arguments) as seen:
        seen.wait_for("gstalk: reading ")
        wait_until(lambda: sleeps(seen))
        seen.type("\x03")
        assert seen.finish() == 1
        assert seen.picture.text.endswith("gstalk: interrupted")


def sleeps(seen: Terminal) -> bool:
    """Whether the process waits: for its terminal, where it has said that. Where the system doesn't tell, it soon will.

    One that still imports something may come upon a finalizer, in which Python drops a KeyboardInterrupt.
    """
    try:
        with open(f"/proc/{seen.process.pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(") ")[2].startswith("S")
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
