"""The engine of the embedded server, without a socket and with a clock that the test moves."""

from __future__ import annotations

import pytest

from gstalk.testing.engine import Agenda, Bag, Engine


def test_delay_ends_on_time(talk, one):
    talk.say(one, b"put 0 5 60 0\r\n\r\n")
    assert talk.engine.next_deadline == 5
    talk.at(4.9)
    assert talk.say(one, b"reserve-with-timeout 0\r\n") == b"TIMED_OUT\r\n"
    assert talk.stats(one, b"stats-job 1")["time-left"] == "0"
    talk.at(5)
    assert talk.say(one, b"reserve-with-timeout 0\r\n") == b"RESERVED 1 0\r\n\r\n"


def test_wait_ends_on_time(talk, one):
    assert talk.say(one, b"reserve-with-timeout 3\r\nlist-tube-used\r\n") == b""
    talk.at(2.9)
    assert talk.heard(one) == b""
    talk.at(3)
    assert talk.heard(one) == b"TIMED_OUT\r\n"
    assert talk.engine.next_deadline is None
    talk.engine.run(3)
    assert talk.heard(one) == b"USING default\r\n"


def test_time_to_run_ends_on_time_and_the_next_in_line_gets_the_job(talk, one, two):
    talk.say(one, b"put 0 0 10 0\r\n\r\nreserve\r\n")
    talk.say(two, b"reserve\r\n")
    talk.at(9.9)
    assert talk.heard(two) == b""
    talk.at(10)
    assert talk.heard(two) == b"RESERVED 1 0\r\n\r\n"
    assert talk.say(one, b"touch 1\r\nrelease 1 0 0\r\n") == b"NOT_FOUND\r\nNOT_FOUND\r\n"
    assert talk.stats(one, b"stats-job 1")["timeouts"] == "1"
    assert talk.stats(one, b"stats")["job-timeouts"] == "1"


def test_touch_moves_the_end(talk, one):
    talk.say(one, b"put 0 0 10 0\r\n\r\nreserve\r\n")
    talk.at(8)
    assert talk.say(one, b"touch 1\r\n") == b"TOUCHED\r\n"
    talk.at(17)
    assert talk.stats(one, b"stats-job 1")["state"] == "reserved"
    talk.at(18)
    assert talk.stats(one, b"stats-job 1")["state"] == "ready"


def test_pause_ends_on_time(talk, one):
    talk.say(one, b"put 0 0 60 0\r\n\r\npause-tube default 7\r\nreserve\r\n")
    talk.heard(one)
    talk.at(3)
    stats = talk.stats(talk.client(), b"stats-tube default")
    assert (stats["pause"], stats["pause-time-left"], stats["cmd-pause-tube"]) == ("7", "4", "1")
    talk.at(7)
    assert talk.heard(one) == b"RESERVED 1 0\r\n\r\n"
    assert talk.stats(talk.client(), b"stats-tube default")["pause"] == "0"


def test_everything_due_comes_in_order_of_time(talk, one):
    talk.say(one, b"put 0 5 60 0\r\n\r\nput 0 3 60 0\r\n\r\nreserve-with-timeout 4\r\n")
    talk.heard(one)
    talk.at(100)
    assert talk.heard(one) == b"RESERVED 2 0\r\n\r\n"


def test_stats_tell_the_time(talk, one):
    talk.say(one, b"put 0 20 60 0\r\n\r\n")
    talk.at(12.5)
    stats = talk.stats(one, b"stats-job 1")
    assert (stats["age"], stats["delay"], stats["time-left"]) == ("12", "20", "7")
    assert talk.stats(one, b"stats")["uptime"] == "12"


def test_jobs_that_come_and_go_leave_nothing_behind(talk, one):
    """Their reservations would have ended much later; nothing may hold them until then."""
    for number in range(1, 1001):
        talk.say(one, b"put 0 0 86400 0\r\n\r\nreserve\r\nrelease %d 0 0\r\nreserve\r\n" % number)
        talk.say(one, b"delete %d\r\n" % number)
    assert not talk.engine.jobs
    assert len(talk.engine._agenda._heap) + len(one.reserved._heap) + len(one.used.ready._heap) < 300


def test_instances_have_names_of_their_own():
    assert Engine().id != Engine().id
    assert len(Engine().id) == 16


def test_bag_gives_the_place_of_what_is_removed_to_the_last():
    bag = Bag("abcd")
    bag.remove("b")
    assert bag == ["a", "d", "c"]
    bag.remove("c")
    assert bag == ["a", "d"]


