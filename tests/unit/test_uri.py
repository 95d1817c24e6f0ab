"""gstalk.uri: every form of address, and everything that is none."""

from __future__ import annotations

import dataclasses
import ipaddress
import socket

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gstalk.errors import InvalidArgumentError
from gstalk.uri import Address, is_ipv6, parse_uri, server_name, validate_uris

GOOD = [  # text, scheme, host, port, path, is_tls, canonical
    ("q1", "beanstalk", "q1", 11300, None, False, "beanstalk://q1:11300"),
    ("q1:7", "beanstalk", "q1", 7, None, False, "beanstalk://q1:7"),
    ("127.0.0.1:65535", "beanstalk", "127.0.0.1", 65535, None, False, "beanstalk://127.0.0.1:65535"),
    ("[::1]:11301", "beanstalk", "::1", 11301, None, False, "beanstalk://[::1]:11301"),
    ("[::1]", "beanstalk", "::1", 11300, None, False, "beanstalk://[::1]:11300"),
    ("[::ffff:10.0.0.1]:7", "beanstalk", "::ffff:10.0.0.1", 7, None, False, "beanstalk://[::ffff:10.0.0.1]:7"),
    ("beanstalk://q1", "beanstalk", "q1", 11300, None, False, "beanstalk://q1:11300"),
    ("beanstalk://q1:7", "beanstalk", "q1", 7, None, False, "beanstalk://q1:7"),
    ("beanstalk://[::1]:7", "beanstalk", "::1", 7, None, False, "beanstalk://[::1]:7"),
    ("beanstalks://q1", "beanstalks", "q1", 11400, None, True, "beanstalks://q1:11400"),
    ("beanstalks://[::1]", "beanstalks", "::1", 11400, None, True, "beanstalks://[::1]:11400"),
    ("beanstalks://q1.example.org:7", "beanstalks", "q1.example.org", 7, None, True, "beanstalks://q1.example.org:7"),
    ("q1.example.org.", "beanstalk", "q1.example.org.", 11300, None, False, "beanstalk://q1.example.org.:11300"),
    ("tls://Q1.:7", "tls", "Q1.", 7, None, True, "tls://Q1.:7"),
    ("q_1:7", "beanstalk", "q_1", 7, None, False, "beanstalk://q_1:7"),
    ("tls://[fe80::1%eth0]:7", "tls", "fe80::1%eth0", 7, None, True, "tls://[fe80::1%eth0]:7"),
    ("unix:///run/b.sock", "unix", None, None, "/run/b.sock", False, "unix:///run/b.sock"),
    ("unix:///" + "x" * 106, "unix", None, None, "/" + "x" * 106, False, "unix:///" + "x" * 106),
]

BAD = [
    ("", "malformed host name"),
    (":11300", "malformed host name"),
    ("a..b", "malformed host name"),
    (".a", "malformed host name"),
    ("a.-b", "malformed host name"),
    ("a" * 64, "malformed host name"),
    (".".join(["a" * 63] * 3 + ["b" * 62]), "malformed host name"),
    ("beanstalk://", "malformed host name"),
    ("redis://q1", "scheme must be beanstalk, beanstalks, tls or unix"),
    ("http://q1:11300", "scheme must be beanstalk, beanstalks, tls or unix"),
    ("://q1", "scheme must be beanstalk, beanstalks, tls or unix"),
    ("q1:", "port must be a number from 1 to 65535"),
    ("q1:0", "port must be a number from 1 to 65535"),
    ("q1:65536", "port must be a number from 1 to 65535"),
    ("q1:+7", "port must be a number from 1 to 65535"),
    ("q1:-7", "port must be a number from 1 to 65535"),
    ("q1:1_0", "port must be a number from 1 to 65535"),
    ("q1:x", "port must be a number from 1 to 65535"),
    ("q1:7:8", "port must be a number from 1 to 65535"),
    ("q1:" + "9" * 5000, "port must be a number from 1 to 65535"),
    ("[::1]:", "port must be a number from 1 to 65535"),
    ("[::1]:0", "port must be a number from 1 to 65535"),
    ("::1", "malformed host name"),
    ("[::1", "malformed IPv6 address"),
    ("[]:7", "malformed IPv6 address"),
    ("[q1]:7", "malformed IPv6 address"),
    ("[::1]7", "malformed IPv6 address"),
    ("user@q1", "user info has no meaning here"),
    ("beanstalk://user:secret@q1:7", "user info has no meaning here"),
    ("beanstalk://q1:7?x=1", "a query has no meaning here"),
    ("beanstalk://q1:7#x", "a fragment has no meaning here"),
    ("unix:///run/b?x", "a query has no meaning here"),
    ("q 1", "only printable ASCII characters are allowed"),
    (" q1", "only printable ASCII characters are allowed"),
    ("q1\n", "only printable ASCII characters are allowed"),
    ("q1\r\nquit", "only printable ASCII characters are allowed"),
    ("q1\0", "only printable ASCII characters are allowed"),
    ("q1\x7f", "only printable ASCII characters are allowed"),
    ("q\u00fc", "only printable ASCII characters are allowed"),
    ("q1:\u0661", "only printable ASCII characters are allowed"),  # an Arabic digit, which int() would take
    ("unix://run/b.sock", "a unix socket needs an absolute path: unix:///path"),
    ("unix://", "a unix socket needs an absolute path: unix:///path"),
    ("unix:///", "a unix socket needs an absolute path: unix:///path"),
    ("unix:///" + "x" * 107, "the path has 108 bytes, at most 107 allowed"),
    ("beanstalk://q1:7/path", "port must be a number from 1 to 65535"),
    ("beanstalk://q1/path", "malformed host name"),
]


