"""Django's settings: what this example needs, and where its jobs go."""

from __future__ import annotations

import os
from pathlib import Path

BEANSTALKD_URI = os.environ.get("BEANSTALKD_URI", "localhost:11300")

SECRET_KEY = os.environ.get("SECRET_KEY", "for this example alone")
DEBUG = "DEBUG" in os.environ
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
INSTALLED_APPS = ["letters"]
ROOT_URLCONF = "letters.urls"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("DATABASE", Path(__file__).with_name("letters.sqlite3")),
        "OPTIONS": {"timeout": 20},
        # Seconds that a connection is kept; one for each greenlet, in a worker. 0: it is closed after each job.
        "CONN_MAX_AGE": int(os.environ.get("CONN_MAX_AGE", "0")),
    }
}
