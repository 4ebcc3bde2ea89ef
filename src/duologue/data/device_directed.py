"""Device-directed speech: lines of background talk that may be addressed to an assistant after all.

Talk between people contains lines that an assistant should answer ("hey google, what's on tonight"). Labelled as
background, they teach the wrong thing. A match with a rule makes a line doubtful, so it is left out and never
relabelled. A model behind an OpenAI-compatible URL can find the cases that rules cannot, as the authors of the paper
did. Its answers are cached in a file: a killed run continues where it stopped, and a second run asks nothing.
"""

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from enum import StrEnum
from http.client import HTTPException
from pathlib import Path

from duologue.data import forms
from duologue.data.jsonl import complete_lines
from duologue.errors import BadData, RemoteError, refuse

_NAMES = r"alexa|siri|cortana|bixby|google assistant|chat ?gpt|google home|voice assistant"
_CALLS = r"(?:hey|hi|hello|ok|okay|yo) (?:google|computer|assistant|robot|jarvis|copilot|gemini|meta|mycroft)"
_PLEASE = r"(?:(?:please|okay|ok|hey|now|just|and|so|well|(?:can|could|would|will) you|i (?:need|want) you to) )*"
_DEVICES = (
    r"lights?|lamps?|tv|television|radio|music|song|volume|sound|speakers?|alarm|timer|heating|heater|thermostat|fan|"
    r"air conditioning|air conditioner|ac|vacuum|dishwasher|oven|coffee (?:machine|maker)|wi-?fi|bluetooth|flashlight"
)
_WHERE = r"(?:the |my |all the |all |this |that |some )?(?:[\w']+ ){0,2}?"
_THINGS = r"alarm|timer|reminder|meeting|appointment|event|notification"
_SWITCH = rf"(?:turn|switch) (?:(?:on|off|up|down) {_WHERE}(?:{_DEVICES})|{_WHERE}(?:{_DEVICES}) (?:on|off|up|down))"

RULES: dict[str, re.Pattern[str]] = {
    "name of an assistant": re.compile(rf"\b(?:{_NAMES})\b"),
    "call to a machine": re.compile(rf"\b{_CALLS}\b"),
    "command to a device": re.compile(
        rf"^{_PLEASE}(?:{_SWITCH}|(?:dim|mute|unmute) (?:the |my )?(?:[\w']+ )?(?:{_DEVICES})"
        rf"|set (?:a|an|the|my|another) (?:[\w']+ ){{0,2}}?(?:alarm|timer|reminder|thermostat)"
        rf"|(?:cancel|snooze|stop) (?:the|my|all my) (?:[\w']+ )?(?:alarms?|timers?|reminders?)"
        rf"|wake me (?:up )?(?:at|in) \w+|remind me (?:to|about|that|at|in|on) \w+)\b"
    ),
    "order to a service": re.compile(
        rf"^{_PLEASE}(?:play (?:me )?(?:some|the|a|my) (?:[\w']+ ){{0,4}}?(?:music|songs?|playlist|album|radio|podcast)"
        rf"|add [\w' ]+ to my (?:[\w']+ )?(?:list|calendar|cart|playlist)"
        rf"|(?:put|schedule|create) (?:a|an|the) (?:{_THINGS}) (?:[\w']+ )*?(?:on|in|to) my calendar"
        rf"|(?:search|look) (?:on |in )?(?:the )?(?:web|internet|google|wikipedia) for"
        rf"|(?:google|look up) (?:the )?(?:weather|recipes?|directions|flights?|restaurants?)"
        rf"|send an? (?:text|email|message) to \w+|navigate to \w+|open (?:spotify|netflix|youtube|google maps))\b"
    ),
    "task for a language model": re.compile(
        rf"^{_PLEASE}(?:(?:write|compose|generate|create) (?:me )?(?:a|an|some) (?:[\w']+ ){{0,2}}?"
        r"(?:poems?|haikus?|essay|limerick|cover letter|python (?:script|function|program)|sql query|blog post)"
        r"|(?:translate|rewrite|paraphrase|summari[sz]e|proofread) (?:this|the following|the text|the article)"
        r"|tell me (?:a|another) (?:[\w']+ )?(?:joke|bedtime story|fun fact|riddle))\b"
    ),
    "talk to a machine as such": re.compile(
        r"\b(?:(?:you are|you're|are you) an? (?:ai|artificial intelligence|chat ?bot|bot|robot|language model"
        r"|computer$|virtual (?:assistant|agent))|as an ai (?:language model|assistant|chat ?bot))(?![\w-])"
    ),
}
"""Name of a rule → its pattern, for lines in normal form."""