@pytest.mark.parametrize(("text", "scheme", "host", "port", "path", "is_tls", "canonical"), GOOD)
def test_parse_good_uri_gives_its_parts(text, scheme, host, port, path, is_tls, canonical):
    address = parse_uri(text)
    assert dataclasses.astuple(address) == (scheme, host, port, path)
    assert address.is_tls is is_tls
    assert str(address) == canonical


@pytest.mark.parametrize("canonical", [row[-1] for row in GOOD])
def test_parse_canonical_uri_is_itself(canonical):
    assert str(parse_uri(canonical)) == canonical


def test_parse_tls_scheme_is_tls_on_its_own_port():
    address = parse_uri("tls://q1")
    assert (address.host, address.port, address.is_tls) == ("q1", 11400, True)


def test_parse_scheme_case_does_not_matter():
    assert parse_uri("BEANSTALK://q1") == parse_uri("beanstalk://q1")


@pytest.mark.parametrize(("text", "why"), BAD)
def test_parse_bad_uri_is_refused_with_the_reason(text, why):
    with pytest.raises(InvalidArgumentError) as caught:
        parse_uri(text)
    assert str(caught.value) == f"invalid server URI {ascii(text)}: {why}"


@pytest.mark.parametrize("value", [None, 11300, b"q1", ["q1"], ("q1", 7)])
def test_parse_no_str_is_a_type_error(value):
    with pytest.raises(TypeError, match=f"^a server URI must be a str, got {type(value).__name__}$"):
        parse_uri(value)


@given(st.text(max_size=60) | st.text("beanstalk://[]:.@?#%1fx ", max_size=40))
def test_parse_any_text_gives_an_address_or_the_one_error(text):
    try:
        address = parse_uri(text)
    except InvalidArgumentError:
        return
    assert parse_uri(str(address)) == address
    assert (address.path is None) == (address.host is not None) == (address.port is not None)


PIECES = [
    ":",
    "::",
    "0",
    "1",
    "aB",
    "ffff",
    "12345",
    "g",
    ".",
    "1.2.3.4",
    "01.2.3.4",
    "1.2.3",
    "256.1.1.1",
    "%",
    "%e0",
    "-",
]
NEARLY = st.builds(  # an address with a piece too many
    lambda address, at, piece: str(address)[:at] + piece + str(address)[at:],
    st.ip_addresses(v=6),
    st.integers(0, 39),
    st.sampled_from(["", *PIECES]),
)


@given(NEARLY | st.lists(st.sampled_from(PIECES), max_size=17).map("".join) | st.text(max_size=20))
@example("1:2:3:4:5:6:7::")
@example("1:2:3:4:5:6:7:8::")
@example("1:2:3:4:5:6:1.2.3.4")
@example("::1.2.3.4%e0")
@example("::1%e0/1")
@example(":::")
@example("::\n")
def test_ipv6_address_is_what_python_takes_for_one(host):
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        assert not is_ipv6(host)
    else:
        assert is_ipv6(host)


def test_address_is_frozen_and_hashable():
    address = parse_uri("q1")
    with pytest.raises(dataclasses.FrozenInstanceError):
        address.port = 7
    assert {address, parse_uri("q1:11300")} == {Address("beanstalk", "q1", 11300)}


def test_validate_list_gives_addresses_in_order():
    assert [str(each) for each in validate_uris(["q1", "q2:7"])] == ["beanstalk://q1:11300", "beanstalk://q2:7"]


def test_validate_one_str_is_a_list_of_one():
    assert validate_uris("q1:7") == [parse_uri("q1:7")]


def test_validate_takes_any_iterable():
    assert validate_uris(uri for uri in ("q1",)) == [parse_uri("q1")]


def test_validate_empty_list_is_refused():
    with pytest.raises(InvalidArgumentError, match="^at least one server URI is needed$"):
        validate_uris([])


@pytest.mark.parametrize("uris", [["q1", "q 2"], ["q1", ""], ""])
def test_validate_one_bad_uri_is_refused(uris):
    with pytest.raises(InvalidArgumentError):
        validate_uris(uris)


@pytest.mark.parametrize("uris", [None, 7, ["q1", None], b"q1"])
def test_validate_wrong_type_is_a_type_error(uris):
    with pytest.raises(TypeError):
        validate_uris(uris)


def test_validate_looks_no_name_up(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: pytest.fail("looked a name up"))
    validate_uris(["no-such-host.invalid:7"])


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("q1.example.org", "q1.example.org"),
        ("q1.example.org.", "q1.example.org"),
        ("Q1.Example.ORG.", "q1.example.org"),
        ("q_1", "q_1"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("FE80::1%1", "fe80::1"),
    ],
)
def test_server_name_is_what_a_certificate_names(host, name):
    assert server_name(host) == name
