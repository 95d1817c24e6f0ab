"""How the embedded server reads arguments; `tests/conformance` holds the same against beanstalkd."""

from __future__ import annotations

import re

import pytest

from gstalk.testing import arguments
from gstalk.testing.arguments import Bad


def test_name_is_1_to_200_of_its_characters_and_begins_with_no_hyphen():
    good = [b"a", b"9", b"aZ09+/;.$_()-", b"+", b"(", b"a-", b"a" * 200]
    bad = [b"", b"-", b"-a", b"a b", b" a", b"a ", b"a,", b"a\0", b"a\r", b"\xc3\xa4", b"a" * 201, b"a\n"]
    assert [arguments.name(text) for text in good] == good
    assert [arguments.is_name(text) for text in good] == [True] * len(good)
    assert [arguments.is_name(text) for text in bad] == [False] * len(bad)
    for text in bad:
        with pytest.raises(Bad):
            arguments.name(text)


def test_number_below_its_limit_is_read_and_one_at_it_is_bad():
    assert arguments.below(2**32, b"4294967295") == 4294967295
    assert arguments.below(2**32, b"0007") == 7  # as C does
    with pytest.raises(Bad):
        arguments.below(2**32, b"4294967296")


@pytest.mark.parametrize(
    ("pattern", "text", "read"),
    [
        (arguments.ID, b"7", [7]),
        (arguments.ID, b"  7", [7]),
        (arguments.ID, b"18446744073709551615", [2**64 - 1]),
        (arguments.ID, b"18446744073709551616", None),
        (arguments.ID, b"", None),
        (arguments.ID, b"x", None),
        (arguments.ID, b"-1", None),
        (arguments.ID, b"+1", None),
        (arguments.ID, b"7 ", None),
        (arguments.ID, b"\t7", None),
        (arguments.BURY, b"7 5", [7, 5]),
        (arguments.BURY, b" 7   5", [7, 5]),
        (arguments.BURY, b"7 4294967295", [7, 2**32 - 1]),
        (arguments.BURY, b"7 4294967296", None),
        (arguments.BURY, b"18446744073709551616 5", None),
        (arguments.BURY, b"7", None),
        (arguments.BURY, b"7 5 1", None),
        (arguments.RELEASE, b"7 5 1", [7, 5, 1]),
        (arguments.RELEASE, b"  7  5  1", [7, 5, 1]),
        (arguments.RELEASE, b"4294967296 5 1", [2**32, 5, 1]),
        (arguments.RELEASE, b"7 5 4294967296", None),
        (arguments.RELEASE, b"7 4294967296 1", None),
        (arguments.RELEASE, b"7 5", None),
    ],
)
def test_id_has_64_bits_and_the_numbers_behind_it_32(pattern, text, read):
    if read is None:
        with pytest.raises(Bad):
            arguments.numbers(pattern, text)
    else:
        assert arguments.numbers(pattern, text) == read


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (b"0", 0),
        (b"+3", 3),
        (b"-5", -5),
        (b" \t\n\v\f\r7", 7),
        (b"1.5", 1),
        (b"2 more", 2),
        (b"9", 9),
        (b"10", "bad"),
        (b"-10", -10),
        (b"-11", "bad"),
        (b"", None),
        (b"x", None),
        (b"- 1", None),
        (b"+-1", None),
    ],
)
def test_number_is_read_as_strtol_does(text, read):
    """Blanks and a sign before it, anything behind it; `None` where there is none. Out of range it is bad."""
    if read == "bad":
        with pytest.raises(Bad):
            arguments.c_number(text, -10, 10)
    else:
        assert arguments.c_number(text, -10, 10) == read


@pytest.mark.parametrize(
    ("pattern", "text", "groups"),
    [
        (arguments.PUT, b"1 2 3 4", (b"1", b"2", b"3", b"4", b"")),
        (arguments.PUT, b"  1  2  3  4", (b"1", b"2", b"3", b"4", b"")),
        (arguments.PUT, b"1 2 3 4 x\n", (b"1", b"2", b"3", b"4", b" x\n")),
        (arguments.PUT, b"1 2 3", None),
        (arguments.PUT, b"-1 2 3 4", None),
        (arguments.PUT, b"1 2.5 3 4", None),
        (arguments.PAUSE, b"mail 7", (b"mail", b"7")),
        (arguments.PAUSE, b" -mail  7", (b"-mail", b"7")),  # no name, which is told only when it is looked for
        (arguments.PAUSE, b"mail", None),
        (arguments.PAUSE, b"m,il 7", None),
        (arguments.PAUSE, b"mail 7 ", None),
        (arguments.PAUSE, b"mail -7", None),
    ],
)
def test_put_and_pause_take_their_arguments_apart(pattern: re.Pattern[bytes], text, groups):
    match = pattern.fullmatch(text)
    assert (match and match.groups()) == groups
