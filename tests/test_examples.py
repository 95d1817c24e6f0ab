"""Each example runs, on the embedded server and on the real one; so does each snippet of the README."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gevent import subprocess

import gstalk
from gstalk.testing import Beanstalkd, Server
from tests.servers import wait_until

ROOT = Path(__file__).parent.parent
ALL = sorted((ROOT / "examples").glob("*.py"))
ELSEWHERE = {"tls", "locustfile"}  # tests/io/test_tls.py, tests/users/test_recipes.py
EXAMPLES = [path for path in ALL if path.stem not in ELSEWHERE]
NEEDS = {  # what else an example imports: there with the extra `test`
    "beside_huey": "huey",
    "json_and_msgpack": "msgpack",
    "prometheus_events": "prometheus_client",
    "sealed_bodies": "cryptography",
    "sentry_errors": "sentry_sdk",
}
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
# In a process of their own: some patch it, one blocks its hub, one has Sentry listen to it.
ALONE = {"beside_huey", "patched", "sentry_errors", "threads"}
SAYS = {
    "batches": "rows inserted at once: 10 10 5\n",
    "beside_huey": "20 pictures, the last of them 19.small.jpg\n",
    "circuit_breaker": "failed: no answer\nopen: no answer\n5 calls done\n",
    "claim_check": "11 bytes, of which the server had 12\n150000 bytes, of which the server had 65\n",
    "crontab": "{'cron-figures': 1, 'cron-backup': 1, 'cron-bills': 1}\n",
    "changing_tubes": (
        "open customer-a, now watching ['customers', 'customer-a']\n"
        "apples for customer-a\n"
        "no more for customer-a\n"
        "close customer-a, now watching ['customers']\n"
        "open customer-b, now watching ['customers', 'customer-b']\n"
        "bread for customer-b\n"
    ),
    "dead_letters": (
        "finished by given_up_func\n"
        "job 2: b'many apples' failed with ValueError(\"invalid literal for int() with base 10: 'many'\")\n"
        "job 3: b'pears' failed with ValueError("
    ),
    "delayed": "happy 2000\ntea is ready\ncall back\ndue in 6 days, 23:59:5",
    "fan_out_fan_in": "sum of squares: 285\n",
    "idempotent": "2 jobs, balance 100\n",
    "json_and_msgpack": (
        "mail to ann\n"
        "job 2 can't be decoded: Expecting ',' delimiter: line 1 column 13 (char 12)\n"
        "point at [1.5, 2.5] b'\\x00\\xff'\n"
    ),
    "limit_per_tube": "most at once: {'reports': 2, 'mail': 10}\n",
    "outbox": "refused: nobody orders nothing\nput 2 jobs, then 0\nship apples\nship pears\n",
    "patched": "20 jobs of 0.1 s",
    "plain_script": "put [1, 2, 3, 4, 5]\njob 1 says job 0\n",
    "priorities": "[b'alarm', b'first order', b'second order', b'first order', b'clean up']\n",
    "prometheus_events": 'gstalk_events_total{error="ValueError",kind="handled",tube="counted"} 1.0\n',
    "rate_limit": "10 calls in ",
    "repeat": "failed: no space left\nran 3 times\n",
    "sealed_bodies": (
        "refused: InvalidToken\n"
        "268 bytes at the server are 50000 here\n268 bytes at the server are 50000 here\n"
        "both as they were: True\n"
    ),
    "sentry_errors": (
        "no such address - job 1 ['asked for the address of job 1']\n"
        "no such address - job 2 ['asked for the address of job 2']\n"
    ),
    "threads": "; a Producer puts from any thread\n20 jobs done\n",
    "tube_prefix": "done: [b'cat.jpg', b'to a colleague']\nleft for others: {'production-mail': 1}\n",
    "tubes": "['sent mail to nobody', 'sent mail to somebody', 'shrank cat.jpg']\n",
    "unique_jobs": "put: [1, None, 2, None]\nput again: 3\n",
}


@pytest.fixture(params=["memory", "real"])
def uri(request: pytest.FixtureRequest) -> Iterator[str]:
    with Server() if request.param == "memory" else Beanstalkd() as server:
        yield server.uri


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(NEEDS.get(path.stem, "gstalk"))
    if path.stem in ALONE:
        command = [sys.executable, "-W", "error", str(path), uri]
        done = subprocess.run(command, capture_output=True, text=True, timeout=50)
        assert (done.returncode, done.stderr) == (0, "")
        said = done.stdout
    else:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.main(uri)
        said = capsys.readouterr().out
    assert SAYS.get(path.stem, "") in said
    with gstalk.dial(uri) as conn:
        wait_until(lambda: conn.stats().current_connections == 1)  # the server has yet to see that the others are gone
        assert conn.stats().current_jobs_reserved == 0


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_example_is_short_and_says_what_it_shows(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    assert text.startswith('"""')
    assert f"Run: {'locust -f' if path.stem == 'locustfile' else 'python'} examples/{path.name}" in text


def test_examples_are_all_on_their_page() -> None:
    listed = re.findall(r"^\| `([\w.]+)` \|", (ROOT / "docs" / "examples.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(
        path.name for path in (ROOT / "examples").iterdir() if path.suffix == ".py" or any(path.glob("*.py"))
    )


@pytest.mark.filterwarnings("ignore:unclosed connection:ResourceWarning")
def test_readme_snippets_run(uri: str) -> None:
    assert len(SNIPPETS) >= 5
    for snippet in SNIPPETS:
        exec(compile(snippet.replace("localhost:11300", uri), "README.md", "exec"), {"__name__": "readme"})
