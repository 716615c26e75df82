"""JSON over HTTP to an OpenAI-compatible server, with patience.

In: a path below the server's URL, and what to post there. Out: the JSON that comes back. A server that is busy (429),
fails (5xx) or drops the connection is asked again after a growing, jittered pause, or the one that it names; what
waiting cannot mend is a SpinError with the server's own words. A proxy of the environment is gone through but for this
machine. The API key is read from OPENAI_API_KEY alone, goes to
that URL alone, and is written nowhere. Left out: what is asked and what the answer means (server.py).
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from ipaddress import ip_address
from threading import Event
from typing import Any
from urllib.parse import urlsplit

import msgspec

from spin_llm.errors import SpinError
from spin_llm.files import decoded

LONGEST_PAUSE = 600.0  # seconds, whatever the server asks for
PASSING = (408, 409, 425, 429)  # HTTP statuses that may be another a moment later, beside 5xx
MOST_BYTES = 1 << 26  # of an answer
KEY = "set OPENAI_API_KEY to a key of this server."
CAUSES = {
    401: ("no key, or one that this server does not know.", KEY),
    403: ("a key that may not use this model, or a server that turns this machine away.", KEY),
    404: (
        "another URL, or a model that is not served there.",
        "check the URL (such as http://localhost:8000/v1) and the model's name.",
    ),
    407: ("a proxy of the environment that wants a password.", "put it into http_proxy, or the host into no_proxy."),
}
UNSTABLE = ("created", "permission")  # what /models says anew each time


@dataclass(frozen=True)
class Listed:
    """The answer of /models."""

    data: list[dict[str, object]] = field(default_factory=list)


class RefusedError(SpinError):
    """A request that the server will not take, with an HTTP `status`; `said` is all that it says of the request."""

    status = 0
    said = ""


@dataclass(frozen=True)
class Server:
    """How a server is talked to."""

    url: str
    timeout: float
    attempts: int
    pause: float

    @cached_property
    def proxy(self) -> str | None:
        """The proxy of the environment that requests go through, without its password; none for this machine."""
        parts = urlsplit(self.url)
        host = parts.hostname or ""
        if is_loopback(host) or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
            return None
        found = urllib.request.getproxies().get(parts.scheme)
        return found and f"{found.rpartition('@')[2]} ({parts.scheme}_proxy)"

    @cached_property
    def opener(self) -> urllib.request.OpenerDirector:
        direct = () if self.proxy else (urllib.request.ProxyHandler({}),)
        return urllib.request.build_opener(_NoRedirect, *direct)

    def card(self, model: str) -> dict[str, object]:
        """What /models says of `model`, less what changes from answer to answer; empty where there is no /models."""
        try:
            answer = self.ask("/models", first=True)
        except RefusedError as refusal:
            if refusal.status in (404, 405):
                return {}
            raise
        where = f"The list of models at {self.url}/models"
        cards = {card["id"]: card for card in decoded(answer, Listed, where).data if isinstance(card.get("id"), str)}
        if model not in cards:
            raise SpinError(
                f"{self.url} has no model {model!r}; it has {', '.join(map(repr, cards)) or 'none'}.",
                change="give one of these as MODEL in MODEL@URL.",
            )
        return {key: value for key, value in cards[model].items() if key not in UNSTABLE}

    def ask(
        self, path: str, body: Mapping[str, object] | None = None, leaving: Event | None = None, first: bool = False
    ) -> bytes:
        """The JSON text that the server answers to a POST of `body`, or a GET without one.

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
            cause=self._trouble(what, reached),
            change=("check the proxy, or list the server's host in no_proxy; " if self.proxy else "")
            + "check the server and the URL (such as http://localhost:8000/v1), and run the same command again: "
            "answers that are there stay.",
        )

    def _trouble(self, what: str, reached: bool) -> str:
        """The likely cause of a trouble that did not pass."""
        if self.proxy and (not reached or re.search(r"answered 50[234]", what)):
            return f"the proxy {self.proxy} of the environment, or no server behind it."
        if "answered 429" in what:
            return "a limit on requests or tokens of the server's, which waiting did not lift."
        return "the server is overloaded or failing." if reached else "no server there, or it has stopped."

    def _once(self, path: str, body: Mapping[str, object] | None) -> bytes:
        key = os.environ.get("OPENAI_API_KEY")
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        asked = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", asked, headers)
        try:
            with self.opener.open(request, timeout=self.timeout) as response:
                data: bytes = response.read(MOST_BYTES + 1)
        except urllib.error.HTTPError as error:
            raise self._refusal(path, error, key) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise _PassingError(f"could not be reached ({str(reason) or type(error).__name__})", None, False) from None
        try:
            if len(data) > MOST_BYTES:
                raise ValueError
            msgspec.json.decode(data)
        except (ValueError, RecursionError):
            raise SpinError(
                f"{self.url}{path} did not answer with JSON: {short(data[:2000].decode('utf-8', 'replace'))}",
                cause="a URL of something else" + (f", or the proxy {self.proxy}." if self.proxy else "."),
                change="give the URL up to and with /v1.",
            ) from None
        return data

    def _refusal(self, path: str, error: urllib.error.HTTPError, key: str | None) -> Exception:
        """What to raise for an HTTP status that is no success."""
        said = ""
        with suppress(OSError, http.client.HTTPException):
            said = error_text(error.read(MOST_BYTES).decode("utf-8", "replace"))
        if key:
            said = said.replace(key, "[OPENAI_API_KEY]")
        words = short(said) or "nothing"
        if error.code in PASSING or error.code >= 500:
            return _PassingError(f"answered {error.code}: {words}", retry_after(error.headers.get("Retry-After")), True)
        cause, change = CAUSES.get(error.code, ("", ""))
        if error.code == 407:
            cause = f"the proxy {self.proxy}." if self.proxy else cause
        if 300 <= error.code < 400:
            cause = f"the server is elsewhere: {error.headers.get('Location') or 'it does not say where'}."
            change = "give the URL that it redirects to; a redirect is not followed, since it would take the key along."
        refusal = RefusedError(f"{self.url}{path} refused with {error.code}: {words}", cause=cause, change=change)
        refusal.status, refusal.said = error.code, said if error.code in (400, 422) else ""
        return refusal


class _PassingError(Exception):
    """A trouble that waiting may mend: what happened, the pause in seconds asked for or None, if it was reached."""


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
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    return None


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, which no proxy stands before."""
    with suppress(ValueError):
        address = ip_address(host)
        return address.is_loopback or address.is_unspecified
    return host == "localhost" or host.endswith(".localhost")


def error_text(text: str) -> str:
    """The words of an error's body, also of a page of HTML."""
    try:
        return error_words(msgspec.json.decode(text))
    except (ValueError, RecursionError):
        return re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL | re.IGNORECASE)


def error_words(body: Any) -> str:
    """OpenAI's {"error": {"message"}}, FastAPI's {"detail"}, or whatever it is as JSON; with the parameter's name."""
    found = body
    if isinstance(body, dict):
        found = next((body[key] for key in ("error", "detail", "message", "errors") if body.get(key)), body)
    if isinstance(found, dict) and isinstance(message := found.get("message"), str) and message:
        named = found.get("param")
        return f"{message} ({named})" if isinstance(named, str) and named not in message else message
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:297] + "..."
