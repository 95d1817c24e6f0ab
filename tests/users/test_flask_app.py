"""What the Flask example answers when all is well, and when it isn't."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import gstalk
from gstalk.testing import Beanstalkd
from tests.users.test_gunicorn import APP

pytest.importorskip("flask")

pytestmark = pytest.mark.real


@pytest.fixture
def app(own_server: Beanstalkd, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setenv("BEANSTALKD_URI", own_server.uri)
    spec = importlib.util.spec_from_file_location("app", APP / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "app", module)
    spec.loader.exec_module(module)
    yield module
    module.producer.stop()


def post(app: Any, path: str, body: bytes) -> tuple[int, Any]:
    answer = app.app.test_client().post(path, data=body)
    return answer.status_code, answer.get_json()


def test_post_puts_a_job_with_its_delay(app, own_server):
    code, said = post(app, "/jobs/mail?delay=100", b"\x00binary\r\n")
    with gstalk.dial(own_server.uri) as conn:
        job = conn.peek_delayed("mail")
    assert job is not None
    assert (code, said) == (201, {"id": job.id})
    assert job.body == b"\x00binary\r\n"


@pytest.mark.parametrize("path", ["/jobs/-mail", "/jobs/mail?delay=-1"])
def test_post_bad_argument_is_answered_400(app, path):
    code, said = post(app, path, b"")
    assert code == 400
    assert "must" in said["error"]


def test_post_too_big_is_answered_413(app):
    code, said = post(app, "/jobs/mail", bytes(65536))
    assert code == 413
    assert "max-job-size" in said["error"]


def test_post_draining_server_is_answered_503(app, own_server):
    own_server.drain()
    code, said = post(app, "/jobs/mail", b"")
    assert (code, said["sent"]) == (503, "no")
