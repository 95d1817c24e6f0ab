"""Order, time, several connections, and the traps: what no table of single commands shows."""

from __future__ import annotations

import struct

import pytest
from gevent import socket

from gstalk.testing import Beanstalkd


def test_jobs_come_by_priority_then_in_order(wire):
    wire.say(
        b"put 5 0 60 1\r\na\r\nput 1 0 60 1\r\nb\r\nput 5 0 60 1\r\nc\r\nput 1 0 60 1\r\nd\r\n",
        b"INSERTED 1\r\nINSERTED 2\r\nINSERTED 3\r\nINSERTED 4\r\n",
    )
    for number, body in ((2, b"b"), (4, b"d"), (1, b"a"), (3, b"c")):
        wire.say(b"reserve\r\n", b"RESERVED %d 1\r\n%b\r\n" % (number, body))


def test_most_urgent_job_of_all_watched_tubes_comes_first(wire):
    wire.say(b"watch a\r\nuse a\r\nput 5 0 60 0\r\n\r\nuse default\r\n", b"WATCHING 2\r\nUSING a\r\nINSERTED 1\r\n")
    wire.expect(b"USING default\r\n")
    wire.say(b"put 3 0 60 0\r\n\r\nreserve\r\n", b"INSERTED 2\r\nRESERVED 2 0\r\n\r\n")


def test_buried_jobs_are_kicked_before_delayed_ones_and_in_order(wire):
    wire.say(b"put 0 100 60 0\r\n\r\n", b"INSERTED 1\r\n")
    for number in (2, 3, 4):
        wire.say(b"put 0 0 60 0\r\n\r\nreserve\r\n", b"INSERTED %d\r\nRESERVED %d 0\r\n\r\n" % (number, number))
    wire.say(b"bury 3 0\r\nbury 2 0\r\nbury 4 0\r\n", b"BURIED\r\n" * 3)
    wire.say(b"peek-buried\r\n", b"FOUND 3 0\r\n\r\n")
    wire.say(b"kick 2\r\npeek-buried\r\n", b"KICKED 2\r\nFOUND 4 0\r\n\r\n")
    wire.say(b"kick 9\r\nkick 9\r\n", b"KICKED 1\r\nKICKED 1\r\n")


def test_waiting_reserve_gets_the_next_job(both, wire):
    wire.send(b"reserve\r\n")
    other = both.wire()
    assert other.ask(b"stats\r\n")["current-waiting"] == "1"
    other.say(b"put 0 0 60 1\r\nx\r\n", b"INSERTED 1\r\n")
    wire.expect(b"RESERVED 1 1\r\nx\r\n")


def test_commands_behind_a_waiting_reserve_wait_too(both, wire):
    wire.send(b"reserve\r\nlist-tube-used\r\n")
    assert wire.silent()
    both.wire().say(b"put 0 0 60 0\r\n\r\n", b"INSERTED 1\r\n")
    wire.expect(b"RESERVED 1 0\r\n\r\nUSING default\r\n")


@pytest.mark.slow
def test_waiting_reserve_times_out(both, wire):
    wire.send(b"reserve-with-timeout 1\r\n")
    assert wire.silent()
    both.pass_time(1)
    wire.expect(b"TIMED_OUT\r\n")


def test_half_close_ends_a_waiting_reserve(wire):
    wire.send(b"reserve\r\n")
    assert wire.silent()
    wire.sock.shutdown(1)
    wire.expect(b"TIMED_OUT\r\n")
    assert wire.at_end()


def test_half_close_behind_commands_answers_all_of_them(wire):
    wire.send(b"put 0 0 60 0\r\n\r\nlist-tube-used\r\n")
    wire.sock.shutdown(1)
    wire.expect(b"INSERTED 1\r\nUSING default\r\n")
    assert wire.at_end()


def test_disconnect_gives_jobs_back_and_counts_nothing_else(both, wire):
    other = both.wire()
    other.say(b"put 3 0 60 0\r\n\r\nreserve\r\n", b"INSERTED 1\r\nRESERVED 1 0\r\n\r\n")
    wire.send(b"reserve\r\n")
    other.close()
    wire.expect(b"RESERVED 1 0\r\n\r\n")
    stats = wire.ask(b"stats-job 1\r\n")
    assert [stats[key] for key in ("pri", "reserves", "timeouts", "releases")] == ["3", "2", "0", "0"]


