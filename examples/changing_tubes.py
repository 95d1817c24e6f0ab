"""A Consumer whose tubes change while it works: a tube for each customer, watched while the customer exists.

Run: python examples/changing_tubes.py [URI]
"""

from __future__ import annotations

import sys

import gstalk


def main(uri: str = "localhost:11300") -> None:
    consumer = gstalk.Consumer(uri, "customers", auto_delete=True)

    def customers(job: gstalk.Job) -> None:
        what, tube = job.body.decode().split()
        if what == "open":
            consumer.watch(tube, orders)  # when it has returned, all connections watch the tube
        else:
            consumer.ignore(tube)  # when it has returned, no more jobs of the tube are reserved
        print(f"{what} {tube}, now watching {consumer.tubes}")

    def orders(job: gstalk.Job) -> None:
        print(f"{job.body.decode()} for {job.tube}")
        if job.body == b"no more":
            producer.put("customers", f"close {job.tube}".encode())
            producer.put("customers", b"open customer-b")
        elif job.tube == "customer-b":
            consumer.stop()

    with gstalk.Producer(uri) as producer:
        producer.put("customers", b"open customer-a")
        producer.put("customer-a", b"apples", priority=1)
        producer.put("customer-a", b"no more", priority=2)
        producer.put("customer-b", b"bread")
        consumer.receive({"customers": customers})


if __name__ == "__main__":
    main(*sys.argv[1:])
