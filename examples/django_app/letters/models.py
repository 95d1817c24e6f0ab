"""What the requests write, and what the jobs are about."""

from __future__ import annotations

from django.db import models


class Letter(models.Model):  # type: ignore[misc]
    """A letter to somebody."""

    to = models.CharField(max_length=100)
    sent_at = models.DateTimeField(null=True)