PROMPT = (
    "You read one line that a microphone picked up in a room where people talk and where a voice assistant listens. "
    "Decide whom the speaker addresses. Answer ASSISTANT if the line, taken alone, is a question, a request or a "
    "command that a voice assistant would be expected to answer. Answer PEOPLE if it is part of a conversation, a "
    "lecture, a story or a broadcast, or if it is meant for somebody in the room. Answer with that one word only."
)
NUM_TRIES = 4
FIRST_WAIT_S = 1.0
"""Wait before the second try; doubled before each further one."""

_TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""HTTP status codes after which another try may succeed."""


def device_directed(text: str) -> str | None:
    """The name of the first rule that matches `text`, or None."""
    spoken = forms.spoken(text)
    return next((name for name, pattern in RULES.items() if pattern.search(spoken)), None)


class Addressee(StrEnum):
    """Whom a line addresses."""

    ASSISTANT = "assistant"
    PEOPLE = "people"
    UNCLEAR = "unclear"  # the judge named neither or both


class Judge:
    """Asks one model about one line at a time, because the answer determines what is drawn next."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        cache: Path,
        api_key_env: str | None = None,
        timeout_s: float = 60.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Read the cache; nothing is sent yet.

        Args:
            url: base URL without `/chat/completions`, such as "http://localhost:8000/v1".
            cache: JSONL file of answers, created if missing; answers of other models in it are ignored.
            api_key_env: name of the environment variable with the API key, if one is needed.
            sleep: waits before another try.

        Raises:
            UsageError: the URL is not an HTTP address, or the variable is not set.
            BadData: the cache contains something else.
        """
        key = None if api_key_env is None else os.environ.get(api_key_env)
        refuse(
            [
                (
                    not re.match(r"https?://[^/]", url),
                    f"a judge's URL starts with http:// or https://, got {url!r}; example: http://localhost:8000/v1",
                ),
                (
                    api_key_env is not None and not key,
                    f"the environment variable {api_key_env} for the judge's key is not set",
                ),
            ]
        )
        self._url = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._model, self._timeout_s, self._sleep = model, timeout_s, sleep
        self._cache, self._known = cache, _read_cache(cache, model)

    def addressee(self, text: str) -> Addressee:
        """Whom `text` addresses, from the cache or from the model.

        Raises:
            RemoteError: the server cannot be reached, refuses the request, or does not speak the protocol.
        """
        if text in self._known:
            return self._known[text]
        found = _read_answer(self._ask(text))
        self._cache.parent.mkdir(parents=True, exist_ok=True)
        with self._cache.open("a", encoding="utf-8") as file:
            row = {"text": text, "verdict": found, "model": self._model}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._known[text] = found
        return found

    def _ask(self, text: str) -> str:
        messages = [{"role": "system", "content": PROMPT}, {"role": "user", "content": text}]
        body = json.dumps({"model": self._model, "messages": messages, "temperature": 0}).encode()
        for attempt in range(NUM_TRIES):
            if attempt:
                self._sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
            try:
                request = urllib.request.Request(self._url, body, self._headers)
                with urllib.request.urlopen(request, timeout=self._timeout_s) as response:
                    return _content(self._url, response.read())
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code} {error.reason}: {error.read(500).decode('utf-8', 'replace').strip()}"
                if error.code not in _TRANSIENT:
                    raise RemoteError(f"the judge at {self._url} refuses model {self._model!r}: {reason}") from None
            except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
                reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise RemoteError(
            f"the judge at {self._url} did not answer in {NUM_TRIES} tries ({reason}); check that the server runs. "
            f"Answers so far are kept in {self._cache}"
        )


def _content(url: str, body: bytes) -> str:
    """The text of a chat completion."""
    try:
        return str(json.loads(body)["choices"][0]["message"]["content"] or "")
    except (ValueError, LookupError, TypeError):
        raise RemoteError(
            f"{url} did not answer with a chat completion: {body[:200]!r}; is this the URL of the API?"
        ) from None


def _read_answer(answer: str) -> Addressee:
    """The addressee that an answer names; reasoning before it in <think> tags is ignored."""
    named = set(re.findall(r"\b(assistant|people)\b", answer.rpartition("</think>")[2].lower()))
    return Addressee(named.pop()) if len(named) == 1 else Addressee.UNCLEAR


def _read_cache(path: Path, model: str) -> dict[str, Addressee]:
    """The cached answers of a model; an incomplete last line is removed."""
    found: dict[str, Addressee] = {}
    line = b""
    try:
        for line in complete_lines(path, b'{"text": '):
            row = json.loads(line)
            text, addressee, asked = str(row["text"]), Addressee(row["verdict"]), row["model"]
            if asked == model:
                found[text] = addressee
    except OSError as error:
        raise BadData(f"cannot use the cache of verdicts {path}: {error}") from error
    except (LookupError, TypeError, ValueError) as error:
        raise BadData(f"{path} has a line that is not a verdict ({error!r}): {line!r}; use another file") from None
    return found
