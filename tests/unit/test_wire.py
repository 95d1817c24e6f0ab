"""What the embedded server answers to the bytes of one client, without a socket and with a clock that the test moves.

`tests/conformance` holds the same against beanstalkd.
"""

from __future__ import annotations

import pytest

from tests.conformance.test_commands import CASES
from tests.unit.talking import Talk


@pytest.mark.parametrize(("sent", "reply"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_commands_are_answered_the_same_whole_and_byte_by_byte(sent, reply):
    for pieces in [[sent], [sent[at : at + 1] for at in range(len(sent))]]:
        talk = Talk()
        client = talk.client()
        assert b"".join(talk.say(client, piece) for piece in pieces) == reply


@pytest.mark.parametrize(("now", "reply"), [(8.9, b"TIMED_OUT\r\n"), (9, b"DEADLINE_SOON\r\n")])
def test_last_second_is_told_to_who_asks(talk, one, now, reply):
    talk.say(one, b"put 0 0 10 0\r\n\r\nreserve\r\n")
    talk.at(now)
    assert talk.say(one, b"reserve-with-timeout 0\r\n" * 3) == reply * 3


def test_last_second_is_told_to_who_waits(talk, one):
    talk.say(one, b"put 0 0 10 0\r\n\r\nreserve\r\nreserve-with-timeout 60\r\n")
    talk.heard(one)
    assert talk.engine.next_deadline == 9
    talk.at(9)
    assert talk.heard(one) == b"DEADLINE_SOON\r\n"


def test_last_second_is_not_told_while_a_job_is_ready(talk, one):
    talk.say(one, b"put 0 0 10 0\r\n\r\nreserve\r\nput 0 0 10 0\r\n\r\n")
    talk.at(9.5)
    assert talk.say(one, b"reserve\r\n") == b"RESERVED 2 0\r\n\r\n"


def test_client_that_is_gone_is_closed_at_the_reply_that_cannot_be_written(talk, one, two):
    talk.say(one, b"reserve\r\n" + PUT * 3)
    asked: list[bytes] = []

    def is_gone() -> bool:
        asked.append(bytes(one.out))
        return len(asked) > 1

    one.is_gone = is_gone
    one.half_close()
    talk.engine.run(0)
    assert asked == [b"TIMED_OUT\r\n", b"TIMED_OUT\r\nINSERTED 1\r\n"]
    assert one.ended
    assert talk.stats(two, b"stats")["total-jobs"] == "1"


# -- what a command leaves behind ------------------------------------------------------------------------------------

PUT = b"put 0 0 60 0\r\n\r\n"


def counted(stats: dict[str, str]) -> dict[str, str]:
    """Those of the commands that were counted, and of the clients that are there."""
    return {key: value for key, value in stats.items() if key.startswith("cmd-") and value != "0"}


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        (b"put 0 0 60 0\r\n", {"cmd-put": "1"}),
        (b"put 0 0 60 0 x\r\n", {"cmd-put": "1"}),  # BAD_FORMAT, and counted
        (b"put 0 0 x 0\r\n", {}),
        (b"use -\r\n", {}),
        (b"peek 7\r\n", {"cmd-peek": "1"}),
        (b"peek-ready\r\n", {"cmd-peek-ready": "1"}),
        (b"peek-ready x\r\n", {}),
        (b"pause-tube - 7\r\n", {"cmd-pause-tube": "1"}),  # as the put
        (b"pause-tube default\r\n", {}),
        (b"reserve-with-timeout 0\r\n", {"cmd-reserve-with-timeout": "1"}),
        (b"list-tubes-watched\r\n", {"cmd-list-tubes-watched": "1"}),
        (b"nonsense\r\n", {}),
    ],
)
def test_command_is_counted_unless_its_arguments_are_bad(talk, one, two, line, counts):
    talk.say(one, line)
    assert counted(talk.stats(two, b"stats")) == {**counts, "cmd-stats": "1"}


