"""What each reply word means, from literal bytes: results, refusals, numbers; and what is no reply of this command."""

from __future__ import annotations

from typing import Any

import pytest

from gstalk import errors
from gstalk.protocol import commands as c
from gstalk.protocol import replies
from gstalk.protocol.replies import Malformed
from gstalk.protocol.request import Request

URI = "beanstalk://q:11300"

# The command, what its request knows, the reply as doc/protocol.txt gives it, and what comes of it.
REPLIES: list[tuple[c.Command, Any, bytes, Any]] = [
    (c.PUT, None, b"INSERTED 1\r\n", 1),
    (c.PUT, None, b"INSERTED 18446744073709551615\r\n", 2**64 - 1),
    (c.PUT, None, b"BURIED 5\r\n", errors.BuriedError),
    (c.PUT, None, b"JOB_TOO_BIG\r\n", errors.JobTooBigError),
    (c.PUT, None, b"DRAINING\r\n", errors.DrainingError),
    (c.PUT, None, b"OUT_OF_MEMORY\r\n", errors.OutOfMemoryError),
    (c.PUT, None, b"INTERNAL_ERROR\r\n", errors.InternalError),
    (c.USE, b"t", b"USING t\r\n", "t"),
    (c.LIST_TUBE_USED, None, b"USING $anything\r\n", "$anything"),
    (c.RESERVE, None, b"RESERVED 7 2\r\nab\r\n", (7, b"ab")),
    (c.RESERVE, None, b"RESERVED 7 4\r\n\r\n\r\n\r\n", (7, b"\r\n\r\n")),
    (c.RESERVE, None, b"TIMED_OUT\r\n", None),
    (c.RESERVE, None, b"DEADLINE_SOON\r\n", errors.DeadlineSoonError),
    (c.RESERVE_JOB, 7, b"RESERVED 7 0\r\n\r\n", (7, b"")),
    (c.RESERVE_JOB, 7, b"NOT_FOUND\r\n", errors.NotFoundError),
    (c.DELETE, 7, b"DELETED\r\n", None),
    (c.DELETE, 7, b"NOT_FOUND\r\n", errors.NotFoundError),
    (c.RELEASE, 7, b"RELEASED\r\n", None),
    (c.RELEASE, 7, b"BURIED\r\n", errors.BuriedError),
    (c.RELEASE, 7, b"NOT_FOUND\r\n", errors.NotFoundError),
    (c.BURY, 7, b"BURIED\r\n", None),
    (c.BURY, 7, b"NOT_FOUND\r\n", errors.NotFoundError),
    (c.TOUCH, 7, b"TOUCHED\r\n", None),
    (c.TOUCH, 7, b"NOT_FOUND\r\n", errors.NotFoundError),
    (c.WATCH, None, b"WATCHING 2\r\n", 2),
    (c.IGNORE, None, b"WATCHING 1\r\n", 1),
    (c.IGNORE, None, b"NOT_IGNORED\r\n", errors.NotIgnoredError),
    (c.PEEK, 7, b"FOUND 7 1\r\nx\r\n", (7, b"x")),
    (c.PEEK, 7, b"NOT_FOUND\r\n", None),
    (c.PEEK_READY, None, b"FOUND 9 1\r\nx\r\n", (9, b"x")),
    (c.PEEK_READY, None, b"NOT_FOUND\r\n", None),
    (c.PEEK_DELAYED, None, b"FOUND 9 1\r\nx\r\n", (9, b"x")),
    (c.PEEK_DELAYED, None, b"NOT_FOUND\r\n", None),
    (c.PEEK_BURIED, None, b"FOUND 9 1\r\nx\r\n", (9, b"x")),
    (c.PEEK_BURIED, None, b"NOT_FOUND\r\n", None),
    (c.KICK, None, b"KICKED 0\r\n", 0),
    (c.KICK_JOB, 7, b"KICKED\r\n", None),
    (c.KICK_JOB, 7, b"NOT_FOUND\r\n", errors.NotFoundError),
    (c.PAUSE_TUBE, b"t", b"PAUSED\r\n", None),
    (c.PAUSE_TUBE, b"t", b"NOT_FOUND\r\n", errors.NotFoundError),
    (c.LIST_TUBES, None, b"OK 21\r\n---\n- default\n- null\n\r\n", ["default", "null"]),
    (c.LIST_TUBES_WATCHED, None, b"OK 14\r\n---\n- default\n\r\n", ["default"]),
    (c.STATS_TUBE, b"t", b"NOT_FOUND\r\n", errors.NotFoundError),
    (c.STATS_JOB, 7, b"NOT_FOUND\r\n", errors.NotFoundError),
]
# What must end the connection, for this command.
BROKEN: list[tuple[c.Command, Any, bytes]] = [
    (c.PUT, None, b"DELETED\r\n"),
    (c.PUT, None, b"INSERTED\r\n"),
    (c.PUT, None, b"INSERTED 0\r\n"),
    (c.PUT, None, b"INSERTED 01\r\n"),
    (c.PUT, None, b"INSERTED +1\r\n"),
    (c.PUT, None, b"INSERTED 1_0\r\n"),
    (c.PUT, None, b"INSERTED -1\r\n"),
    (c.PUT, None, b"INSERTED 1 \r\n"),
    (c.PUT, None, b"INSERTED 18446744073709551616\r\n"),
    (c.PUT, None, b"INSERTED " + b"1" * 240 + b"\r\n"),
    (c.PUT, None, b"JOB_TOO_BIG x\r\n"),
    (c.PUT, None, b"BAD_FORMAT\r\n"),
    (c.PUT, None, b"EXPECTED_CRLF\r\n"),
    (c.PUT, None, b"UNKNOWN_COMMAND\r\n"),
    (c.USE, b"t", b"USING u\r\n"),
    (c.USE, b"t", b"USING\r\n"),
    (c.RESERVE, None, b"RESERVED 7\r\n"),
    (c.RESERVE, None, b"RESERVED 7 -1\r\n"),
    (c.RESERVE, None, b"RESERVED 7 1073741825\r\n"),
    (c.RESERVE, None, b"RESERVED 7 9223372036854775808\r\n"),
    (c.RESERVE, None, b"RESERVED 7 x 2\r\nab\r\n"),
    (c.RESERVE, None, b"FOUND 7 2\r\nab\r\n"),
    (c.RESERVE_JOB, 7, b"RESERVED 8 0\r\n\r\n"),
    (c.PEEK, 7, b"FOUND 8 0\r\n\r\n"),
    (c.DELETE, 7, b"RELEASED\r\n"),
    (c.RELEASE, 7, b"BURIED 7\r\n"),
    (c.TOUCH, 7, b"TOUCHED 7\r\n"),
    (c.RESERVE, None, b"TIMED_OUT 0\r\n"),
    (c.PEEK, 7, b"NOT_FOUND 7\r\n"),
    (c.LIST_TUBE_USED, None, b"USING a b\r\n"),
    (c.STATS_JOB, 7, b"OK 10\r\n---\nid: 8\n\r\n"),
    (c.STATS_TUBE, b"t", b"OK 12\r\n---\nname: u\n\r\n"),
    (c.STATS_JOB, 7, b"OK 4\r\nabcd\r\n"),
    (c.STATS_JOB, 7, b"OK x 4\r\n---\n\r\n"),
    (c.LIST_TUBES, None, b"OK 7\r\n---\n\xff\xff\n\r\n"),
]


