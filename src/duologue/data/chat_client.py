"""Asks a model behind an OpenAI-compatible server, one question at a time."""

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException

from duologue.errors import RemoteError, refuse

NUM_TRIES = 4
FIRST_WAIT_S = 1.0
"""Wait before the second try; doubled before each further one."""

_TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""HTTP status codes after which another try may succeed."""

_MAX_BODY = 1 << 22  # bytes of a response that are read


class Refused(RemoteError):
    """The server does not take such requests, or is not what the URL should lead to; another try does not help."""


class ChatClient:
    """One model of one server."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        purpose: str,
        api_key_env: str | None = None,
        timeout_s: float = 60.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Nothing is sent yet.

        Args:
            url: base URL without `/chat/completions`, such as "http://localhost:8000/v1".
            purpose: what the model is, for messages: "judge".
            api_key_env: name of the environment variable with the API key, if one is needed.
            sleep: waits before another try.

        Raises:
            UsageError: the URL is not an HTTP address, or the variable is not set.
        """
        key = None if api_key_env is None else os.environ.get(api_key_env)
        refuse(
            [
                (
                    not re.match(r"https?://[^/]", url),
                    f"a {purpose}'s URL starts with http:// or https://, got {url!r}; "
                    "example: http://localhost:8000/v1",
                ),
                (
                    api_key_env is not None and not key,
                    f"the environment variable {api_key_env} for the {purpose}'s key is not set",
                ),
            ]
        )
        self.model = model
        self._url = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._purpose, self._timeout_s, self._sleep = purpose, timeout_s, sleep

    def ask(self, system: str, user: str) -> str:
        """The model's answer to `user`, without its reasoning (`<think>`).

        Raises:
            Refused: the server refuses the request, or does not speak the protocol.
            RemoteError: the server did not answer in `NUM_TRIES` tries.
        """
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        body = json.dumps({"model": self.model, "messages": messages, "temperature": 0}).encode()
        for attempt in range(NUM_TRIES):
            if attempt:
                self._sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
            try:
                request = urllib.request.Request(self._url, body, self._headers)
                with urllib.request.urlopen(request, timeout=self._timeout_s) as response:
                    return _content(self._url, response.read(_MAX_BODY)).rpartition("</think>")[2]
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code} {error.reason}: {error.read(500).decode('utf-8', 'replace').strip()}"
                if error.code not in _TRANSIENT:
                    raise Refused(
                        f"the {self._purpose} at {self._url} refuses model {self.model!r}: {reason}"
                    ) from None
            except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
                reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise RemoteError(
            f"the {self._purpose} at {self._url} did not answer in {NUM_TRIES} tries ({reason}); "
            "check that the server runs"
        )


def _content(url: str, body: bytes) -> str:
    """The text of a chat completion."""
    try:
        return str(json.loads(body)["choices"][0]["message"]["content"] or "")
    except (ValueError, LookupError, TypeError):
        raise Refused(
            f"{url} did not answer with a chat completion: {body[:200]!r}; is this the URL of the API?"
        ) from None