def test_job_reserved_elsewhere_is_out_of_reach(both, wire):
    other = both.wire()
    other.say(b"put 0 0 60 1\r\na\r\nreserve\r\n", b"INSERTED 1\r\nRESERVED 1 1\r\na\r\n")
    for command in (b"delete 1", b"release 1 0 0", b"bury 1 0", b"touch 1", b"kick-job 1", b"reserve-job 1"):
        wire.say(command + b"\r\n", b"NOT_FOUND\r\n")
    wire.say(b"peek 1\r\n", b"FOUND 1 1\r\na\r\n")


@pytest.mark.slow
def test_delay_ends(both, wire):
    wire.say(b"put 0 1 60 0\r\n\r\nreserve-with-timeout 0\r\n", b"INSERTED 1\r\nTIMED_OUT\r\n")
    wire.send(b"reserve\r\n")
    both.pass_time(1)
    wire.expect(b"RESERVED 1 0\r\n\r\n")


@pytest.mark.slow
def test_time_to_run_ends_and_another_gets_the_job(both, wire):
    other = both.wire()
    other.say(b"put 0 0 1 0\r\n\r\nreserve\r\n", b"INSERTED 1\r\nRESERVED 1 0\r\n\r\n")
    wire.send(b"reserve\r\n")
    both.pass_time(1.2)
    other.say(b"list-tube-used\r\n", b"USING default\r\n")  # a silent holder's job may stay (S31)
    wire.expect(b"RESERVED 1 0\r\n\r\n")
    other.say(b"delete 1\r\ntouch 1\r\n", b"NOT_FOUND\r\nNOT_FOUND\r\n")
    assert wire.ask(b"stats-job 1\r\n")["timeouts"] == "1"


@pytest.mark.slow
def test_touch_starts_the_time_to_run_anew(both, wire):
    wire.say(b"put 0 0 2 0\r\n\r\nreserve\r\n", b"INSERTED 1\r\nRESERVED 1 0\r\n\r\n")
    for _ in range(2):
        both.pass_time(1.3)
        wire.say(b"touch 1\r\n", b"TOUCHED\r\n")
    assert wire.ask(b"stats-job 1\r\n")["timeouts"] == "0"


@pytest.mark.slow
def test_expired_job_can_be_deleted_while_it_is_ready(both, wire):
    wire.say(b"put 0 0 1 0\r\n\r\nreserve\r\n", b"INSERTED 1\r\nRESERVED 1 0\r\n\r\n")
    both.pass_time(1.2)
    wire.say(b"list-tube-used\r\nrelease 1 0 0\r\n", b"USING default\r\nNOT_FOUND\r\n")
    wire.say(b"delete 1\r\n", b"DELETED\r\n")


def test_ttr_of_zero_is_one(wire):
    wire.say(b"put 0 0 0 0\r\n\r\n", b"INSERTED 1\r\n")
    assert wire.ask(b"stats-job 1\r\n")["ttr"] == "1"


def test_deadline_soon_comes_at_once_and_again(wire):
    wire.say(b"put 0 0 1 0\r\n\r\nreserve\r\n", b"INSERTED 1\r\nRESERVED 1 0\r\n\r\n")
    wire.say(b"reserve\r\nreserve-with-timeout 0\r\n", b"DEADLINE_SOON\r\nDEADLINE_SOON\r\n")


def test_deadline_soon_gives_way_to_a_ready_job(wire):
    wire.say(b"put 0 0 1 0\r\n\r\nreserve\r\n", b"INSERTED 1\r\nRESERVED 1 0\r\n\r\n")
    wire.say(b"put 0 0 60 0\r\n\r\nreserve\r\n", b"INSERTED 2\r\nRESERVED 2 0\r\n\r\n")


@pytest.mark.slow
def test_deadline_soon_ends_a_waiting_reserve(both, wire):
    wire.say(b"put 0 0 2 0\r\n\r\nreserve\r\n", b"INSERTED 1\r\nRESERVED 1 0\r\n\r\n")
    wire.send(b"reserve\r\n")
    assert wire.silent()
    both.pass_time(1)
    wire.expect(b"DEADLINE_SOON\r\n")