def read(command: c.Command, key: Any, data: bytes) -> Any:
    """Hand a reply, cut by its spaces and its first line's end, to the function for its word; a size is looked at."""
    request = Request(command, URI, key)
    line, _, after = data.partition(b"\r\n")
    word, _, rest = line.partition(b" ")
    if (parse := command.replies.get(word)) is None:
        return command.refusals[word](request, rest)
    if word not in replies.BODIED:
        return parse(request, rest, b"")
    rest, _, size = (b"", b"", rest) if word == b"OK" else rest.partition(b" ")
    assert replies.body_size(size) == len(after) - 2
    return parse(request, rest, after[:-2])


@pytest.mark.parametrize(("command", "key", "data", "expected"), REPLIES)
def test_reply_is_a_result_or_an_error_that_names_the_server(command, key, data, expected):
    result = read(command, key, data)
    if isinstance(expected, type):
        assert type(result) is expected
        name = command.name if key is None else f"{command.name} {key.decode() if isinstance(key, bytes) else key}"
        assert str(result).startswith(f"{name} at {URI}: ")
    else:
        assert result == expected


@pytest.mark.parametrize(("command", "key", "data"), BROKEN)
def test_what_is_no_reply_of_this_command_is_refused(command, key, data):
    """As malformed, as another command's word, or with an error that ends the connection."""
    try:
        result = read(command, key, data)
    except (Malformed, KeyError, errors.ProtocolError):
        return
    assert isinstance(result, errors.ProtocolError)