def test_client_is_a_producer_or_a_worker_once_it_has_put_or_reserved(talk, one, two):
    def kinds() -> list[str]:
        stats = talk.stats(two, b"stats")
        return [stats[f"current-{kind}"] for kind in ("producers", "workers", "waiting", "connections")]

    assert kinds() == ["0", "0", "0", "2"]
    talk.say(one, b"reserve-job 1\r\nput 0 0 60 65536\r\n" + b"x" * 65538)
    assert kinds() == ["0", "0", "0", "2"]  # neither was carried out
    talk.say(one, PUT)
    assert kinds() == ["1", "0", "0", "2"]
    talk.say(two, b"reserve-job 1\r\n")
    assert kinds() == ["1", "1", "0", "2"]
    talk.say(one, b"reserve\r\n")
    assert kinds() == ["1", "2", "1", "2"]
    assert talk.client() in talk.engine.clients
    assert talk.stats(two, b"stats")["total-connections"] == "3"


@pytest.mark.parametrize(
    ("sent", "stats"),
    [
        (b"release 1 5 9\r\n", {"state": "delayed", "pri": "5", "delay": "9", "releases": "1"}),
        (b"bury 1 6\r\n", {"state": "buried", "pri": "6", "delay": "0", "buries": "1"}),
        (b"bury 1 6\r\nkick 1\r\n", {"state": "ready", "pri": "6", "buries": "1", "kicks": "1"}),
        (b"bury 1 6\r\nkick-job 1\r\n", {"state": "ready", "kicks": "1"}),
        (b"touch 1\r\n", {"state": "reserved", "reserves": "1"}),
    ],
)
def test_command_that_acts_on_a_job_notes_what_it_did(talk, one, sent, stats):
    talk.say(one, PUT + b"reserve\r\n" + sent)
    assert talk.stats(one, b"stats-job 1").items() >= stats.items()


def test_client_that_has_been_answered_has_something_to_be_sent(talk, one, two):
    """Whoever serves them looks at those alone."""
    talk.engine.talking.clear()
    talk.say(two, b"reserve\r\n")
    assert list(talk.engine.talking) == []
    talk.say(one, PUT)
    assert set(talk.engine.talking) == {one, two}


def test_time_to_run_of_zero_is_one_second(talk, one):
    talk.say(one, b"put 0 0 0 0\r\n\r\n")
    assert talk.stats(one, b"stats-job 1")["ttr"] == "1"


def test_kick_takes_the_buried_ones_alone_where_there_are_some(talk, one):
    talk.say(one, PUT * 2 + b"reserve\r\nbury 1 0\r\nreserve\r\nbury 2 0\r\n" + b"put 0 9 60 0\r\n\r\n" * 2)
    assert talk.say(one, b"kick 1\r\npeek-buried\r\n") == b"KICKED 1\r\nFOUND 2 0\r\n\r\n"
    assert talk.say(one, b"kick 9\r\nkick 9\r\n") == b"KICKED 1\r\nKICKED 2\r\n"


def test_tube_is_there_while_it_is_used_watched_or_has_a_job(talk, one):
    def tubes() -> bytes:
        return talk.say(one, b"list-tubes\r\n").partition(b"---\n")[2]

    talk.say(one, b"use a\r\nwatch b\r\n" + PUT)
    assert tubes() == b"- default\n- a\n- b\n\r\n"
    talk.say(one, b"use default\r\nignore b\r\n")
    assert tubes() == b"- default\n- a\n\r\n"
    talk.say(one, b"delete 1\r\n")
    assert tubes() == b"- default\n\r\n"
    talk.say(one, b"use c\r\nuse default\r\n")
    assert tubes() == b"- default\n\r\n"
    assert talk.stats(one, b"stats-tube default").items() >= {"current-using": "1", "current-watching": "1"}.items()


@pytest.mark.parametrize(
    ("sent", "reply"),
    [
        (b"ignore default\r\n", b"NOT_IGNORED\r\n"),
        (b"use t\r\nignore t\r\nignore t\r\n", b"USING t\r\nWATCHING 1\r\nWATCHING 1\r\n"),  # there, but not watched
        (
            b"use t\r\nwatch t\r\nignore default\r\nignore t\r\n",
            b"USING t\r\nWATCHING 2\r\nWATCHING 1\r\nNOT_IGNORED\r\n",
        ),
        (b"watch t\r\nwatch t\r\nignore t\r\n", b"WATCHING 2\r\nWATCHING 2\r\nWATCHING 1\r\n"),
    ],
)
def test_last_tube_cannot_be_ignored(talk, one, sent, reply):
    assert talk.say(one, sent) == reply