@pytest.mark.slow
def test_paused_tube_hands_nothing_out(both, wire):
    wire.say(b"put 0 0 60 0\r\n\r\npause-tube default 1\r\n", b"INSERTED 1\r\nPAUSED\r\n")
    wire.say(b"reserve-with-timeout 0\r\n", b"TIMED_OUT\r\n")
    assert wire.ask(b"stats-tube default\r\n")["pause"] == "1"
    wire.send(b"reserve\r\n")
    both.pass_time(1)
    wire.expect(b"RESERVED 1 0\r\n\r\n")


def test_pause_of_zero_resumes(wire):
    wire.say(b"put 0 0 60 0\r\n\r\npause-tube default 100\r\n", b"INSERTED 1\r\nPAUSED\r\n")
    wire.say(b"pause-tube default 0\r\nreserve-with-timeout 1\r\n", b"PAUSED\r\nRESERVED 1 0\r\n\r\n")


def test_draining_refuses_puts_alone(both, wire):
    wire.say(b"put 0 0 60 0\r\n\r\n", b"INSERTED 1\r\n")
    both.drain()
    wire.say(b"put 0 0 60 4\r\nquit\r\n", b"DRAINING\r\n")  # the body is swallowed
    wire.say(b"reserve\r\nrelease 1 0 0\r\ndelete 1\r\n", b"RESERVED 1 0\r\n\r\nRELEASED\r\nDELETED\r\n")
    assert wire.ask(b"stats\r\n")["draining"] == "true"


def test_refused_header_runs_the_body(both, wire):
    wire.say(b"put 0 0 60 0\r\n\r\n", b"INSERTED 1\r\n")
    wire.say(b"put 4294967296 0 60 8\r\ndelete 1\r\n", b"BAD_FORMAT\r\nDELETED\r\n")


def test_body_shorter_than_announced_eats_the_next_command(wire):
    wire.send(b"put 0 0 60 10\r\nabc\r\n")
    assert wire.silent()
    wire.say(b"stats\r\n", b"INSERTED 1\r\n")
    wire.say(b"peek 1\r\n", b"FOUND 1 10\r\nabc\r\nstats\r\n")


def test_partial_put_stores_nothing(both, wire):
    other = both.wire()
    other.send(b"put 0 0 60 10\r\nabc")
    other.close()
    assert wire.ask(b"stats\r\n")["total-jobs"] == "0"


def test_whole_put_without_waiting_for_the_reply_is_stored(both, wire):
    other = both.wire()
    other.send(b"put 0 0 60 0\r\n\r\n")
    other.close()
    wire.say(b"reserve-with-timeout 2\r\n", b"RESERVED 1 0\r\n\r\n")


def test_line_of_225_bytes_gets_no_answer_and_eats_the_next_one(wire):
    wire.send(b"use " + b"a" * 219 + b"\r\n")
    assert wire.silent()
    wire.say(b"list-tube-used\r\n", b"BAD_FORMAT\r\n")
    wire.say(b"list-tube-used\r\n", b"USING default\r\n")


def test_lone_cr_gets_no_answer_and_eats_what_follows(wire):
    wire.send(b"use a\rb\r\nlist-tube-used\r\n")
    assert wire.silent()
    wire.say(b"x" * 224 + b"\r\nlist-tube-used\r\n", b"BAD_FORMAT\r\nUSING default\r\n")


@pytest.mark.parametrize("timeout", [b"-1", b"2147483648", b"4294967295"])
def test_timeouts_that_are_none_wait_for_ever(both, wire, timeout):
    wire.send(b"reserve-with-timeout " + timeout + b"\r\n")
    if both.refused_by_later_ones(wire):
        return
    assert wire.silent()
    both.wire().say(b"put 0 0 60 0\r\n\r\n", b"INSERTED 1\r\n")
    wire.expect(b"RESERVED 1 0\r\n\r\n")


def test_body_that_is_refused_leaves_a_gap_in_the_ids(both, wire):
    wire.say(b"put 0 0 60 1\r\nabc", b"EXPECTED_CRLF\r\n")
    wire.say(b"put 0 0 60 0\r\n\r\n", b"INSERTED 2\r\n")
    both.drain()
    wire.say(b"put 0 0 60 0\r\n\r\n", b"DRAINING\r\n")
    assert wire.ask(b"stats\r\n")["total-jobs"] == "1"


