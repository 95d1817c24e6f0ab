"""A claim check: a body that is too large is kept in a store, and the job holds its key.

It is stored before the job is put, so the key is always valid. It is deleted by its age, since a job may run twice.

Run: python examples/claim_check.py [URI]
"""

import hashlib
import sys
import tempfile
from pathlib import Path

import gstalk

LIMIT = 60_000  # beanstalkd refuses more than its -z, 65,535 bytes if nobody says otherwise


class Store:  # a directory; in real life a bucket, whose rules remove what is old
    def __init__(self, place: Path) -> None:
        self._place = place

    def save(self, body: bytes) -> bytes:
        key = hashlib.sha256(body).hexdigest()
        with tempfile.NamedTemporaryFile(dir=self._place, delete=False) as file:
            file.write(body)
        Path(file.name).rename(self._place / key)  # it is there wholly, or not at all
        return key.encode()

    def load(self, key: bytes) -> bytes:
        return (self._place / key.decode()).read_bytes()


def put(producer: gstalk.Producer, store: Store, tube: str, body: bytes) -> int:
    return producer.put(tube, b"=" + body if len(body) < LIMIT else b"@" + store.save(body))


def body_of(store: Store, job: gstalk.Job) -> bytes:
    return store.load(job.body[1:]) if job.body.startswith(b"@") else job.body[1:]


def main(uri: str = "localhost:11300") -> None:
    consumer = gstalk.Consumer(uri, "films", num_greenlets=1)
    with tempfile.TemporaryDirectory() as place, gstalk.Producer(uri) as producer:
        store = Store(Path(place))
        put(producer, store, "films", b"a short one")
        put(producer, store, "films", b"a very long one" * 10_000)

        def handler(job: gstalk.Job) -> None:
            print(len(body_of(store, job)), "bytes, of which the server had", len(job.body))
            job.delete()
            if job.body.startswith(b"@"):
                consumer.stop()

        consumer.receive(handler)


if __name__ == "__main__":
    main(*sys.argv[1:])
