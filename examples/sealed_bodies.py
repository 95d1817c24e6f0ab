"""Bodies that are compressed, and encrypted so that neither the server nor its other clients can read them.

The first key encrypts, all of them decrypt, so a new one is put in front.

Run: python examples/sealed_bodies.py [URI]
"""

import sys
import zlib

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

import gstalk

LARGEST = 1_000_000  # bytes that an opened body may have: a small one can hold a thousand times its size


def seal(keys: MultiFernet, body: bytes) -> bytes:
    return keys.encrypt(zlib.compress(body))  # in this order: what is encrypted can't be compressed any more


def unseal(keys: MultiFernet, sealed: bytes) -> bytes:
    expander = zlib.decompressobj()
    try:
        body = expander.decompress(keys.decrypt(sealed), LARGEST)
    except (InvalidToken, zlib.error) as error:
        print("refused:", type(error).__name__)
        raise gstalk.Bury from error
    if not expander.eof:
        raise gstalk.Bury
    return body


def main(uri: str = "localhost:11300") -> None:
    old, new = Fernet(Fernet.generate_key()), Fernet(Fernet.generate_key())
    keys = MultiFernet([new, old])
    text = b"dear ann, " * 5000
    with gstalk.Producer(uri) as producer:
        producer.put("letters", b"somebody else's")
        producer.put_many(
            "letters", [seal(MultiFernet([old]), text), seal(keys, text)]
        )  # before the new key, and after
    opened: list[bytes] = []
    consumer = gstalk.Consumer(uri, "letters", num_greenlets=1)

    def handler(job: gstalk.Job) -> None:
        body = unseal(keys, job.body)
        print(f"{len(job.body)} bytes at the server are {len(body)} here")
        opened.append(body)
        job.delete()
        if len(opened) == 2:
            consumer.stop()

    consumer.receive(handler)
    print("both as they were:", opened == [text, text])


if __name__ == "__main__":
    main(*sys.argv[1:])