def test_size_is_looked_at_before_draining(both, wire):
    both.drain()
    wire.say(b"put 0 0 60 65536\r\n" + b"x" * 65538, b"JOB_TOO_BIG\r\n")


def test_clients_that_wait_are_served_in_order_of_coming(both, wire):
    waiting = [both.wire() for _ in range(3)]
    for number, other in enumerate(waiting):
        other.say(b"list-tube-used\r\n", b"USING default\r\n")
        other.send(b"reserve\r\n")
        while wire.ask(b"stats\r\n")["current-waiting"] != str(number + 1):
            pass
    for number, other in enumerate(waiting, 1):
        wire.say(b"put 0 0 60 0\r\n\r\n", b"INSERTED %d\r\n" % number)
        other.expect(b"RESERVED %d 0\r\n\r\n" % number)


def test_what_is_ignored_leaves_its_place_to_the_last(wire):
    wire.say(b"watch a\r\nwatch b\r\nignore default\r\n", b"WATCHING 2\r\nWATCHING 3\r\nWATCHING 2\r\n")
    wire.say(b"list-tubes-watched\r\n", b"OK 12\r\n---\n- b\n- a\n\r\n")


def test_disconnect_gives_a_jobs_time_to_nobody(both, wire):
    """A job given back by a lost connection keeps its priority, and is reserved with its whole time to run."""
    other = both.wire()
    other.say(b"put 7 0 60 0\r\n\r\nreserve\r\n", b"INSERTED 1\r\nRESERVED 1 0\r\n\r\n")
    other.say(b"release 1 9 0\r\nreserve\r\n", b"RELEASED\r\nRESERVED 1 0\r\n\r\n")
    other.close()
    wire.say(b"reserve\r\n", b"RESERVED 1 0\r\n\r\n")
    stats = wire.ask(b"stats-job 1\r\n")
    assert [stats[key] for key in ("pri", "reserves", "releases")] == ["9", "3", "1"]
    assert int(stats["time-left"]) >= 50


def test_delayed_job_comes_as_the_soonest_of_its_tube(wire):
    wire.say(b"put 0 200 60 0\r\n\r\nput 9 100 60 0\r\n\r\n", b"INSERTED 1\r\nINSERTED 2\r\n")
    wire.say(b"peek-delayed\r\nkick 1\r\npeek-delayed\r\n", b"FOUND 2 0\r\n\r\nKICKED 1\r\nFOUND 1 0\r\n\r\n")


def test_paused_tube_gives_a_job_by_its_id(wire):
    wire.say(b"put 0 0 60 0\r\n\r\npause-tube default 100\r\n", b"INSERTED 1\r\nPAUSED\r\n")
    wire.say(b"reserve-with-timeout 0\r\nreserve-job 1\r\n", b"TIMED_OUT\r\nRESERVED 1 0\r\n\r\n")


def test_reserve_behind_a_half_close_does_not_wait(wire):
    wire.send(b"reserve\r\nput 0 0 60 0\r\n\r\nreserve\r\nreserve\r\n")
    wire.sock.shutdown(1)
    wire.expect(b"TIMED_OUT\r\nINSERTED 1\r\nRESERVED 1 0\r\n\r\nTIMED_OUT\r\n")
    assert wire.at_end()


def test_quit_with_jobs_gives_them_back(both, wire):
    other = both.wire()
    other.say(b"put 0 0 60 0\r\n\r\nreserve\r\nquit\r\n", b"INSERTED 1\r\nRESERVED 1 0\r\n\r\n")
    assert other.at_end()
    wire.say(b"reserve-with-timeout 5\r\n", b"RESERVED 1 0\r\n\r\n")


def test_tube_goes_when_nothing_needs_it(both, wire):
    other = both.wire()
    other.say(b"use t\r\nput 0 0 60 0\r\n\r\nuse default\r\n", b"USING t\r\nINSERTED 1\r\nUSING default\r\n")
    assert wire.ask(b"stats-tube t\r\n")["current-jobs-ready"] == "1"
    wire.say(b"delete 1\r\nstats-tube t\r\n", b"DELETED\r\nNOT_FOUND\r\n")


def test_watching_twice_counts_once(both, wire):
    wire.say(b"watch t\r\nwatch t\r\n", b"WATCHING 2\r\nWATCHING 2\r\n")
    assert both.wire().ask(b"stats-tube t\r\n")["current-watching"] == "1"


