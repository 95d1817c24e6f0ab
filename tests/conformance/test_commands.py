"""Every command and its replies, in literal bytes, against the embedded server and the real one."""

from __future__ import annotations

import pytest

from gstalk.testing import Server

PUT = b"put 10 0 60 1\r\na\r\n"
RESERVED = b"INSERTED 1\r\nRESERVED 1 1\r\na\r\n"  # what PUT and a reserve are answered

# What is sent, and what is answered, on a fresh connection to a fresh server.
CASES = [
    ("put", PUT, b"INSERTED 1\r\n"),
    ("put empty", b"put 0 0 60 0\r\n\r\n", b"INSERTED 1\r\n"),
    ("put crlf in body", b"put 0 0 60 2\r\n\r\n\r\n", b"INSERTED 1\r\n"),
    ("put largest numbers", b"put 4294967295 4294967295 4294967295 0\r\n\r\n", b"INSERTED 1\r\n"),
    ("put at the limit", b"put 0 0 60 65535\r\n" + b"x" * 65535 + b"\r\n", b"INSERTED 1\r\n"),
    ("put too big", b"put 0 0 60 65536\r\n" + b"x" * 65536 + b"\r\n" + PUT, b"JOB_TOO_BIG\r\nINSERTED 1\r\n"),
    ("put without crlf", b"put 0 0 60 1\r\nabc", b"EXPECTED_CRLF\r\n"),
    ("put priority too large", b"put 4294967296 0 60 6\r\nstatsx\r\n", b"BAD_FORMAT\r\nBAD_FORMAT\r\n"),
    ("put negative", b"put -1 0 60 8\r\ndelete 1\r\n", b"BAD_FORMAT\r\nNOT_FOUND\r\n"),
    ("put float", b"put 0 1.5 60 14\r\nlist-tube-used\r\n", b"BAD_FORMAT\r\nUSING default\r\n"),
    ("put exponent", b"put 1e3 0 60 8\r\ndelete 1\r\n", b"BAD_FORMAT\r\nNOT_FOUND\r\n"),
    ("put without numbers", b"put 0 0 60\r\n", b"BAD_FORMAT\r\n"),
    ("use", b"use tube\r\nlist-tube-used\r\n", b"USING tube\r\nUSING tube\r\n"),
    ("use all characters", b"use aZ09+/;.$_()-\r\n", b"USING aZ09+/;.$_()-\r\n"),
    ("use 200 bytes", b"use " + b"a" * 200 + b"\r\n", b"USING " + b"a" * 200 + b"\r\n"),
    ("use 201 bytes", b"use " + b"a" * 201 + b"\r\n", b"BAD_FORMAT\r\n"),
    ("use hyphen first", b"use -a\r\n", b"BAD_FORMAT\r\n"),
    ("use space", b"use a b\r\n", b"BAD_FORMAT\r\n"),
    ("use utf-8", "use ä\r\n".encode(), b"BAD_FORMAT\r\n"),
    ("use nothing", b"use \r\n", b"BAD_FORMAT\r\n"),
    ("line too long", b"use " + b"a" * 300 + b"\r\nlist-tube-used\r\n", b"BAD_FORMAT\r\nUSING default\r\n"),
    ("reserve", PUT + b"reserve\r\n", b"INSERTED 1\r\nRESERVED 1 1\r\na\r\n"),
    ("reserve none", b"reserve-with-timeout 0\r\n", b"TIMED_OUT\r\n"),
    ("reserve at once", PUT + b"reserve-with-timeout 0\r\n", b"INSERTED 1\r\nRESERVED 1 1\r\na\r\n"),
    ("reserve-job", PUT + b"reserve-job 1\r\n", b"INSERTED 1\r\nRESERVED 1 1\r\na\r\n"),
    ("reserve-job missing", b"reserve-job 1\r\n", b"NOT_FOUND\r\n"),
    (
        "reserve-job reserved",
        PUT + b"reserve-job 1\r\nreserve-job 1\r\n",
        b"INSERTED 1\r\nRESERVED 1 1\r\na\r\nNOT_FOUND\r\n",
    ),
    ("reserve-job delayed", b"put 0 9 60 0\r\n\r\nreserve-job 1\r\n", b"INSERTED 1\r\nRESERVED 1 0\r\n\r\n"),
    ("delete ready", PUT + b"delete 1\r\ndelete 1\r\n", b"INSERTED 1\r\nDELETED\r\nNOT_FOUND\r\n"),
    ("delete delayed", b"put 0 9 60 0\r\n\r\ndelete 1\r\n", b"INSERTED 1\r\nDELETED\r\n"),
    ("delete largest id", b"delete 18446744073709551615\r\n", b"NOT_FOUND\r\n"),
    ("delete id too large", b"delete 18446744073709551616\r\n", b"BAD_FORMAT\r\n"),
    ("delete no number", b"delete x\r\n", b"BAD_FORMAT\r\n"),
    ("release", PUT + b"reserve\r\nrelease 1 5 0\r\n", b"INSERTED 1\r\nRESERVED 1 1\r\na\r\nRELEASED\r\n"),
    ("release not reserved", PUT + b"release 1 5 0\r\n", b"INSERTED 1\r\nNOT_FOUND\r\n"),
    ("release without delay", b"release 1 5\r\n", b"BAD_FORMAT\r\n"),
    ("bury", PUT + b"reserve\r\nbury 1 5\r\n", b"INSERTED 1\r\nRESERVED 1 1\r\na\r\nBURIED\r\n"),
    ("bury not reserved", PUT + b"bury 1 5\r\n", b"INSERTED 1\r\nNOT_FOUND\r\n"),
    ("touch", PUT + b"reserve\r\ntouch 1\r\n", b"INSERTED 1\r\nRESERVED 1 1\r\na\r\nTOUCHED\r\n"),
    ("touch not reserved", PUT + b"touch 1\r\n", b"INSERTED 1\r\nNOT_FOUND\r\n"),
    ("watch", b"watch a\r\nwatch a\r\nwatch b\r\n", b"WATCHING 2\r\nWATCHING 2\r\nWATCHING 3\r\n"),
    ("ignore", b"watch a\r\nignore default\r\nignore a\r\n", b"WATCHING 2\r\nWATCHING 1\r\nNOT_IGNORED\r\n"),
    ("ignore what isn't watched", b"ignore nothing\r\n", b"WATCHING 1\r\n"),
    ("watched", b"watch null\r\nlist-tubes-watched\r\n", b"WATCHING 2\r\nOK 21\r\n---\n- default\n- null\n\r\n"),
    ("tubes", b"list-tubes\r\n", b"OK 14\r\n---\n- default\n\r\n"),
    ("tubes with odd names", b"use 1e5\r\nlist-tubes\r\n", b"USING 1e5\r\nOK 20\r\n---\n- default\n- 1e5\n\r\n"),
    ("peek", PUT + b"peek 1\r\npeek 2\r\n", b"INSERTED 1\r\nFOUND 1 1\r\na\r\nNOT_FOUND\r\n"),
    ("peek-ready", PUT + b"peek-ready\r\n", b"INSERTED 1\r\nFOUND 1 1\r\na\r\n"),
    ("peek-ready none", b"peek-ready\r\n", b"NOT_FOUND\r\n"),
    ("peek-delayed", b"put 0 9 60 1\r\na\r\npeek-delayed\r\n", b"INSERTED 1\r\nFOUND 1 1\r\na\r\n"),
    ("peek-delayed none", PUT + b"peek-delayed\r\n", b"INSERTED 1\r\nNOT_FOUND\r\n"),
    ("peek-buried none", PUT + b"peek-buried\r\n", b"INSERTED 1\r\nNOT_FOUND\r\n"),
    ("kick none", b"kick 10\r\n", b"KICKED 0\r\n"),
    ("kick delayed", b"put 0 9 60 0\r\n\r\nkick 10\r\n", b"INSERTED 1\r\nKICKED 1\r\n"),
    ("kick-job", b"put 0 9 60 0\r\n\r\nkick-job 1\r\nkick-job 1\r\n", b"INSERTED 1\r\nKICKED\r\nNOT_FOUND\r\n"),
    ("kick-job reserved", PUT + b"reserve\r\nkick-job 1\r\n", b"INSERTED 1\r\nRESERVED 1 1\r\na\r\nNOT_FOUND\r\n"),
    ("stats-job missing", b"stats-job 1\r\n", b"NOT_FOUND\r\n"),
    ("stats-tube missing", b"stats-tube nothing\r\n", b"NOT_FOUND\r\n"),
    ("stats-tube bad name", b"stats-tube -x\r\n", b"BAD_FORMAT\r\n"),
    ("pause-tube", b"pause-tube default 0\r\n", b"PAUSED\r\n"),
    ("pause-tube missing", b"pause-tube nothing 0\r\n", b"NOT_FOUND\r\n"),
    ("unknown", b"hello\r\n", b"UNKNOWN_COMMAND\r\n"),
    ("empty line", b"\r\n", b"UNKNOWN_COMMAND\r\n"),
    ("upper case", b"STATS\r\n", b"UNKNOWN_COMMAND\r\n"),
    ("quit with a suffix closes", b"quitX\r\nlist-tube-used\r\n", b""),
    ("suffix of a command alone", b"statsx\r\n", b"BAD_FORMAT\r\n"),
    ("command without its argument", b"delete\r\n", b"UNKNOWN_COMMAND\r\n"),
    ("nul in a line", b"use a\0b\r\n", b"BAD_FORMAT\r\n"),
    ("injection by a tube's name", b"use a\r\nput 0 0 60 0\r\n\r\n", b"USING a\r\nINSERTED 1\r\n"),
    ("line of 224 bytes", b"x" * 222 + b"\r\n", b"UNKNOWN_COMMAND\r\n"),
    ("line of 226 bytes", b"x" * 224 + b"\r\nlist-tube-used\r\n", b"BAD_FORMAT\r\nUSING default\r\n"),
    ("spaces before numbers", b"put  1  0  60  0\r\n\r\npeek   1\r\n", b"INSERTED 1\r\nFOUND 1 0\r\n\r\n"),
    ("space behind a number", b"delete 1 \r\n", b"BAD_FORMAT\r\n"),
    ("put with trailing text", b"put 0 0 60 0 x\r\n\r\n", b"BAD_FORMAT\r\nUNKNOWN_COMMAND\r\n"),
    ("put size too large for 32 bits", b"put 0 0 60 4294967296\r\nx\r\n", b"BAD_FORMAT\r\nUNKNOWN_COMMAND\r\n"),
    ("put ttr too large", b"put 0 0 4294967296 0\r\n\r\n", b"BAD_FORMAT\r\nUNKNOWN_COMMAND\r\n"),
    ("put whose body says quit", b"put 0 0 4294967296 4\r\nquit\r\nlist-tube-used\r\n", b"BAD_FORMAT\r\n"),
    ("release delay too large", b"release 1 0 4294967296\r\n", b"BAD_FORMAT\r\n"),
    ("kick a negative number", b"kick -1\r\n", b"KICKED 0\r\n"),
    ("kick more than 32 bits", b"put 0 9 60 0\r\n\r\nkick 4294967296\r\n", b"INSERTED 1\r\nKICKED 0\r\n"),
    ("kick a fraction", b"put 0 9 60 0\r\n\r\nkick 1.5\r\n", b"INSERTED 1\r\nKICKED 1\r\n"),
    ("kick with trailing text", b"kick 1 foo\r\n", b"KICKED 0\r\n"),
    ("kick no number", b"kick x\r\n", b"BAD_FORMAT\r\n"),
    ("kick beyond 64 bits", b"kick 18446744073709551616\r\n", b"BAD_FORMAT\r\n"),
    ("pause-tube without a delay", b"pause-tube default\r\n", b"BAD_FORMAT\r\n"),
    ("pause-tube bad name", b"pause-tube -a 0\r\n", b"BAD_FORMAT\r\n"),
    ("pause-tube delay too large", b"pause-tube default 4294967296\r\n", b"BAD_FORMAT\r\n"),
    ("peek buried", PUT + b"reserve\r\nbury 1 5\r\npeek-buried\r\n", RESERVED + b"BURIED\r\nFOUND 1 1\r\na\r\n"),
    ("reserve-job buried", PUT + b"reserve\r\nbury 1 5\r\nreserve-job 1\r\n", RESERVED + b"BURIED\r\n" + RESERVED[12:]),
    ("kick-job buried", PUT + b"reserve\r\nbury 1 5\r\nkick-job 1\r\n", RESERVED + b"BURIED\r\nKICKED\r\n"),
    ("delete buried", PUT + b"reserve\r\nbury 1 5\r\ndelete 1\r\n", RESERVED + b"BURIED\r\nDELETED\r\n"),
    ("delete reserved", PUT + b"reserve\r\ndelete 1\r\n", RESERVED + b"DELETED\r\n"),
    ("peek reserved", PUT + b"reserve\r\npeek 1\r\npeek-ready\r\n", RESERVED + b"FOUND 1 1\r\na\r\nNOT_FOUND\r\n"),
    (
        "release with delay",
        PUT + b"reserve\r\nrelease 1 0 9\r\npeek-delayed\r\n",
        RESERVED + b"RELEASED\r\nFOUND 1 1\r\na\r\n",
    ),
    ("touch bad id", b"touch -1\r\n", b"BAD_FORMAT\r\n"),
    ("bury without priority", b"bury 1\r\n", b"BAD_FORMAT\r\n"),
    ("watch bad name", b"watch -a\r\n", b"BAD_FORMAT\r\n"),
    ("ignore bad name", b"ignore \r\n", b"BAD_FORMAT\r\n"),
    ("reserve with a word", b"reserve x\r\n", b"BAD_FORMAT\r\n"),
    (
        "in step after errors",
        b"use -\r\nhello\r\nlist-tube-used\r\n",
        b"BAD_FORMAT\r\nUNKNOWN_COMMAND\r\nUSING default\r\n",
    ),
]


