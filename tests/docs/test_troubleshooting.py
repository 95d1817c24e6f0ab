"""What docs/troubleshooting.md quotes is what gstalk says: people search for the words that they have before them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.server import StreamServer

import gstalk

PAGE = (Path(__file__).parent.parent.parent / "docs" / "troubleshooting.md").read_text("utf-8")


def row(*words: str) -> None:
    """Assert that a table of the page has a row that begins so."""
    assert [word for word in words if f"\n| {word}" not in PAGE and f", or {word}" not in PAGE] == []


def refusal(uri: str, **options: Any) -> str:
    with pytest.raises(gstalk.ConnectError) as refused:
        gstalk.dial(uri, **{"conn_timeout": 5, **options})
    return str(refused.value)


@contextlib.contextmanager
def another_program(greeting: bytes) -> Iterator[str]:
    """One that answers whatever it is sent with the same bytes; where it listens."""

    def answer(sock: socket.socket, address: object) -> None:
        sock.recv(1000)
        sock.sendall(greeting)

    server = StreamServer(("127.0.0.1", 0), answer)
    server.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.stop(0)


def test_words_of_a_connection_that_fails(server):
    row("connection refused", "name or service not known", "no answer within 5 s", "expected OK, got ...")
    assert refusal("localhost:1").endswith(": connection refused")
    assert refusal("nowhere.invalid").endswith(": name or service not known")
    with another_program(b"HTTP/1.1 400 Bad Request\r\n\r\n") as where:
        assert ": expected OK, got 'HTTP/1.1 400 Bad Request'" in refusal(where)


def test_words_of_tls_that_fails(terminator, server, trusting):
    row("certificate refused: unable to get local issuer certificate", "certificate refused: self-signed certificate")
    row(
        "certificate refused: hostname mismatch", "no answer within 5 s", "wrong version number", "certificate required"
    )
    assert refusal(terminator.uri("good")).endswith("certificate refused: unable to get local issuer certificate")
    assert refusal(terminator.uri("self-signed")).endswith("certificate refused: self-signed certificate")
    assert "certificate refused: hostname mismatch" in refusal(terminator.uri("wrong-host"), tls_context=trusting)
    assert "certificate required" in refusal(terminator.uri("client"), tls_context=trusting)
    # beanstalkd answers, without TLS, if the greeting's random bytes happen to end a line.
    said = refusal(f"tls://127.0.0.1:{server.port}", conn_timeout=0.2)
    assert said.endswith("no answer within 0.2 s") or "wrong version number" in said
    with another_program(b"HTTP/1.1 400 Bad Request\r\n\r\n") as where:
        assert "wrong version number" in refusal(f"tls://{where}")


def test_sentences_that_are_quoted_are_gstalks_or_gevents():
    quotes = [re.sub(r"\s+", " ", quote) for quote in re.findall(r'\*"(.+?)"\*', PAGE, re.DOTALL)]
    quotes += re.findall(r'^## .*"(no progress|the command line needs)', PAGE, re.MULTILINE)
    folders = [Path(str(module.__file__)).parent for module in (gstalk, gevent)]
    source = "".join(path.read_text("utf-8") for folder in folders for path in folder.rglob("*.py"))
    assert [quote for quote in quotes if quote not in source] == []
    assert len(quotes) > 6