def test_ids_start_again_after_a_restart_and_the_instance_is_another(both, wire):
    wire.say(b"put 0 0 60 0\r\n\r\n", b"INSERTED 1\r\n")
    before = wire.ask(b"stats\r\n")["id"]
    both.server.restart()
    again = both.wire()
    again.say(b"peek 1\r\nput 0 0 60 0\r\n\r\n", b"NOT_FOUND\r\nINSERTED 1\r\n")
    assert again.ask(b"stats\r\n")["id"] != before


def test_same_connection_reserves_its_own_expired_job_and_deletes_it_for_both(both, wire):
    wire.say(b"put 0 0 1 0\r\n\r\nreserve\r\n", b"INSERTED 1\r\nRESERVED 1 0\r\n\r\n")
    both.pass_time(1.2)
    wire.say(b"list-tube-used\r\nreserve\r\n", b"USING default\r\nRESERVED 1 0\r\n\r\n")
    wire.say(b"delete 1\r\n", b"DELETED\r\n")


# -- what a client leaves behind ---------------------------------------------------------------------------------

PUT = b"put 0 0 60 0\r\n\r\n"
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: the connection's end is a reset


@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
@pytest.mark.parametrize("reserve", [b"reserve\r\n", b"reserve-with-timeout 100\r\n", b""])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("kind", ["put", "delete"])
def test_client_that_goes_has_what_it_left_carried_out_until_a_reply_cannot_be_written(
    both, wire, how, reserve, count, kind
):
    """The first reply to one that has closed can be written, and the command behind it is carried out; no other one."""
    wire.say(b"use q\r\n" + PUT * 5, b"USING q\r\n" + b"".join(b"INSERTED %d\r\n" % (n + 1) for n in range(5)))
    leaving = both.wire()
    leaving.say(b"list-tube-used\r\n", b"USING default\r\n")
    leaving.send(reserve)
    while reserve and wire.ask(b"stats\r\n")["current-waiting"] == "0":
        pass
    with both.held():
        leaving.send(b"".join(PUT if kind == "put" else b"delete %d\r\n" % (n + 1) for n in range(count)))
        if how == "half-close":
            leaving.sock.shutdown(1)
        else:
            if how == "reset":
                leaving.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            leaving.sock.close()
    bound = {"half-close": 5, "close": 1 if reserve else 2, "reset": 0 if reserve else 1}[how]
    if how == "half-close":
        while leaving.sock.recv(65536):
            pass
    while int((stats := wire.ask(b"stats\r\n"))["current-connections"]) > 1:
        pass
    assert int(stats[f"cmd-{kind}"]) == min(count, bound) + (5 if kind == "put" else 0)


def test_clients_woken_together_go_on_in_turn_the_last_one_first(both, wire):
    """Each writes its reply and carries one command out, then it's the next one's turn."""
    holder = both.wire()
    holder.say(PUT * 3 + b"reserve\r\n" * 3, b"".join(b"INSERTED %d\r\n" % n for n in (1, 2, 3)) + b"".join(
        b"RESERVED %d 0\r\n\r\n" % n for n in (1, 2, 3)))  # fmt: skip
    waiting = [both.wire() for _ in range(3)]
    for number, other in enumerate(waiting, 1):
        other.say(b"use order\r\n", b"USING order\r\n")
        other.send(
            b"reserve\r\n" + b"".join(b"put 0 0 60 2\r\n%d%b\r\n" % (number, each) for each in (b"a", b"b", b"c"))
        )
        while wire.ask(b"stats\r\n")["current-waiting"] != str(number):
            pass
    holder.close()
    for other in waiting:
        assert other.line().startswith(b"RESERVED")
        other.expect(b"\r\n")
        assert all(other.line().startswith(b"INSERTED") for _ in range(3))
    order = []
    for job_id in range(4, 13):
        wire.send(b"peek %d\r\n" % job_id)
        wire.line()
        order.append(wire.line().decode())
    assert order == ["3a", "1a", "2a", "3b", "1b", "2b", "3c", "1c", "2c"]  # the second one got the first job


