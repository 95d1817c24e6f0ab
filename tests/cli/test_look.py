"""`tubes`, `stats` and `peek`."""

from __future__ import annotations

import json

import pytest

from gstalk.testing import Server
from tests.cli.running import buried, run
from tests.servers import ok

EVIL = "\x1b[2J\x1b]0;owned\x07\u009b31m\x7f\u202e"


def test_tubes_is_a_table(gst, clerk):
    clerk.put("mail", b"1")
    clerk.put("mail", b"2", delay=1000)
    buried(clerk, "fax", *[b"x"] * 1200)
    clerk.watch("fax")
    clerk.pause_tube("fax", 100)
    code, out, err = gst("tubes")
    head, *rows = [line.split() for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert head == ["tube", "ready", "reserved", "delayed", "buried", "waiting", "paused"]
    assert rows[0] == ["default", "0", "0", "0", "0", "0", "0"]
    assert rows[1][:6] == ["fax", "0", "0", "0", "1,200", "0"]
    assert rows[1][6] in ("99", "100")
    assert rows[2] == ["mail", "1", "0", "1", "0", "0", "0"]


def test_tubes_json_is_the_tubes_stats(gst, clerk):
    clerk.put("mail", b"1")
    code, out, _ = gst("tubes", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [each["name"] for each in rows] == ["default", "mail"]
    assert rows[1]["current_jobs_ready"] == rows[1]["total_jobs"] == 1


def test_tubes_several_servers_names_them(clerk, place):
    clerk.put("mail", b"1")
    with Server() as second:
        out = run("--uri", place.uri, "--uri", second.uri, "tubes").out
        assert [line.split()[:2] for line in out.splitlines()[1:]] == [
            [place.uri, "default"],
            [place.uri, "mail"],
            [second.uri, "default"],
        ]


def test_stats_of_the_server(gst, clerk):
    told = dict(line.split(": ", 1) for line in gst("stats").out.splitlines())
    assert told["version"] == clerk.stats().version
    assert told["draining"] == "false"
    found = json.loads(gst("stats", "--json").out)
    assert found["id"] == clerk.stats().id
    assert found["draining"] is False
    assert isinstance(found["current_jobs_ready"], int)


def test_stats_of_several_servers_stand_apart_and_say_whose_they_are(place):
    with Server() as second:
        both = ["--uri", place.uri, "--uri", second.uri]
        first, other = run(*both, "stats").out.split("\n\n")
        assert first.startswith(f"uri: {place.uri}\n")
        assert other.startswith(f"uri: {second.uri}\n")
        assert first.count("\n") == other.count("\n") - 1
        found = [json.loads(line) for line in run(*both, "stats", "--json").out.splitlines()]
    assert [each["uri"] for each in found] == [place.uri, second.uri]


def test_stats_of_a_tube_and_a_job(gst, clerk):
    job_id = clerk.put("mail", b"1", priority=7, ttr=9)
    assert "current_jobs_ready: 1\n" in gst("stats", "--tube", "mail").out
    assert json.loads(gst("stats", "--tube", "mail", "--json").out)["name"] == "mail"
    assert "pri: 7\n" in gst("stats", "--job", str(job_id)).out
    stats = json.loads(gst("stats", "--job", str(job_id), "--json").out)
    assert (stats["state"], stats["ttr"]) == ("ready", 9)


def test_stats_of_what_is_not_there_is_refused(gst, place):
    assert gst("stats", "--tube", "no") == (1, "", f"gstalk: stats-tube no at {place.uri}: no such tube\n")
    assert gst("stats", "--job", "9") == (1, "", f"gstalk: stats-job 9 at {place.uri}: no such job\n")


def test_stats_server_with_new_fields_shows_them(play):
    played = play({"stats": ok("---\nid: 4a\nnew-thing: 7\n")})
    assert "new-thing: 7\n" in run("stats", uri=played.uri).out
    assert json.loads(run("stats", "--json", uri=played.uri).out)["new-thing"] == "7"


def test_peek_prints_the_body_as_it_is(gst, clerk):
    body = b"a\r\nb\x1b[31m"
    job_id = clerk.put("mail", body)
    assert gst("peek", str(job_id)) == (0, body.decode(), "")
    assert gst("peek", "--tube", "mail").out == body.decode()
    assert clerk.stats_job(job_id).reserves == 0


def test_peek_each_state(gst, clerk):
    clerk.put("mail", b"now")
    clerk.put("mail", b"later", delay=1000)
    buried(clerk, "mail", b"dead")
    assert [gst("peek", "--tube", "mail", "--state", state).out for state in ("ready", "delayed", "buried")] == [
        "now",
        "later",
        "dead",
    ]


def test_peek_json_has_state_and_what_load_needs(gst, clerk):
    job_id = clerk.put("mail", b"later", delay=1000, priority=5, ttr=7)
    row = json.loads(gst("peek", str(job_id), "--json").out)
    assert row.pop("delay") in (999, 1000)
    assert row == {"id": job_id, "tube": "mail", "state": "delayed", "priority": 5, "ttr": 7, "body": "later"}
    binary = clerk.put("mail", b"\xff\x00")
    row = json.loads(gst("peek", str(binary), "--json").out)
    assert row["body_base64"] == "/wA="
    assert "body" not in row


def test_peek_nothing_there_is_refused(gst, place):
    assert gst("peek", "9") == (1, "", f"gstalk: peek 9 at {place.uri}: no such job\n")
    expected = f"gstalk: peek at {place.uri}: tube 'mail' has no buried job\n"
    assert gst("peek", "--tube", "mail", "--state", "buried") == (1, "", expected)


def test_hostile_server_cannot_write_to_the_terminal(play):
    """Whatever a server says, what reaches the terminal is printable."""
    played = play({"stats": ok(f"---\nid: 4a\nversion: {EVIL}\nhostname: x\n{EVIL}: {EVIL}\n")})
    for arguments in (["stats"], ["stats", "--json"]):
        code, out, err = run(*arguments, uri=played.uri)
        assert (code, err) == (0, "")
        assert all(line.isprintable() for line in out.splitlines())


@pytest.mark.parametrize("command", ["tubes", "info", "kick"])
def test_hostile_list_of_tubes_is_refused(play, command):
    played = play({"list-tubes": ok(f"---\n- {EVIL}\n- mail\n"), "stats-tube": ok("---\nname: mail\n")})
    code, _, err = run(command, uri=played.uri)
    assert code == 1
    assert err.count("\n") == 1
    assert err.removesuffix("\n").isprintable()


def test_hostile_reply_is_told_in_one_sentence(play):
    played = play({"stats-tube": EVIL.encode() + b"\r\n"})
    code, out, err = run("stats", "--tube", "mail", uri=played.uri)
    assert (code, out) == (1, "")
    assert err.removesuffix("\n").isprintable(), err


def test_peek_json_holds_no_control_characters(gst, clerk):
    job_id = clerk.put("mail", EVIL.encode())
    out = gst("peek", str(job_id), "--json").out
    assert out.removesuffix("\n").isprintable()
    assert out.isascii()
    assert json.loads(out)["body"] == EVIL