def test_every_word_of_every_command_is_in_the_table():
    told = {(command.name, data.partition(b"\r\n")[0].partition(b" ")[0]) for command, _, data, _ in REPLIES + STATS}
    told |= {("put", b"EXPECTED_CRLF")}  # which ends the connection
    commands = [command for command in vars(c).values() if isinstance(command, c.Command)]
    assert {(command.name, word) for command in commands for word in command.expected} <= told


# -- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "id_", "size", "count"),
    [
        (b"0", None, 0, 0),
        (b"7", 7, 7, 7),
        (b"999999999", 999999999, 999999999, 999999999),
        (b"1073741824", 2**30, 2**30, 2**30),
        (b"1073741825", 2**30 + 1, None, 2**30 + 1),
        (b"9999999999999999999", 10**19 - 1, None, 10**19 - 1),
        (b"18446744073709551615", 2**64 - 1, None, 2**64 - 1),
        (b"18446744073709551616", None, None, None),
        (b"99999999999999999999", None, None, None),
        (b"100000000000000000000", None, None, None),
        (b"1" * 5000, None, None, None),
        (b"00", None, None, None),
        (b"07", None, None, None),
        (b"", None, None, None),
        (b"+7", None, None, None),
        (b"-7", None, None, None),
        (b"7 ", None, None, None),
        (b" 7", None, None, None),
        (b"1_0", None, None, None),
        (b"x", None, None, None),
        ("\u0667".encode(), None, None, None),
    ],
)
def test_number_is_decimal_without_sign_blank_or_leading_zero(text, id_, size, count):
    for function, expected in (
        (replies.job_id, id_),
        (replies.body_size, size),
        (lambda text: replies.number(text, 2**64 - 1), count),
    ):
        if expected is None:
            with pytest.raises(Malformed):
                function(text)
        else:
            assert function(text) == expected


def test_number_above_the_most_is_malformed():
    assert replies.number(b"3", 3) == 3
    with pytest.raises(Malformed):
        replies.number(b"4", 3)


# -- refusals --------------------------------------------------------------------------------------------------------