def test_client_that_another_one_woke_comes_behind_it(both, wire):
    wire.say(PUT + b"pause-tube default 1000\r\n", b"INSERTED 1\r\nPAUSED\r\n")
    waiting = both.wire()
    waiting.send(b"reserve\r\n" + PUT)
    while wire.ask(b"stats\r\n")["current-waiting"] == "0":
        pass
    wire.say(b"pause-tube default 0\r\n" + PUT, b"PAUSED\r\nINSERTED 2\r\n")
    waiting.expect(b"RESERVED 1 0\r\n\r\nINSERTED 3\r\n")


def test_job_whose_body_is_still_coming_can_be_looked_at_and_nothing_else(both, wire):
    other = both.wire()
    other.say(b"list-tube-used\r\n", b"USING default\r\n")
    other.send(b"put 0 0 60 1000\r\nabc")
    while wire.ask(b"stats\r\n")["cmd-put"] == "0":
        pass
    assert wire.ask(b"stats-job 1\r\n")["state"] == "invalid"
    for command in (b"delete 1", b"reserve-job 1", b"kick-job 1", b"release 1 0 0", b"bury 1 0", b"touch 1"):
        wire.say(command + b"\r\n", b"NOT_FOUND\r\n")
    wire.send(b"peek 1\r\n")
    assert wire.replies(b"FOUND 1 1000\r\n").startswith(b"FOUND 1 1000\r\n")
    other.close()
    while wire.ask(b"stats\r\n")["current-connections"] != "1":
        pass
    again = both.wire()
    again.say(b"peek 1\r\n", b"NOT_FOUND\r\n")


# -- what runs out in silence ------------------------------------------------------------------------------------


def reserved(wire):
    return int(wire.ask(b"stats\r\n")["current-jobs-reserved"])


def hold_silently(both, wire, count=100):
    """So many connections, each of which has reserved a job of a second, half a second after its end.

    The embedded server misses all of these ends. The real one misses those at which it looks within the same
    microsecond: most of them on a quiet machine, few where it has to wait for a processor. So this goes on until it has
    missed some.
    """
    for _ in range(8):
        holders = {}
        for _ in range(count):
            holder = both.wire()
            holder.send(b"put 0 0 1 0\r\n\r\nreserve\r\n")
            assert holder.line().startswith(b"INSERTED")
            holders[int(holder.line().split()[1])] = holder
            holder.expect(b"\r\n")
        both.pass_time(1.5)
        if reserved(wire):
            return holders
        for holder in holders.values():
            holder.close()
        while wire.ask(b"stats\r\n")["current-connections"] != "1":
            pass
        while wire.ask(b"stats\r\n")["current-jobs-ready"] != "0":
            wire.say(b"reserve\r\n", b"RESERVED ")
            wire.say(b"delete %d\r\n" % int(wire.line().split()[0]), b"\r\nDELETED\r\n")
    pytest.skip("so busy a machine that the server misses nothing")


@pytest.mark.slow
def test_time_that_runs_out_in_silence_is_missed_until_the_holder_says_something(both_missing, wire_missing):
    holders = hold_silently(both_missing, wire_missing)
    missed = reserved(wire_missing)
    before = int(wire_missing.ask(b"stats\r\n")["job-timeouts"])
    assert missed == 100 or isinstance(both_missing.server, Beanstalkd)
    both_missing.pass_time(1.5)
    assert reserved(wire_missing) == missed  # for ever
    for holder in holders.values():
        holder.say(b"list-tube-used\r\n", b"USING default\r\n")
    stats = wire_missing.ask(b"stats\r\n")
    assert (stats["current-jobs-reserved"], int(stats["job-timeouts"])) == ("0", before + missed)


@pytest.mark.slow
def test_holder_whose_time_was_missed_may_still_finish_or_touch_its_job(both_missing, wire_missing):
    """It says something with that very command, which is carried out before the server looks at the time."""
    for number, holder in hold_silently(both_missing, wire_missing).items():
        command, reply = [(b"delete", b"DELETED"), (b"touch", b"TOUCHED")][number % 2]
        was_missed = wire_missing.ask(b"stats-job %d\r\n" % number)["state"] == "reserved"
        holder.send(b"%b %d\r\n" % (command, number))
        assert holder.line() == (reply if was_missed or command == b"delete" else b"NOT_FOUND")


@pytest.mark.slow
def test_time_that_runs_out_in_silence_is_missed_until_the_holder_goes(both_missing, wire_missing):
    for holder in hold_silently(both_missing, wire_missing).values():
        holder.close()
    while reserved(wire_missing):
        pass
