"""`manage.py work`: a Consumer for the handlers of letters.jobs, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import signal
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from gevent import monkey

import gstalk

from ...jobs import HANDLERS, producer


class Command(BaseCommand):  # type: ignore[misc]
    help = "Works jobs off."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--greenlets", type=int, default=10, help="handlers running at once")

    def handle(self, *args: Any, greenlets: int, **options: Any) -> None:
        if not monkey.is_module_patched("threading"):
            # Django keeps a database connection for each thread: greenlets would share one, and their transactions.
            raise CommandError("the program must be patched before Django is imported, as manage.py does")
        consumer = gstalk.Consumer(settings.BEANSTALKD_URI, HANDLERS, num_greenlets=greenlets)
        signal.signal(signal.SIGTERM, lambda *_: consumer.stop())
        try:
            consumer.receive(HANDLERS)
        except KeyboardInterrupt:
            self.stderr.write("interrupted; handlers have finished")
        finally:
            producer.stop()