@pytest.mark.parametrize(("sent", "reply"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_command_is_answered(wire, sent, reply):
    wire.say(sent, reply)
    wire.sock.shutdown(1)
    assert wire.at_end()  # and nothing else was said


@pytest.mark.parametrize("timeout", [b"4294967296", b"x"])  # wraps to 0, and no number
def test_timeout_that_is_read_as_0(both, wire, timeout):
    wire.send(b"reserve-with-timeout " + timeout + b"\r\n")
    if isinstance(both.server, Server):
        wire.expect(b"TIMED_OUT\r\n")
    else:
        assert wire.line() in (b"TIMED_OUT", b"BAD_FORMAT")  # 1.12, and later ones


def test_quit_closes(wire):
    wire.send(b"quit\r\n")
    assert wire.at_end()


STATS_KEYS = (
    "current-jobs-urgent current-jobs-ready current-jobs-reserved current-jobs-delayed current-jobs-buried cmd-put "
    "cmd-peek cmd-peek-ready cmd-peek-delayed cmd-peek-buried cmd-reserve cmd-reserve-with-timeout cmd-delete "
    "cmd-release cmd-use cmd-watch cmd-ignore cmd-bury cmd-kick cmd-touch cmd-stats cmd-stats-job cmd-stats-tube "
    "cmd-list-tubes cmd-list-tube-used cmd-list-tubes-watched cmd-pause-tube job-timeouts total-jobs max-job-size "
    "current-tubes current-connections current-producers current-workers current-waiting total-connections pid version "
    "rusage-utime rusage-stime uptime binlog-oldest-index binlog-current-index binlog-records-migrated "
    "binlog-records-written binlog-max-size draining id hostname os platform"
).split()


def test_stats_has_all_keys_in_order_and_counts(both, wire):
    other = both.wire()
    other.say(PUT + b"put 2000 0 60 0\r\n\r\nput 0 9 60 0\r\n\r\n", b"INSERTED 1\r\nINSERTED 2\r\nINSERTED 3\r\n")
    other.say(b"reserve\r\n", b"RESERVED 1 1\r\na\r\n")
    stats = wire.ask(b"stats\r\n")
    assert list(stats) == STATS_KEYS
    expected = {"current-jobs-urgent": "0", "current-jobs-ready": "1", "current-jobs-reserved": "1", "cmd-put": "3"}
    expected |= {"current-jobs-delayed": "1", "total-jobs": "3", "max-job-size": "65535", "draining": "false"}
    expected |= {"current-connections": "2", "current-producers": "1", "current-workers": "1", "current-waiting": "0"}
    assert {key: stats[key] for key in expected} == expected


def test_stats_tube_has_all_keys_and_counts(wire):
    wire.say(b"use t\r\nwatch t\r\n" + PUT + b"reserve\r\ndelete 1\r\n", b"USING t\r\nWATCHING 2\r\nINSERTED 1\r\n")
    wire.expect(b"RESERVED 1 1\r\na\r\nDELETED\r\n")
    assert wire.ask(b"stats-tube t\r\n") == {
        "name": "t",
        **{f"current-jobs-{state}": "0" for state in ("urgent", "ready", "reserved", "delayed", "buried")},
        "total-jobs": "1",
        "current-using": "1",
        "current-watching": "1",
        "current-waiting": "0",
        "cmd-delete": "1",
        "cmd-pause-tube": "0",
        "pause": "0",
        "pause-time-left": "0",
    }


def test_stats_job_tells_a_jobs_life(wire):
    wire.say(b"put 7 0 60 0\r\n\r\nreserve\r\nrelease 1 8 0\r\n", b"INSERTED 1\r\nRESERVED 1 0\r\n\r\nRELEASED\r\n")
    wire.say(b"reserve\r\nbury 1 9\r\nkick 1\r\n", b"RESERVED 1 0\r\n\r\nBURIED\r\nKICKED 1\r\n")
    stats = wire.ask(b"stats-job 1\r\n")
    assert list(stats) == (
        "id tube state pri age delay ttr time-left file reserves timeouts releases buries kicks".split()
    )
    assert {**stats, "age": "0"} == {
        "id": "1",
        "tube": "default",
        "state": "ready",
        "pri": "9",
        "age": "0",
        "delay": "0",
        "ttr": "60",
        "time-left": "0",
        "file": "0",
        "reserves": "2",
        "timeouts": "0",
        "releases": "1",
        "buries": "1",
        "kicks": "1",
    }
