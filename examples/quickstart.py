"""The documentation page of prep/beanstalk, in Python, line by line.

Run: python examples/quickstart.py [URI]
"""

from __future__ import annotations

import sys

import gstalk


def main(uri: str = "localhost:11300") -> None:
    # The Producer puts jobs into tubes; multiply makes its pool of connections larger.
    producer = gstalk.Producer([uri], multiply=3)

    # Put parameters can be reused between calls.
    params = gstalk.PutParams(priority=1024, delay=0, ttr=30)

    # Put uses any connection of the pool, and another one if that fails.
    job_id = producer.put("mytube", b"Hello World", params)
    print("put job", job_id)
    producer.stop()

    # The Consumer reserves jobs; num_greenlets is how many are worked at concurrently. 1:10 is a good ratio.
    consumer = gstalk.Consumer([uri], ["mytube"], multiply=3, num_greenlets=30)

    def handler(job: gstalk.Job) -> None:
        print("job", job.id, "says", job.body)
        # When processing was successful: delete it. Else: release it, with a priority and a delay if you like,
        # or bury it for a person to look at. Raising does what Config.retry says.
        job.delete()
        consumer.stop()

    # Returns after stop(), when the jobs in hand have been processed.
    consumer.receive(handler)


if __name__ == "__main__":
    main(*sys.argv[1:])
