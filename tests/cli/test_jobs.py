"""`put`, `bury`, `pause`, `resume` and `purge`."""

from __future__ import annotations

import json

import pytest

import gstalk
from tests.cli.running import buried, run, states
from tests.servers import CUT, ok


def body_of(conn: gstalk.Conn, tube: str) -> bytes:
    job = conn.peek_ready(tube)
    assert job is not None
    return job.body


def test_put_argument_prints_the_id(gst, clerk):
    code, out, err = gst("put", "mail", "hällo", "--priority", "7", "--delay", "1.5", "--ttr", "3")
    assert (code, err) == (0, "")
    job = clerk.peek(int(out))
    assert job.body == "hällo".encode()
    stats = job.stats()
    assert (stats.tube, stats.pri, stats.delay, stats.ttr) == ("mail", 7, 2, 3)


def test_put_defaults_are_those_of_put_params(gst, clerk):
    stats = clerk.stats_job(int(gst("put", "mail", "").out))
    assert (stats.pri, stats.delay, stats.ttr) == (1024, 0, 60)


def test_put_bytes_that_are_no_text(gst, clerk):
    gst("put", "mail", b"\xff\xfe".decode("utf-8", "surrogateescape"))
    assert body_of(clerk, "mail") == b"\xff\xfe"


def test_put_standard_input_is_one_job(gst, clerk):
    gst("put", "mail", stdin=b"one\ntwo\n\x00\xff")
    assert body_of(clerk, "mail") == b"one\ntwo\n\x00\xff"


def test_put_file(gst, clerk, tmp_path):
    (tmp_path / "body").write_bytes(b"from a file\n")
    assert gst("put", "mail", "--file", str(tmp_path / "body")).code == 0
    assert body_of(clerk, "mail") == b"from a file\n"
    assert gst("put", "mail", "--file", str(tmp_path / "none"))[:2] == (2, "")


def test_put_lines_is_one_job_a_line_in_order(gst, clerk):
    lines = [b"%d" % number for number in range(3000)] + [b"", b"with\rreturn\r", b"last"]
    code, out, err = gst("put", "mail", "--lines", "--priority", "3", stdin=b"\n".join(lines))
    assert (code, err) == (0, "")
    ids = [int(line) for line in out.splitlines()]
    assert ids == sorted(ids)
    assert [clerk.peek(job_id).body for job_id in ids] == lines
    assert clerk.stats_job(ids[0]).pri == 3


def test_put_lines_of_a_file(gst, clerk, tmp_path):
    (tmp_path / "lines").write_bytes(b"a\nb\n")
    assert len(gst("put", "mail", "--lines", "--file", str(tmp_path / "lines")).out.splitlines()) == 2


def test_put_lines_too_big_is_named_and_the_others_are_put(gst, clerk):
    big = clerk.stats().max_job_size + 1
    code, out, err = gst("put", "mail", "--lines", stdin=b"a\n" + b"x" * big + b"\nb\n" + b"y" * 300_000 + b"\nc")
    assert (code, len(out.splitlines())) == (1, 3)
    assert [line.partition(" at ")[0] for line in err.splitlines()] == [
        "gstalk: line 2: put",
        f"gstalk: line 4: longer than the server's max-job-size, {big - 1} bytes",
    ]
    assert states(clerk, "mail") == {"ready": 3}


def test_put_too_big_is_refused(gst, clerk, place):
    code, out, err = gst("put", "mail", stdin=b"x" * 1_000_000)
    assert (code, out) == (1, "")
    assert err == f"gstalk: put at {place.uri}: the body is larger than the server's max-job-size\n"


def test_put_server_draining_is_refused(gst, place):
    place.drain()
    code, out, err = gst("put", "mail", "x")
    assert (code, out) == (1, "")
    assert err == f"gstalk: put at {place.uri}: the server takes no new jobs until it is restarted\n"


def test_put_lines_server_draining_says_where_it_stopped(play):
    played = play({"put": [b"INSERTED 1\r\n", b"INSERTED 2\r\n", b"DRAINING\r\n"]})
    code, out, err = run("put", "mail", "--lines", stdin=b"a\nb\nc\nd\ne\n", uri=played.uri)
    assert (code, out) == (1, "1\n2\n")
    assert err == (
        f"gstalk: line 3: put at {played.uri}: the server takes no new jobs until it is restarted;"
        " nothing after line 2 was put\n"
    )


def test_put_lines_connection_lost_says_which_may_be_there(play):
    played = play({"put": [b"INSERTED 1\r\n", CUT]})
    code, out, err = run("put", "mail", "--lines", stdin=b"a\nb\nc\nd\n", uri=played.uri)
    assert (code, out) == (3, "1\n")
    first, *others = err.splitlines()
    assert first == (
        f"gstalk: line 2: put at {played.uri}: the server closed the connection; the server may have acted"
    )
    assert others[-1].endswith("nothing after line 4 was put")


