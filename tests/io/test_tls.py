"""TLS through a real terminator (haproxy) in front of a real beanstalkd; unix sockets; IPv6 and names."""

from __future__ import annotations

import importlib.util
import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import gevent
import pytest
from gevent import socket, subprocess

import gstalk
from gstalk.testing import Beanstalkd

pytestmark = pytest.mark.real

HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")


def openssl(directory: Path, *args: str) -> None:
    subprocess.run(["openssl", *args], cwd=directory, check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def certify(directory: Path, name: str, names: str, days: str = "30") -> None:
    """Make name.pem, key and certificate, signed by ca.pem."""
    openssl(
        directory,
        "req",
        "-new",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        f"/CN={name}",
        "-keyout",
        "key",
        "-out",
        "csr",
    )
    (directory / "extensions").write_text(f"subjectAltName={names}")
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", days, "-extfile", "extensions"]
    openssl(directory, "x509", "-req", "-in", "csr", *signed, "-out", "crt")
    (directory / f"{name}.pem").write_bytes((directory / "crt").read_bytes() + (directory / "key").read_bytes())


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Ports of TLS listeners: `good`, `wrong_name`, `expired`, `client` (asks for a certificate), and the plain one."""
    if HAPROXY is None:
        pytest.skip("no haproxy on this machine")
    directory = tmp_path_factory.mktemp("tls")
    ca = ["-days", "30", "-subj", "/CN=test CA", "-keyout", "ca.key", "-out", "ca.pem"]
    openssl(directory, "req", "-x509", "-newkey", "rsa:2048", "-nodes", *ca)
    certify(directory, "good", "DNS:localhost,IP:127.0.0.1")
    certify(directory, "wrong", "DNS:elsewhere.example")
    certify(directory, "client", "DNS:client")
    ports = {name: free_port() for name in ("good", "wrong_name", "client")}
    options = {"good": "good.pem", "wrong_name": "wrong.pem", "client": "good.pem ca-file ca.pem verify required"}
    with Beanstalkd() as server:
        lines = ["defaults", " mode tcp", " timeout connect 5s", " timeout client 60s", " timeout server 60s"]
        for name, port in ports.items():
            lines += [f"listen {name}", f" bind 127.0.0.1:{port} ssl crt {options[name]}"]
            lines += [f" server one 127.0.0.1:{server.port}"]
        (directory / "haproxy.cfg").write_text("\n".join(lines) + "\n")
        quiet = subprocess.DEVNULL
        proxy = subprocess.Popen([HAPROXY, "-f", "haproxy.cfg"], cwd=directory, stdout=quiet, stderr=quiet)
        try:
            with gevent.Timeout(10):
                while True:
                    try:
                        socket.create_connection(("127.0.0.1", ports["client"])).close()
                        break
                    except OSError:
                        gevent.sleep(0.02)
            yield SimpleNamespace(directory=directory, plain=server.port, server=server, **ports)
        finally:
            proxy.kill()
            proxy.wait()


@pytest.fixture
def trusting(tls: SimpleNamespace) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(tls.directory / "ca.pem"))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
@pytest.mark.parametrize("scheme", ["tls", "beanstalks"])
def test_tls_verified_connection_carries_commands(tls, trusting, scheme, host):
    with gstalk.dial(f"{scheme}://{host}:{tls.good}", tls_context=trusting) as conn:
        conn.watch("tls")
        conn.ignore("default")
        bodies = [b"small", b"x" * 60000, b"\r\n" * 100]
        ids = [conn.put("tls", body) for body in bodies]
        jobs = [conn.reserve() for _ in bodies]
        assert ([job.id for job in jobs], [job.body for job in jobs]) == (ids, bodies)
        for job in jobs:
            job.delete()


def test_tls_is_verified_by_default(tls):
    with pytest.raises(gstalk.ConnectError, match="certificate"):
        gstalk.dial(f"tls://localhost:{tls.good}")


def test_tls_wrong_name_is_refused(tls, trusting):
    with pytest.raises(gstalk.ConnectError, match=r"(?i)hostname|certificate"):
        gstalk.dial(f"tls://localhost:{tls.wrong_name}", tls_context=trusting)


def test_tls_client_certificate(tls, trusting):
    with pytest.raises(gstalk.ConnectError):
        gstalk.dial(f"tls://localhost:{tls.client}", tls_context=trusting)
    trusting.load_cert_chain(str(tls.directory / "client.pem"))
    with gstalk.dial(f"tls://localhost:{tls.client}", tls_context=trusting) as conn:
        assert conn.put("tls-client", b"x")


def test_tls_to_a_plain_server_and_plain_to_a_tls_server_are_clear_errors(tls):
    with pytest.raises(gstalk.ConnectError):
        gstalk.dial(f"tls://127.0.0.1:{tls.plain}", conn_timeout=1)
    with pytest.raises(gstalk.ConnectError):
        gstalk.dial(f"127.0.0.1:{tls.good}", conn_timeout=1)


def test_tls_many_greenlets_get_their_own_replies(tls, trusting):
    with gstalk.dial(f"tls://localhost:{tls.good}", tls_context=trusting) as conn:

        def work(number: int) -> None:
            for turn in range(20):
                body = b"%d-%d " % (number, turn) * 50
                found = conn.peek(conn.put(f"many-{number % 3}", body, delay=1000))
                assert found is not None
                assert found.body == body

        gevent.joinall([gevent.spawn(work, number) for number in range(30)], raise_error=True)
        assert len(conn.put_many("many", [b"x" * 1000] * 2000, delay=1000)) == 2000


def test_tls_reserve_beside_puts(tls, trusting):
    with gstalk.dial(f"tls://localhost:{tls.good}", tls_context=trusting) as conn:
        conn.watch("beside")
        conn.ignore("default")
        reserving = gevent.spawn(conn.reserve)
        gevent.sleep(0.05)
        with gevent.Timeout(5):
            job_id = conn.put("beside", b"x")
            job = reserving.get()
        assert job.id == job_id
        job.delete()


def test_tls_producer_and_consumer(tls, trusting):
    uri = f"tls://localhost:{tls.good}"
    done: list[bytes] = []
    with gstalk.Producer(uri, tls_context=trusting, multiply=2) as producer:
        producer.put_many("pools", [b"%d" % number for number in range(500)])
    consumer = gstalk.Consumer(uri, "pools", tls_context=trusting, auto_delete=True)

    def handler(job: gstalk.Job) -> None:
        done.append(job.body)
        if len(done) == 500:
            consumer.stop()

    consumer.receive(handler)
    assert len(set(done)) == 500


def test_tls_example_runs(tls):
    path = Path(__file__).parents[2] / "examples" / "tls.py"
    spec = importlib.util.spec_from_file_location("tls_example", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(f"tls://localhost:{tls.client}", str(tls.directory / "ca.pem"), str(tls.directory / "client.pem"))


def test_unix_socket_and_reserve_beside_puts():
    with Beanstalkd(unix=True) as server, gstalk.dial(server.uri) as conn:
        assert conn.uri == server.uri
        reserving = gevent.spawn(conn.reserve)
        gevent.sleep(0.05)
        assert conn.put("default", b"x") == 1
        reserving.get().delete()


@pytest.mark.parametrize(("listen", "uri"), [("127.0.0.1", "localhost:{}"), ("::1", "[::1]:{}")])
def test_names_and_ipv6(listen, uri):
    port = free_port()
    program = Beanstalkd.find()
    assert program is not None
    process = subprocess.Popen([program, "-l", listen, "-p", str(port)])
    try:
        with gevent.Timeout(5):
            while True:
                try:
                    conn = gstalk.dial(uri.format(port))
                    break
                except gstalk.ConnectError:
                    gevent.sleep(0.02)
        assert conn.put("default", b"x") == 1
        conn.close()
    finally:
        process.kill()
        process.wait()
