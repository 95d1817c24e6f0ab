"""The jobs: how they are put, and what works them off."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

from django.conf import settings
from django.db import close_old_connections
from django.utils import timezone

import gstalk

from .models import Letter

# Connects in the background, in each process and thread at its first put.
producer = gstalk.Producer(settings.BEANSTALKD_URI, put_timeout=5)


def put_letter(letter_id: int) -> int:
    return producer.put("letters", b"%d" % letter_id)


def fresh(handler: Callable[[gstalk.Job], None]) -> Callable[[gstalk.Job], None]:
    """Do around a job what Django does around a request: close connections that are too old, or broken.

    Without it a greenlet whose connection to the database broke would fail at every job from then on.
    """

    @wraps(handler)
    def handle(job: gstalk.Job) -> None:
        close_old_connections()
        try:
            handler(job)
        finally:
            close_old_connections()

    return handle


@fresh
def send(job: gstalk.Job) -> None:
    letter = Letter.objects.filter(pk=int(job.body), sent_at=None).first()
    if letter is not None:  # else it was sent already, by a run whose delete was lost, or is not wanted any more
        print("sending a letter to", letter.to, flush=True)
        Letter.objects.filter(pk=letter.pk).update(sent_at=timezone.now())
    job.delete()


HANDLERS = {"letters": send}