@pytest.mark.parametrize(
    "command",
    ["delete 9", "reserve-job 9", "release 9 0 0", "bury 9 0", "touch 9", "kick-job 9", "peek 9", "stats-job 9"],
)
def test_job_that_is_not_there_is_not_found(talk, one, command):
    assert talk.say(one, f"{command}\r\nlist-tube-used\r\n".encode()) == b"NOT_FOUND\r\nUSING default\r\n"


def test_touch_starts_the_time_to_run_anew(talk, one):
    talk.say(one, PUT + b"reserve\r\n")
    talk.at(30)
    assert talk.stats(one, b"stats-job 1")["time-left"] == "30"
    talk.say(one, b"touch 1\r\n")
    assert talk.stats(one, b"stats-job 1")["time-left"] == "60"


def test_client_that_drains_takes_no_body(talk, one):
    talk.engine.is_draining = True
    assert talk.say(one, b"put 0 0 60 1\r\na") == b""
    assert talk.say(one, b"\r\npeek 1\r\n") == b"DRAINING\r\nNOT_FOUND\r\n"
    assert talk.say(one, b"put 0 0 60 1\r\nabc") == b"EXPECTED_CRLF\r\n"
    assert talk.say(one, b"put 0 0 60 65536\r\n" + b"x" * 65538) == b"JOB_TOO_BIG\r\n"


def test_job_whose_body_is_still_coming_can_be_peeked_at_and_nothing_else(talk, one, two):
    talk.say(one, b"put 0 0 60 3\r\na")
    assert talk.say(two, b"peek 1\r\n") == b"FOUND 1 3\r\n\0\0\0\r\n"
    for command in (b"delete 1", b"kick-job 1", b"reserve-job 1", b"release 1 0 0", b"bury 1 0", b"touch 1"):
        assert talk.say(two, command + b"\r\n") == b"NOT_FOUND\r\n", command
    assert talk.stats(two, b"stats-job 1")["state"] == "invalid"
    one.close(0)
    assert talk.say(two, b"peek 1\r\n") == b"NOT_FOUND\r\n"


@pytest.mark.parametrize(
    "command", [b"delete 1", b"reserve-job 1", b"release 1 0 0", b"bury 1 0", b"touch 1", b"kick-job 1"]
)
def test_job_that_another_client_has_reserved_is_not_found(talk, one, two, command):
    talk.say(one, PUT + b"reserve\r\n")
    assert talk.say(two, command + b"\r\n") == b"NOT_FOUND\r\n"
    assert talk.say(one, b"touch 1\r\n") == b"TOUCHED\r\n"


# -- reserving -------------------------------------------------------------------------------------------------------


def test_reserve_takes_the_most_urgent_job_of_all_tubes_that_are_not_paused(talk, one):
    talk.say(one, b"use t\r\nput 5 0 60 0\r\n\r\nuse default\r\nput 7 0 60 0\r\n\r\nput 7 0 60 0\r\n\r\nwatch t\r\n")
    talk.say(one, b"pause-tube t 9\r\n")
    assert talk.say(one, b"reserve\r\n") == b"RESERVED 2 0\r\n\r\n"
    talk.at(9)
    assert talk.say(one, b"reserve\r\n" * 2) == b"RESERVED 1 0\r\n\r\nRESERVED 3 0\r\n\r\n"


@pytest.mark.parametrize("seconds", [b"-1", b"4294967295", b"2147483648"])
def test_timeout_that_is_negative_in_32_bits_is_for_ever(talk, one, two, seconds):
    assert talk.say(one, b"reserve-with-timeout %b\r\n" % seconds) == b""
    assert talk.engine.next_deadline is None
    talk.at(10**10)
    assert talk.heard(one) == b""
    talk.say(two, PUT)
    assert talk.heard(one) == b"RESERVED 1 0\r\n\r\n"


