"""The one request: POST a letter, and it is written down and its job put, or neither."""

from __future__ import annotations

from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from . import jobs
from .models import Letter


@csrf_exempt  # type: ignore[untyped-decorator]
def post(request: HttpRequest) -> JsonResponse:
    with transaction.atomic():
        letter = Letter.objects.create(to=request.POST["to"])
        if not letter.to:
            transaction.set_rollback(True)
            return JsonResponse({"error": "to nobody"}, status=400)
        # Not before the commit: a worker is fast enough to look for a letter that isn't there yet. If the put fails,
        # the letter is there without a job: where that must not be, write the job down, too (examples/outbox.py).
        transaction.on_commit(lambda: jobs.put_letter(letter.pk))
    return JsonResponse({"id": letter.pk}, status=201)


urlpatterns = [path("letters/", post)]