def test_agenda_keeps_what_was_added_last_for_an_item():
    agenda: Agenda[str] = Agenda()
    for key, number, item in ((5, 1, "a"), (3, 2, "b"), (3, 1, "c"), (9, 2, "b")):
        agenda.add(key, number, item)
    agenda.discard("nobody")
    order = []
    while (first := agenda.first()) is not None:
        order.append((agenda.first_key, first))
        agenda.discard(first)
    assert order == [(3, "c"), (5, "a"), (9, "b")]
    assert agenda.first_key is None


def test_agenda_forgets_what_was_discarded():
    agenda: Agenda[int] = Agenda()
    for number in range(1000):
        agenda.add(number, number, number)
    for number in range(1, 1000):
        agenda.discard(number)
    assert agenda.first() == 0
    assert len(agenda._heap) < 200


# -- turns ---------------------------------------------------------------------------------------------------------

PUT = b"put 0 0 60 0\r\n\r\n"


def test_clients_take_turns_one_command_each(talk, one, two):
    one.take(PUT * 2)
    two.take(PUT * 2)
    talk.engine.run(0)
    assert talk.heard(one) == b"INSERTED 1\r\nINSERTED 3\r\n"
    assert talk.heard(two) == b"INSERTED 2\r\nINSERTED 4\r\n"


def test_client_that_waits_and_sends_more_keeps_the_place_that_this_gives_it(talk, one, two):
    """The real server's epoll lists it for what has come, and looks only later whether there is something to do."""
    talk.say(one, PUT + b"pause-tube default 1000\r\n")
    talk.say(two, b"reserve\r\n" + PUT)
    one.take(b"pause-tube default 0\r\n" + PUT)
    two.take(b"list-tube-used\r\n")
    talk.engine.run(0)
    assert talk.heard(two) == b"RESERVED 1 0\r\n\r\nINSERTED 2\r\nUSING default\r\n"
    assert talk.heard(one) == b"PAUSED\r\nINSERTED 3\r\n"


def test_things_due_at_one_time_happen_in_the_order_in_which_they_were_asked_for(talk, one, two):
    talk.say(one, b"watch t\r\nreserve-with-timeout 5\r\n")
    talk.say(two, b"use t\r\nput 0 5 60 0\r\n\r\nwatch t\r\nreserve-with-timeout 5\r\n")
    talk.at(5)
    assert talk.heard(one).endswith(b"TIMED_OUT\r\n")
    assert talk.heard(two).endswith(b"RESERVED 1 0\r\n\r\n")


# -- what runs out in silence --------------------------------------------------------------------------------------


def test_missed_time_is_noticed_when_the_holder_has_been_answered(talk, one, two):
    talk.engine.silent_expiry = False
    talk.say(one, b"put 0 0 10 0\r\n\r\nreserve\r\n")
    talk.say(two, b"reserve\r\n")
    talk.at(1000)
    assert talk.stats(one, b"stats-job 1")["state"] == "reserved"  # the answer comes first
    assert talk.heard(two) == b"RESERVED 1 0\r\n\r\n"


@pytest.mark.parametrize(
    ("command", "reply", "left"),
    [
        (b"delete 1", b"DELETED", "0"),
        (b"release 1 0 0", b"RELEASED", "0"),
        (b"bury 1 0", b"BURIED", "0"),
        (b"touch 1", b"TOUCHED", "1"),
        (b"reserve", b"DEADLINE_SOON", "0"),
    ],
)
def test_missed_time_leaves_the_job_to_its_holders_next_command(talk, one, two, command, reply, left):
    talk.engine.silent_expiry = False
    talk.say(one, b"put 0 0 10 0\r\n\r\nreserve\r\n")
    talk.at(1000)
    assert talk.stats(two, b"stats")["current-jobs-reserved"] == "1"
    assert talk.say(one, command + b"\r\n") == reply + b"\r\n"
    assert talk.stats(two, b"stats")["current-jobs-reserved"] == left
    talk.at(2000)
    assert talk.stats(two, b"stats")["job-timeouts"] == ("1" if command == b"reserve" else "0")


def test_missed_time_ends_with_the_holder(talk, one, two):
    talk.engine.silent_expiry = False
    talk.say(one, b"put 0 0 10 0\r\n\r\nreserve\r\n")
    talk.at(1000)
    talk.say(one, b"quit\r\n")
    assert talk.say(two, b"reserve\r\n") == b"RESERVED 1 0\r\n\r\n"
    assert talk.stats(two, b"stats-job 1")["timeouts"] == "0"
