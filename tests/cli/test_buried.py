"""`info`, `kick` and `delete`."""

from __future__ import annotations

import json
import re

import gevent
import pytest

import gstalk
from gstalk.testing import Server
from tests.cli.running import UNUSED, buried, run, states
from tests.servers import CUT, ok


def test_info_lists_tubes_with_buried_jobs_alone(gst, clerk):
    buried(clerk, "mail", b"1", b"2")
    buried(clerk, "fax", b"1")
    clerk.put("idle", b"x")
    code, out, err = gst("info")
    assert (code, out.count("\n"), err) == (0, 3, "")
    assert re.fullmatch(r"tube  buried  oldest\nfax        1  [012]s\nmail       2  [012]s\n", out)
    assert re.fullmatch(
        r"tube  buried  oldest\nmail       2  [012]s\n", gst("info", "--tube", "mail", "--tube", "idle").out
    )


def test_info_tells_the_age_of_the_job_that_was_buried_first():
    with Server() as server, gstalk.dial(server.uri) as conn:
        server.freeze()
        server.advance(5)
        buried(conn, "mail", b"1")
        server.advance(7200)
        buried(conn, "mail", b"2")
        server.advance(180)
        buried(conn, "fax", b"1")
        server.advance(3.5)  # ages are whole seconds
        assert run("info", uri=server.uri).out == "tube  buried  oldest\nfax        1  3s\nmail       2  2h03m\n"
        ages = [json.loads(line)["oldest"] for line in run("info", "--json", uri=server.uri).out.splitlines()]
        assert ages == [3, 7383]


def test_info_job_kicked_meanwhile_has_no_age(play):
    """It, or its statistics, may be gone when they are asked for."""
    played = play(
        {**tube_with(1), "peek-buried": [b"NOT_FOUND\r\n", b"FOUND 7 1\r\nx\r\n"], "stats-job": b"NOT_FOUND\r\n"}
    )
    for _ in range(2):
        assert run("info", uri=played.uri) == (0, "tube  buried  oldest\nmail       1\n", "")
    assert json.loads(run("info", "--json", uri=played.uri).out)["oldest"] is None
    assert played.count("stats-job") == 2


def test_info_json_is_the_tubes_stats(gst, clerk):
    buried(clerk, "mail", b"1")
    code, out, _ = gst("info", "--json")
    assert code == 0
    stats = json.loads(out)
    assert stats["name"] == "mail"
    assert stats["current_jobs_buried"] == 1
    names = set(gstalk.TubeStats.__dataclass_fields__) - {"extra"}
    assert names <= set(stats)


@pytest.mark.parametrize(
    ("command", "done", "left"),
    [("kick", "kicked", {"ready": 3, "delayed": 2}), ("delete", "deleted", {"delayed": 2})],
)
def test_act_takes_the_buried_jobs_alone(gst, clerk, command, done, left):
    buried(clerk, "mail", b"1", b"2", b"3")
    buried(clerk, "fax", b"1")
    clerk.put("mail", b"later", delay=1000)
    clerk.put("mail", b"later", delay=1000)
    yes = ["--yes"] if command == "delete" else []
    assert gst(command, "--tube", "mail", *yes) == (0, f"3 jobs {done}\n", "")
    assert states(clerk, "mail") == left
    assert states(clerk, "fax") == {"buried": 1}
    assert gst(command, *yes, "--json") == (0, '{"jobs": 1}\n', "")
    assert gst(command, *yes) == (0, f"0 jobs {done}\n", "")
    assert states(clerk, "mail") == left


@pytest.mark.parametrize("command", ["kick", "delete"])
def test_act_dry_run_changes_nothing(gst, clerk, command):
    buried(clerk, "mail", b"1", b"2")
    assert gst(command, "--dry-run") == (0, f"2 jobs would be {command.rstrip('e')}ed\n", "")
    assert gst(command, "--dry-run", "--json") == (0, '{"jobs": 2}\n', "")
    assert states(clerk, "mail") == {"buried": 2}


def test_delete_without_a_terminal_is_refused(gst, clerk, place):
    buried(clerk, "mail", b"1")
    code, out, err = gst("delete")
    assert (code, out) == (1, "")
    assert err == f"gstalk: refused to delete 1 buried job on {place.uri}: nobody to ask here; say --yes\n"
    assert states(clerk, "mail") == {"buried": 1}


@pytest.mark.parametrize("command", ["kick", "delete"])
def test_act_while_others_bury_ends(gst, clerk, place, command):
    """As many jobs as there were, at most, even if each that goes is followed by another one."""
    buried(clerk, "mail", *(b"%d" % number for number in range(50)))
    with gstalk.dial(place.uri) as other:
        goes_on = True

        def bury_on() -> None:
            while goes_on:
                buried(other, "mail", b"another")

        burying = gevent.spawn(bury_on)
        outcome = gst(command, *(["--yes"] if command == "delete" else []))
        goes_on = False
        burying.join()
        assert states(other, "mail")["buried"] > 0
    assert outcome.code == 0
    count = int(outcome.out.split()[0])
    assert 50 <= count < 150  # some were buried before they were counted
    assert (clerk.stats().cmd_delete if command == "delete" else states(clerk, "mail")["ready"]) == count