def test_wait_ends_with_the_warning_or_the_timeout_whichever_comes_first(talk, one):
    talk.say(one, b"put 0 0 10 0\r\n\r\nreserve\r\nreserve-with-timeout 5\r\n")
    assert talk.engine.next_deadline == 5
    talk.at(5)
    assert talk.heard(one).endswith(b"TIMED_OUT\r\n")
    assert talk.stats(talk.client(), b"stats-tube default")["current-waiting"] == "0"
    talk.say(one, b"reserve-with-timeout 5\r\n")
    assert talk.engine.next_deadline == 9
    talk.at(9)
    assert talk.heard(one) == b"DEADLINE_SOON\r\n"


def test_client_that_waits_is_on_the_lists_of_all_its_tubes_until_it_is_answered(talk, one, two):
    def waiting() -> list[str]:
        return [talk.stats(two, b"stats-tube " + tube)["current-waiting"] for tube in (b"default", b"t")]

    talk.say(one, b"watch t\r\nreserve\r\n")
    assert one.is_waiting
    assert waiting() == ["1", "1"]
    talk.say(two, b"use t\r\n" + PUT)
    assert talk.heard(one).endswith(b"RESERVED 1 0\r\n\r\n")
    assert (one.is_waiting, waiting()) == (False, ["0", "0"])


# -- lines -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "reply"),
    [
        (b"\rlist-tube-used\r\n", b""),  # the first CR is no line's end, and no other one is looked at
        (b"use a\nb\r\n", b"BAD_FORMAT\r\n"),
        (b"list-tube-used\r", b""),
        (b"list-tube-used\r\n\r", b"USING default\r\n"),
        (b"\r\n" + b"x" * 220 + b"\r\n", b"UNKNOWN_COMMAND\r\n" * 2),  # 224 bytes at once, and two lines
        (b"x" * 223 + b"\r\n", b""),  # 225 bytes: what is read at once ends with the CR
        (b"x" * 223 + b"\r\nlist-tube-used\r\n", b"BAD_FORMAT\r\n"),
        (b"reserve-job 1\r\nreserved\r\n", b"NOT_FOUND\r\nBAD_FORMAT\r\n"),
        (b"peek-readyx\r\n", b"BAD_FORMAT\r\n"),
        (b"pause-tubedefault 0\r\n", b"PAUSED\r\n"),
        (b"pause-tubedefault\r\n", b"BAD_FORMAT\r\n"),
    ],
)
def test_end_of_a_line_and_the_beginning_of_a_word_are_looked_for_as_the_server_does(talk, one, sent, reply):
    assert talk.say(one, sent) == reply


# -- ends ------------------------------------------------------------------------------------------------------------


def test_half_close_ends_a_wait_and_then_the_connection(talk, one, two):
    talk.say(one, PUT + b"reserve\r\nreserve\r\nlist-tube-used\r\n")
    talk.heard(one)
    assert not one.is_due
    one.half_close()
    assert one.is_due
    talk.engine.run(0)
    assert talk.heard(one) == b"TIMED_OUT\r\nUSING default\r\n"
    assert (one.ended, one.is_due) == (True, False)
    assert talk.stats(two, b"stats-job 1")["state"] == "ready"


def test_quit_gives_everything_back_and_what_follows_is_not_carried_out(talk, one, two):
    talk.say(one, b"use u\r\nwatch w\r\nput 0 0 60 0\r\n\r\nwatch u\r\nreserve\r\n")
    talk.heard(one)
    assert talk.say(one, b"quit\r\n" + PUT) == b""
    assert (one.ended, talk.engine.clients, list(one.watched)) == (True, {two}, [])
    assert talk.say(two, b"list-tubes\r\n").endswith(b"---\n- default\n- u\n\r\n")
    assert talk.stats(two, b"stats-job 1").items() >= {"state": "ready", "releases": "0", "timeouts": "0"}.items()
    assert talk.stats(two, b"stats-tube default").items() >= {"current-using": "1", "current-watching": "1"}.items()


def test_client_that_ends_while_it_waits_waits_no_more(talk, one, two):
    talk.say(one, b"reserve-with-timeout 5\r\n")
    one.close(0)
    one.close(0)  # the second time it is no end any more
    assert talk.engine.next_deadline is None
    assert talk.say(two, PUT + b"reserve\r\n") == b"INSERTED 1\r\nRESERVED 1 0\r\n\r\n"
    assert one in talk.engine.talking
    assert talk.heard(one) == b""