@pytest.mark.parametrize(
    "arguments",
    [
        ["put", "mail", "x", "--lines"],
        ["put", "mail", "x", "--file", "-"],
        ["put", "-mail", "x"],
        ["put", "a" * 201, "x"],
        ["put", "mail", "x", "--priority", "4294967296"],
        ["put", "mail", "x", "--priority", "-1"],
        ["put", "mail", "x", "--delay", "nan"],
        ["put", "mail", "x", "--ttr", "0"],
        ["bury"],
        ["bury", "0"],
        ["bury", "x"],
        ["pause", "mail"],
        ["pause", "mail", "-1"],
        ["purge", "mail", "--state", "reserved"],
        ["peek"],
        ["peek", "1", "--tube", "mail"],
        ["peek", "1", "--state", "ready"],
        ["stats", "--tube", "a", "--job", "1"],
        ["stats", "--tube", "ä"],
        ["dump", "mail", "--keep"],
        ["dump", "mail", "--ids", "1-2"],
        ["dump", "mail", "--keep", "--ids", "5-1"],
        ["dump", "mail", "--keep", "--ids", "1"],
        ["move", "mail", "mail"],
        ["move", "mail", "fax", "--to-uri", "redis://x"],
        ["load", "/no/such/file"],
    ],
    ids=" ".join,
)
def test_wrong_argument_is_wrong_usage(gstalk_server, gstalk_conn, arguments):
    code, out, err = run(*arguments, stdin=b"x", uri=gstalk_server.uri)
    assert (code, out) == (2, "")
    assert err.startswith("gstalk: ")
    assert err.count("\n") == 1
    assert gstalk_conn.stats().total_jobs == 0


def test_bury_ready_and_delayed_keeps_the_priority(gst, clerk, place):
    ids = [clerk.put("mail", b"1", priority=5), clerk.put("mail", b"2", delay=100, priority=6)]
    clerk.put("mail", b"3", priority=0)
    assert clerk.reserve_job(3).id == 3
    code, out, err = gst("bury", *map(str, ids), "3", "9")
    assert (code, out) == (1, "2 jobs buried\n")
    assert err.splitlines() == [
        f"gstalk: reserve-job {number} at {place.uri}: no such job, or not in a state for this;"
        " one that a worker has reserved only that worker can bury"
        for number in (3, 9)
    ]
    assert [clerk.stats_job(number).state for number in ids] == ["buried", "buried"]
    assert [clerk.stats_job(number).pri for number in ids] == [5, 6]
    assert gst("bury", "1", "--json") == (0, '{"jobs": 1}\n', "")


def test_pause_and_resume(gst, clerk, place):
    clerk.put("mail", b"1")
    assert gst("pause", "mail", "99.5") == (0, "", "")
    assert clerk.stats_tube("mail").pause == 100
    clerk.watch("mail")
    assert clerk.reserve_with_timeout(0) is None
    assert gst("resume", "mail") == (0, "", "")
    assert clerk.stats_tube("mail").pause_time_left == 0
    assert clerk.reserve_with_timeout(0) is not None
    assert gst("pause", "nix", "9") == (1, "", f"gstalk: pause-tube nix at {place.uri}: no such tube\n")


def fill(conn: gstalk.Conn) -> None:
    for number in range(3):
        conn.put("mail", b"ready %d" % number)
    for number in range(2):
        conn.put("mail", b"delayed %d" % number, delay=1000)
    buried(conn, "mail", b"buried")
    conn.put("mail", b"reserved", priority=0)
    conn.watch("mail")
    conn.reserve()


@pytest.mark.parametrize(
    ("state", "count", "left"),
    [
        ("ready", 3, {"delayed": 2, "buried": 1}),
        ("delayed", 2, {"ready": 3, "buried": 1}),
        ("buried", 1, {"ready": 3, "delayed": 2}),
        ("all", 6, {}),
        (None, 6, {}),
    ],
)
def test_purge_deletes_the_jobs_of_a_state(gst, clerk, state, count, left):
    fill(clerk)
    option = [] if state is None else ["--state", state]
    expected = f"{count} job{'s' if count > 1 else ''} deleted\n"
    assert gst("purge", "mail", *option, "--yes") == (0, expected, "")
    assert states(clerk, "mail") == {**left, "reserved": 1}


def test_purge_paused_tube(gst, clerk):
    clerk.put("mail", b"1")
    clerk.pause_tube("mail", 1000)
    assert gst("purge", "mail", "--yes", "--json").out == '{"jobs": 1}\n'


def test_purge_without_a_terminal_is_refused(gst, clerk, place):
    fill(clerk)
    code, out, err = gst("purge", "mail")
    assert (code, out) == (1, "")
    assert err == (
        f"gstalk: refused to delete 2 delayed, 3 ready and 1 buried jobs of mail on {place.uri}:"
        " nobody to ask here; say --yes\n"
    )
    assert states(clerk, "mail")["ready"] == 3


def test_purge_no_such_tube_is_nothing_to_do(gst):
    assert gst("purge", "nix") == (0, "0 jobs deleted\n", "")


def test_purge_ends_while_others_put(play):
    """As many as were there: the played tube is never empty."""
    stats = "---\nname: mail\ncurrent-jobs-ready: 3\ncurrent-jobs-delayed: 0\ncurrent-jobs-buried: 0\n"
    played = play({"stats-tube": ok(stats), "peek-ready": b"FOUND 7 1\r\nx\r\n", "delete": b"DELETED\r\n"})
    assert json.loads(run("purge", "mail", "--yes", "--json", uri=played.uri).out) == {"jobs": 3}
    assert b"delete 7\r\npeek-ready\r\n" in played.reads
