"""JSON over HTTP to an OpenAI-compatible server, with patience.

In: a path below the server's URL, and what to post there. Out: the JSON that comes back. A server that is busy (429),
fails (5xx) or drops the connection is asked again after a growing, jittered pause, or the one that it names; what
waiting cannot mend is a SpinError with the server's own words. The API key is read from OPENAI_API_KEY alone, goes to
that URL alone, and is written nowhere. Left out: what is asked and what the answer means (server.py).
"""

from __future__ import annotations

import http.client
import json
import os
import random
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from threading import Event
from typing import Any

from spin_llm.errors import SpinError

LONGEST_PAUSE = 600.0  # seconds, whatever the server asks for
PASSING = (408, 409, 425, 429)  # HTTP statuses that may be another a moment later, beside 5xx
UNSTABLE = ("created", "permission")  # what /models says anew each time


@dataclass(frozen=True)
class Server:
    """How a server is talked to."""

    url: str
    timeout: float
    attempts: int
    pause: float
    opener: urllib.request.OpenerDirector = field(default_factory=lambda: urllib.request.build_opener(_NoRedirect))

    def card(self, model: str) -> dict[str, Any]:
        """What /models says of `model`, less what changes from answer to answer; empty when the server has no
        /models."""
        try:
            listed = self.ask("/models", first=True)
        except _AbsentError:
            return {}
        cards = {card["id"]: card for card in listed["data"]} if isinstance(listed, dict) and "data" in listed else {}
        if model not in cards:
            raise SpinError(
                f"{self.url} has no model {model!r}; it has {', '.join(map(repr, cards)) or 'none'}.",
                change="give one of these as MODEL in MODEL@URL.",
            )
        return {key: value for key, value in cards[model].items() if key not in UNSTABLE}

    def ask(
        self, path: str, body: Mapping[str, Any] | None = None, leaving: Event | None = None, first: bool = False
    ) -> Any:
        """The JSON that the server answers to a POST of `body`, or a GET without one.

        Between attempts it pauses, until `leaving` is set; the `first` contact is not tried again when nobody answers.
        """
        for attempt in range(self.attempts):
            try:
                return self._once(path, body)
            except _PassingError as trouble:
                what, asked_pause, reached = trouble.args
                last = attempt + 1 == self.attempts or (first and not reached)
                pause = self.pause * 2**attempt * random.uniform(0.5, 1) if asked_pause is None else asked_pause
                if last or (leaving or Event()).wait(min(pause, LONGEST_PAUSE)):
                    break
        tries = f", {attempt + 1} times" if attempt else ""
        raise SpinError(
            f"{self.url}{path} {what}{tries}.",
            cause="the server is overloaded or failing." if reached else "no server there, or it has stopped.",
            change="check the server and the URL (such as http://localhost:8000/v1), and run the same command again: "
            "answers that are there stay.",
        )

    def _once(self, path: str, body: Mapping[str, Any] | None) -> Any:
        key = os.environ.get("OPENAI_API_KEY")
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, headers)
        try:
            with self.opener.open(request, timeout=self.timeout) as response:
                text = response.read().decode("utf-8", "replace")
        except urllib.error.HTTPError as error:
            raise self._refusal(path, error, key) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise _PassingError(f"could not be reached ({str(reason) or type(error).__name__})", None, False) from None
        try:
            return json.loads(text)
        except ValueError:
            raise SpinError(
                f"{self.url}{path} did not answer with JSON: {short(text)}",
                cause="a URL of something else.",
                change="give the URL up to and with /v1.",
            ) from None

    def _refusal(self, path: str, error: urllib.error.HTTPError, key: str | None) -> Exception:
        """What to raise for an HTTP status that is no success."""
        said = ""
        with suppress(OSError, http.client.HTTPException):
            said = _message(error.read().decode("utf-8", "replace"))
        if key:
            said = said.replace(key, "[OPENAI_API_KEY]")
        if error.code in PASSING or error.code >= 500:
            return _PassingError(f"answered {error.code}: {said}", retry_after(error.headers.get("Retry-After")), True)
        if path == "/models" and error.code in (404, 405):
            return _AbsentError()
        advice = {
            401: "set OPENAI_API_KEY to a key of this server.",
            403: "set OPENAI_API_KEY to a key of this server.",
            404: "check the URL (such as http://localhost:8000/v1) and the model's name.",
        }
        return SpinError(f"{self.url}{path} refused with {error.code}: {said}", change=advice.get(error.code, ""))


class _PassingError(Exception):
    """A trouble that waiting may mend: what happened, the pause in seconds that the server asked for or None, and
    whether it was reached."""


class _AbsentError(Exception):
    """The server has no /models."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another place; it becomes a refusal."""

    def redirect_request(self, *arguments: Any, **options: Any) -> None:
        return None


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header: a number, or a date."""
    if value is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError):
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(timezone.utc)).total_seconds())
    return None


def _message(text: str) -> str:
    """The words of an error's body: OpenAI's {"error": {"message"}}, FastAPI's {"detail"}, or the text itself."""
    with suppress(ValueError):
        body = json.loads(text)
        if isinstance(body, dict):
            error = body.get("error") or body.get("detail") or body.get("message") or body
            text = str(error.get("message", error) if isinstance(error, dict) else error)
    return short(text) or "nothing"


def short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:297] + "..."
