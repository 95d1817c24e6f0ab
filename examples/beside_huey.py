"""huey and gstalk in one process, patched: huey's workers and gstalk's handlers are greenlets of the same hub.

So a program can move from one to the other task by task. huey installs signal handlers when it starts; here gstalk's
replace them, and a signal lets both finish.

Run: python examples/beside_huey.py [URI]
"""

from gevent import monkey

monkey.patch_all()

import signal  # noqa: E402
import sys  # noqa: E402
from typing import Any  # noqa: E402

from huey import MemoryHuey  # noqa: E402

import gstalk  # noqa: E402

huey = MemoryHuey()  # a RedisHuey or SqliteHuey in real life


@huey.task()  # type: ignore[untyped-decorator]
def shrink(name: str) -> str:
    return name.replace(".jpg", ".small.jpg")


def main(uri: str = "localhost:11300") -> None:
    consumer = gstalk.Consumer(uri, "pictures")
    workers: Any = huey.create_consumer(workers=4, worker_type="greenlet", periodic=False, backoff=1)
    workers.start()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: consumer.stop())
    done: list[str] = []

    def handler(job: gstalk.Job) -> None:
        result = shrink(job.body.decode())  # to huey, whose workers may be elsewhere
        done.append(result.get(blocking=True, timeout=10))
        job.delete()
        if len(done) == 20:
            consumer.stop()

    with gstalk.Producer(uri) as producer:
        producer.put_many("pictures", (b"%d.jpg" % number for number in range(20)))
    consumer.receive(handler)
    workers.stop(graceful=True)
    print(len(done), "pictures, the last of them", max(done, key=lambda name: int(name.split(".")[0])))


if __name__ == "__main__":
    main(*sys.argv[1:])
