"""`move`, `dump` and `load`."""

from __future__ import annotations

import json
import random

import gevent
import pytest

import gstalk
from gstalk.cli._lines import CHUNK
from gstalk.testing import Server
from tests.cli.running import buried, run, states
from tests.servers import CUT, ok

BODIES = [b"", b"plain", "h\u00e4llo\u2028\x1b[31m\x7f".encode(), b"\xff\x00\xfe", b'{"tube": 1}\n', b"\r\n"]


def rows(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def bodies(conn: gstalk.Conn, tube: str) -> list[bytes]:
    """Take the ready jobs of a tube out."""
    found = []
    while (job := conn.peek_ready(tube)) is not None:
        found.append(job.body)
        job.delete()
    return found


def fill(conn: gstalk.Conn) -> None:
    """Ready, delayed, buried and reserved jobs."""
    conn.put("mail", b"reserved", priority=0)
    conn.watch("mail")
    conn.reserve()
    for number in range(3):
        conn.put("mail", b"ready %d" % number, priority=5, ttr=9)
    conn.put("mail", b"delayed", priority=6, delay=1000, ttr=8)
    buried(conn, "mail", b"buried", priority=7)


def test_dump_takes_ready_delayed_and_buried_jobs_out(gst, clerk):
    fill(clerk)
    code, out, err = gst("dump", "mail", "--yes")
    assert (code, err) == (0, "5 jobs dumped\n")
    delayed, *others = rows(out)
    assert delayed.pop("delay") in (999, 1000)
    assert delayed == {"tube": "mail", "priority": 6, "ttr": 8, "body": "delayed"}
    ready = {"tube": "mail", "priority": 5, "delay": 0, "ttr": 9}
    assert others == [
        *({**ready, "body": f"ready {number}"} for number in range(3)),
        {"tube": "mail", "priority": 7, "delay": 0, "ttr": 60, "body": "buried"},
    ]
    assert states(clerk, "mail") == {"reserved": 1}


def test_dump_and_load_keep_every_body(gst, clerk):
    for body in BODIES:
        clerk.put("mail", body)
    out = gst("dump", "mail", "--yes").out
    assert out.isascii()
    assert all(line.isprintable() for line in out.split("\n"))
    assert gst("load", stdin=out.encode()) == (0, f"{len(BODIES)} jobs loaded\n", "")
    assert bodies(clerk, "mail") == BODIES


def test_dump_and_load_keep_order_priority_delay_and_ttr(gst, clerk, tmp_path):
    rng = random.Random(7)
    for number in range(500):
        clerk.put("mail", b"%d" % number, priority=rng.choice([1, 2]), ttr=rng.randint(1, 99))
    order = [json.loads(line)["body"] for line in gst("dump", "mail", "--keep", "--ids", "1-500").out.splitlines()]
    assert order == [str(number) for number in range(500)]
    (tmp_path / "jobs").write_text(gst("dump", "mail", "--yes").out)
    first = rows((tmp_path / "jobs").read_text())
    priorities = [int(str(row["priority"])) for row in first]
    assert priorities == sorted(priorities)
    assert gst("load", str(tmp_path / "jobs"), "--json") == (0, '{"jobs": 500}\n', "")
    assert rows(gst("dump", "mail", "--yes").out) == first


def test_dump_paused_tube(gst, clerk):
    for number in range(10):
        clerk.put("mail", b"%d" % number)
    clerk.pause_tube("mail", 1000)
    assert [row["body"] for row in rows(gst("dump", "mail", "--yes").out)] == [str(number) for number in range(10)]


def test_dump_default_tube(gst, clerk):
    clerk.put("default", b"1")
    assert len(rows(gst("dump", "default", "--yes").out)) == 1


def test_dump_without_a_terminal_is_refused(gst, clerk, place):
    clerk.put("mail", b"1")
    expected = f"gstalk: refused to take 1 job out of mail on {place.uri}: nobody to ask here; say --yes\n"
    assert gst("dump", "mail") == (1, "", expected)
    assert states(clerk, "mail") == {"ready": 1}


def test_dump_no_such_tube_is_nothing_to_do(gst):
    assert gst("dump", "nix") == (0, "", "0 jobs dumped\n")


def test_dump_keep_only_reads(gst, clerk):
    fill(clerk)
    clerk.put("fax", b"other")
    before = states(clerk, "mail")
    code, out, err = gst("dump", "mail", "--keep", "--ids", "2-100")
    assert (code, err) == (0, "5 jobs dumped\n")
    assert [row["body"] for row in rows(out)] == ["ready 0", "ready 1", "ready 2", "delayed", "buried"]
    assert states(clerk, "mail") == before
    assert clerk.stats_job(2).reserves == 0


def test_dump_while_others_put_ends(gst, clerk, place):
    for _ in range(100):
        clerk.put("mail", b"1")
    goes_on = True

    def put_on() -> None:
        with gstalk.dial(place.uri) as other:
            while goes_on:
                other.put("mail", b"another")

    putting = gevent.spawn(put_on)
    out = gst("dump", "mail", "--yes").out
    goes_on = False
    putting.join()
    assert 100 <= len(rows(out)) < 300


def test_dump_server_gone_loses_nothing(clerk, play):
    """The connection breaks where a delete is due: its line is out, and its job is still there."""
    stats = "---\nname: mail\ncurrent-jobs-ready: 1\ncurrent-jobs-delayed: 0\ncurrent-jobs-buried: 0\n"
    replies = {"stats-tube": ok(stats), "list-tubes-watched": ok("---\n- mail\n"), "delete": CUT}
    played = play({**replies, "reserve-with-timeout": [b"RESERVED 7 1\r\nx\r\n", b"TIMED_OUT\r\n"]})
    code, out, err = run("dump", "mail", "--yes", uri=played.uri)
    assert code == 3
    assert len(rows(out)) == 1
    assert err.splitlines()[0] == "0 jobs dumped"


@pytest.mark.parametrize(("refused", "many"), [([7], "1 job"), ([7, 8], "2 jobs")])
def test_dump_job_whose_time_ran_out_may_be_in_both_places_and_says_so(play, refused, many):
    """It was written, and the server knows it no more: its time to run was over, and somebody may have it."""
    found = [b"RESERVED %d 1\r\nx\r\n" % number for number in (7, 8, 9)]
    stats = ok("---\nname: mail\ncurrent-jobs-ready: 3\ncurrent-jobs-delayed: 0\ncurrent-jobs-buried: 0\n")
    watched = ok("---\n- default\n- mail\n")

    def delete(line: bytes) -> bytes:
        return b"NOT_FOUND\r\n" if int(line.split()[1]) in refused else b"DELETED\r\n"

    played = play(
        {
            "stats-tube": stats,
            "list-tubes-watched": watched,
            "reserve-with-timeout": [*found, b"TIMED_OUT\r\n"],
            "delete": delete,
        }
    )
    code, out, err = run("dump", "mail", "--yes", uri=played.uri)
    assert (code, len(rows(out))) == (1, 3)
    assert err == f"3 jobs dumped\ngstalk: {many} ran out of time to run meanwhile, and may also still be in mail\n"


def test_dump_keep_ends_at_the_first_error(play):
    """What was read until then is printed, in its order."""
    stats = ["---\nid: 1\ntube: mail\nstate: ready\npri: 0\n", None, "---\nid: 3\ntube: mail\nstate: ready\npri: 0\n"]
    told = [b"INTERNAL_ERROR\r\n" if each is None else ok(each) for each in stats]
    played = play({"stats-job": told, "peek": [b"FOUND 1 1\r\na\r\n", b"FOUND 3 1\r\nc\r\n"]})
    code, out, err = run("dump", "mail", "--keep", "--ids", "1-3", uri=played.uri)
    assert (code, [row["body"] for row in rows(out)]) == (1, ["a"])
    assert err == f"gstalk: stats-job 2 at {played.uri}: a bug in the server; it may have acted\n"


def test_load_bad_lines_are_named_and_the_others_loaded(gst, clerk):
    good = '{"tube": "mail", "priority": 1, "delay": 0, "ttr": 9, "body": "x"}\n'
    bad = {
        "{}": "needs either body or body_base64",
        "nix": "not JSON",
        "[1]": "not a JSON object",
        '{"tube": "mail", "body": "x", "body_base64": "eA=="}': "needs either body or body_base64",
        '{"tube": "mail", "body": 7}': "body is no string",
        '{"tube": "mail", "body": "\\ud800"}': "body is no Unicode text",
        '{"tube": "mail", "body_base64": "e"}': "body_base64 is no base64",
        '{"body": "x"}': "tube is missing, or no string",
        '{"tube": "a b", "body": "x"}': "tube name may hold letters, digits and -+/;.$_() only: 'a b'",
        '{"tube": "mail", "body": "x", "priority": -1}': "priority must be from 0 to 4294967295, got -1",
        '{"tube": "mail", "body": "x", "ttr": "9"}':
            "ttr must be seconds (int, float or timedelta), got str",
        '{"tube": "mail", "body": "x", "prio\x1b": 1}'.replace("\x1b", "\\u001b"): "unknown field 'prio\\x1b'",
        "[" * 100_000: "nested too deep",
    }  # fmt: skip
    text = "".join(f"{good}{line}\n" for line in bad) + good + good[:30]
    code, out, err = gst("load", stdin=text.encode())
    assert (code, out) == (1, f"{len(bad) + 1} jobs loaded\n")
    expected = [f"gstalk: line {2 * number + 2}: {why}" for number, why in enumerate(bad.values())]
    last = f"gstalk: line {2 * len(bad) + 2}: cut off: not JSON, and without a line end"
    assert err.splitlines() == [*expected, last]
    assert len(bodies(clerk, "mail")) == len(bad) + 1


def test_load_defaults_and_what_peek_prints(gst, clerk):
    job_id = clerk.put("mail", b"x", priority=3)
    text = gst("peek", str(job_id), "--json").out + '{"tube": "mail", "body": "y"}\n\n'
    code, out, err = gst("load", stdin=text.encode())
    assert (code, out, err) == (1, "2 jobs loaded\n", "gstalk: line 3: not JSON\n")
    assert clerk.stats_job(job_id + 1).pri == 3
    assert clerk.stats_job(job_id + 2).ttr == 60


def test_load_line_longer_than_any_job(gst, clerk):
    body = "x" * (7 * clerk.stats().max_job_size)
    text = f'{{"tube": "mail", "body": "{body}"}}\n{{"tube": "mail", "body": "y"}}\n'
    code, out, err = gst("load", stdin=text.encode())
    assert (code, out) == (1, "1 job loaded\n")
    assert err == "gstalk: line 1: longer than any job of this server can be\n"


def test_load_largest_job_in_its_longest_form(gst, clerk):
    size = clerk.stats().max_job_size
    text = '{"tube": "mail", "body": "' + "\\u0041" * size + '"}\n'
    assert len(text) > CHUNK
    assert gst("load", stdin=text.encode()).out == "1 job loaded\n"
    assert bodies(clerk, "mail") == [b"A" * size]


def test_move_within_a_server(gst, clerk):
    fill(clerk)
    assert gst("move", "mail", "fax") == (0, "5 jobs moved\n", "")
    assert states(clerk, "mail") == {"reserved": 1}
    assert states(clerk, "fax") == {"ready": 4, "delayed": 1}
    delayed = clerk.peek_delayed("fax")
    assert delayed is not None
    stats = delayed.stats()
    assert (delayed.body, stats.pri, stats.ttr) == (b"delayed", 6, 8)
    assert stats.delay in (999, 1000)
    ready = clerk.peek_ready("fax")
    assert ready is not None
    assert (ready.body, ready.stats().pri, ready.stats().ttr) == (b"ready 0", 5, 9)
    assert bodies(clerk, "fax") == [b"ready 0", b"ready 1", b"ready 2", b"buried"]


def test_move_to_another_server(gst, clerk):
    for body in BODIES:
        clerk.put("mail", body)
    with Server() as second, gstalk.dial(second.uri) as other:
        assert gst("move", "mail", "mail", "--to-uri", second.uri, "--json") == (0, '{"jobs": 6}\n', "")
        assert bodies(other, "mail") == BODIES
    assert states(clerk, "mail") == {}


def test_move_refused_leaves_every_job_as_it_was(gst, clerk):
    """What was reserved for the move is put back: ready, delayed and buried, each with its priority."""
    ids = {
        "ready": [clerk.put("ready", b"%d" % number, priority=9) for number in range(100)],
        "delayed": [clerk.put("delayed", b"x", priority=9, delay=1000) for _ in range(100)],
        "buried": buried(clerk, "buried", *[b"x"] * 100, priority=9),
    }
    with Server() as second:
        second.drain()
        for state, numbers in ids.items():
            reserves = sum(clerk.stats_job(number).reserves or 0 for number in numbers)
            code, out, err = gst("move", state, "mail", "--to-uri", second.uri)
            assert (code, out) == (1, "0 jobs moved\n")
            assert err == f"gstalk: put at {second.uri}: the server takes no new jobs until it is restarted\n"
            found = [clerk.stats_job(number) for number in numbers]
            assert {(stats.state, stats.pri) for stats in found} == {(state, 9)}
            assert sum(stats.reserves or 0 for stats in found) > reserves
    assert min(clerk.stats_job(number).time_left or 0 for number in ids["delayed"]) > 900
    assert bodies(clerk, "ready") == [b"%d" % number for number in range(100)]


def test_move_refused_halfway_counts_exactly(clerk, gst):
    for number in range(300):
        clerk.put("mail", b"%d" % number)
    clerk.put("mail", b"x" * 200, priority=4_000_000_000)
    with Server(max_job_size=100) as second, gstalk.dial(second.uri) as other:
        assert gst("move", "mail", "fax", "--to-uri", second.uri)[:2] == (1, "300 jobs moved\n")
        assert states(other, "fax") == {"ready": 300}
    assert states(clerk, "mail") == {"ready": 1}


def test_move_target_down_is_said_before_anything_is_taken(gst, clerk):
    clerk.put("mail", b"1")
    code, out, err = gst("move", "mail", "fax", "--to-uri", "localhost:1")
    assert (code, out) == (3, "")
    assert err == "gstalk: connect to beanstalk://localhost:1: connection refused\n"
    assert clerk.stats_job(1).reserves == 0
