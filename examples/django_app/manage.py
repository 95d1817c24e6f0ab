"""Django's commands. For the worker, the process is patched before anything else is imported.

Run, in this folder: python manage.py migrate --run-syncdb; python manage.py runserver; python manage.py work
"""

from __future__ import annotations

import os
import sys

if sys.argv[1:2] == ["work"]:
    from gevent import monkey

    monkey.patch_all()

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
    execute_from_command_line(sys.argv)