REFUSED: list[tuple[c.Command, Any, bytes, type[errors.GstalkError], str]] = [
    (
        c.PUT, None, b"BURIED 5", errors.BuriedError,
        "put at {}: the server was out of memory and buried the job, as 5; it is stored",
    ),
    (
        c.PUT, None, b"JOB_TOO_BIG", errors.JobTooBigError,
        "put at {}: the body is larger than the server's max-job-size",
    ),
    (
        c.PUT, None, b"EXPECTED_CRLF", errors.ExpectedCrlfError,
        "put at {}: the server missed the body's end; connection closed",
    ),
    (
        c.PUT, None, b"DRAINING", errors.DrainingError,
        "put at {}: the server takes no new jobs until it is restarted",
    ),
    (c.USE, b"t", b"OUT_OF_MEMORY", errors.OutOfMemoryError, "use t at {}: the server has no room for it"),
    (c.DELETE, 7, b"INTERNAL_ERROR", errors.InternalError, "delete 7 at {}: a bug in the server; it may have acted"),
    (
        c.TOUCH, 7, b"BAD_FORMAT", errors.BadFormatError,
        "touch 7 at {}: the server calls the command malformed; connection closed",
    ),
    (
        c.RESERVE_JOB, 7, b"UNKNOWN_COMMAND", errors.UnknownCommandError,
        "reserve-job 7 at {}: the server doesn't know the command; connection closed",
    ),
    (
        c.RELEASE, 7, b"BURIED", errors.BuriedError,
        "release 7 at {}: the server was out of memory and buried the job instead",
    ),
    (
        c.BURY, 7, b"NOT_FOUND", errors.NotFoundError,
        "bury 7 at {}: no such job for this connection; its time to run may be over",
    ),
    (
        c.KICK_JOB, 7, b"NOT_FOUND", errors.NotFoundError,
        "kick-job 7 at {}: no such job, or not in a state for this",
    ),
    (c.STATS_JOB, 7, b"NOT_FOUND", errors.NotFoundError, "stats-job 7 at {}: no such job"),
    (c.PAUSE_TUBE, b"t", b"NOT_FOUND", errors.NotFoundError, "pause-tube t at {}: no such tube"),
    (c.IGNORE, None, b"NOT_IGNORED", errors.NotIgnoredError, "ignore at {}: the last tube watched can't be ignored"),
    (
        c.RESERVE, None, b"DEADLINE_SOON", errors.DeadlineSoonError,
        "reserve-with-timeout at {}: a job held by this connection is about to run out",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("command", "key", "line", "kind", "said"), REFUSED)
def test_refusal_says_what_the_server_did(command, key, line, kind, said):
    error = read(command, key, line + b"\r\n")
    assert (type(error), str(error)) == (kind, said.format(URI))


@pytest.mark.parametrize("line", sorted({line for _, _, line, _, _ in REFUSED} - {b"BURIED 5"}))
def test_refusal_with_more_on_its_line_is_malformed(line):
    command, key = next((command, key) for command, key, told, _, _ in REFUSED if told == line)
    with pytest.raises(Malformed):
        read(command, key, line + b" 7\r\n")


@pytest.mark.parametrize("line", [b"BURIED", b"BURIED x", b"BURIED 0", b"BURIED 5 6"])
def test_put_that_is_buried_names_its_job(line):
    with pytest.raises(Malformed):
        read(c.PUT, None, line + b"\r\n")
    assert read(c.PUT, None, b"BURIED 5\r\n").job_id == 5
    assert read(c.RELEASE, 7, b"BURIED\r\n").job_id == 7


# -- statistics and lists --------------------------------------------------------------------------------------------

STATS: list[tuple[c.Command, Any, bytes, dict[str, Any]]] = [
    (c.STATS, None, b'OK 13\r\n---\nid: "4a"\n\r\n', {"id": "4a"}),
    (c.STATS_TUBE, b"t", b"OK 21\r\n---\nname: t\npause: 3\n\r\n", {"name": "t", "pause": 3}),
    (c.STATS_TUBE, b"7", b'OK 14\r\n---\nname: "7"\n\r\n', {"name": "7"}),
    (c.STATS_TUBE, b"t", b"OK 13\r\n---\npause: 3\n\r\n", {"name": None, "pause": 3}),  # a server may lack the echo
    (c.STATS_JOB, 7, b"OK 24\r\n---\nid: 7\nstate: buried\n\r\n", {"id": 7, "state": "buried"}),
    (c.STATS_JOB, 7, b"OK 11\r\n---\npri: 3\n\r\n", {"id": None, "pri": 3}),
]


@pytest.mark.parametrize(("command", "key", "data", "fields"), STATS)
def test_statistics_are_those_that_were_asked_for(command, key, data, fields):
    stats = read(command, key, data)
    assert {name: getattr(stats, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("command", "key", "body"),
    [
        (c.STATS_JOB, 7, b"---\nid: 8\n"),
        (c.STATS_JOB, 7, b"---\nid: 77\n"),
        (c.STATS_TUBE, b"t", b"---\nname: tt\n"),
        (c.STATS_TUBE, b"7", b"---\nname: 8\n"),
    ],
)
def test_statistics_of_something_else_are_malformed(command, key, body):
    with pytest.raises(Malformed):
        read(command, key, b"OK %d\r\n%b\r\n" % (len(body), body))


@pytest.mark.parametrize("command", [c.STATS, c.STATS_JOB, c.STATS_TUBE, c.LIST_TUBES, c.LIST_TUBES_WATCHED])
def test_body_that_is_no_statistics_is_a_protocol_error_without_another_one_behind_it(command):
    with pytest.raises(errors.ProtocolError) as caught:
        read(command, None, b"OK 4\r\nabcd\r\n")
    assert str(caught.value).startswith(f"{command.name} at {URI}: ")
    assert str(caught.value).endswith("; connection closed")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_malformed_reply_may_know_of_which_job_it_is():
    assert Malformed().job_id is None
    assert Malformed(7).job_id == 7