def tube_with(count: int) -> dict[str, object]:
    """What a played server says about its one tube."""
    stats = f"---\nname: mail\ncurrent-jobs-buried: {count}\n"
    return {"list-tubes": ok("---\n- mail\n"), "stats-tube": ok(stats)}


@pytest.mark.parametrize(("command", "word"), [("kick", "kick-job"), ("delete", "delete")])
def test_act_goes_out_in_one_write_with_the_next_peek(play, command, word):
    found = [b"FOUND %d 1\r\nx\r\n" % number for number in (7, 8)]
    said = b"KICKED\r\n" if command == "kick" else b"DELETED\r\n"
    played = play({**tube_with(2), "peek-buried": [*found, b"NOT_FOUND\r\n"], word: said})
    outcome = run(command, *(["--yes"] if command == "delete" else []), uri=played.uri)
    assert outcome.out.startswith("2 jobs")
    assert f"{word} 7\r\npeek-buried\r\n".encode() in played.reads
    assert f"{word} 8\r\npeek-buried\r\n".encode() in played.reads
    assert played.count("kick") == 0


@pytest.mark.parametrize("command", ["kick", "delete"])
def test_act_refused_for_ever_ends(play, command):
    """Where each deed fails and the same job is there again and again."""
    played = play(
        {
            **tube_with(5),
            "peek-buried": b"FOUND 7 1\r\nx\r\n",
            "kick-job": b"NOT_FOUND\r\n",
            "delete": b"NOT_FOUND\r\n",
        }
    )
    outcome = run(command, *(["--yes"] if command == "delete" else []), uri=played.uri)
    assert (outcome.code, outcome.out.split()[0]) == (0, "0")
    assert played.count("peek-buried") == 6


def test_kick_job_that_somebody_else_took_is_not_counted(play):
    found = [b"FOUND %d 1\r\nx\r\n" % number for number in (7, 8, 9)]
    kicked = [b"KICKED\r\n", b"NOT_FOUND\r\n", b"KICKED\r\n"]
    played = play({**tube_with(3), "peek-buried": [*found, b"NOT_FOUND\r\n"], "kick-job": kicked})
    assert run("kick", uri=played.uri) == (0, "2 jobs kicked\n", "")


def test_kick_tube_vanished_does_not_end_the_run(play):
    stats = [b"NOT_FOUND\r\n", ok("---\nname: new\ncurrent-jobs-buried: 1\n")]
    played = play(
        {
            "list-tubes": ok("---\n- gone\n- new\n"),
            "stats-tube": stats,
            "peek-buried": [b"FOUND 7 1\r\nx\r\n", b"NOT_FOUND\r\n"],
            "kick-job": b"KICKED\r\n",
        }
    )
    assert run("kick", uri=played.uri) == (0, "1 job kicked\n", "")


def test_kick_connection_lost_says_what_was_done(play):
    found = [b"FOUND %d 1\r\nx\r\n" % number for number in (7, 8)]
    played = play({**tube_with(3), "peek-buried": found, "kick-job": [b"KICKED\r\n", CUT]})
    code, out, err = run("kick", uri=played.uri)
    assert (code, out) == (3, "1 job kicked\n")
    assert err == (f"gstalk: kick-job 8 at {played.uri}: the server closed the connection; the server may have acted\n")


def test_act_several_servers_each_is_visited(clerk, place):
    with Server() as second, gstalk.dial(second.uri) as other:
        buried(clerk, "mail", b"1")
        buried(other, "mail", b"1", b"2")
        both = ["--uri", place.uri, "--uri", second.uri]
        wide = max(len(place.uri), len(second.uri))
        assert [re.sub(r"  \d+s$", "  0s", line) for line in run(*both, "info").out.splitlines()] == [
            f"{'uri'.ljust(wide)}  tube  buried  oldest",
            f"{place.uri.ljust(wide)}  mail       1  0s",
            f"{second.uri.ljust(wide)}  mail       2  0s",
        ]
        assert [json.loads(line)["uri"] for line in run(*both, "info", "--json").out.splitlines()] == both[1::2]
        assert run(*both, "kick") == (0, "3 jobs kicked\n", "")
        assert states(other, "mail") == {"ready": 2}


def test_act_one_of_several_servers_is_down(clerk, place):
    buried(clerk, "mail", b"1")
    code, out, err = run("--uri", UNUSED, "--uri", place.uri, "kick")
    assert (code, out) == (3, "1 job kicked\n")
    assert err == "gstalk: connect to beanstalk://localhost:1: connection refused\n"
    assert states(clerk, "mail") == {"ready": 1}
