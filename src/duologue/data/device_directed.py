"""Device-directed speech: lines of background talk that may be addressed to an assistant after all.

Talk between people contains lines that an assistant should answer ("hey google, what's on tonight"). Labelled as
background, they teach the wrong thing. A match with a rule makes a line doubtful, so it is left out and never
relabelled. A model behind an OpenAI-compatible URL can find the cases that rules cannot, as the authors of the paper
did. Its answers are cached in a file: a killed run continues where it stopped, and a second run asks nothing.
"""

import json
import re
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from duologue.data import forms
from duologue.data.chat_client import ChatClient, Refused
from duologue.data.jsonl import complete_lines
from duologue.errors import BadData, RemoteError

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
    "name of an assistant (Mandarin)": re.compile(
        r"小爱同学|天猫精灵|小度小度|小艺小艺|语音助手|智能助手|siri|chatgpt|文心一言"
    ),
    "command to a device (Mandarin)": re.compile(
        r"^(?:请|帮我|麻烦|给我|现在|把)*(?:打开|关掉|关上|关闭|调高|调低|调大|调小|开一?下|关一?下)?"
        r"(?:客厅|卧室|厨房|书房)?的?(?:灯|电视|空调|音乐|音量|音响|闹钟|加湿器|扫地机器人)"
        r"(?:打开|关掉|关了|关上|调高|调低|调大|调小|开大|关小)"
        r"|^(?:请|帮我|麻烦|给我)*(?:(?:打开|关闭|调高|调低)(?:客厅|卧室|厨房|书房)?的?(?:灯|电视|空调|音乐|音量)"
        r"|(?:定|设)一?个.{0,8}(?:闹钟|计时器|提醒)|提醒我.|播放.{0,12}(?:歌|音乐))"
    ),
    "task for a language model (Mandarin)": re.compile(
        r"^(?:请|帮我|麻烦|给我|你)*(?:写(?:一[首篇段封个]|首|篇|个).{0,20}(?:诗|作文|文章|故事|邮件|代码|程序)"
        r"|翻译(?:一下|成)|(?:讲|说)(?:一?个)(?:笑话|故事)|总结(?:一下)?这)"
    ),
}
"""Name of a rule → its pattern, for lines in normal form."""

PROMPT = (
    "You read one line that a microphone picked up in a room where people talk and where a voice assistant listens. "
    "Decide whom the speaker addresses. Answer ASSISTANT if the line, taken alone, is a question, a request or a "
    "command that a voice assistant would be expected to answer. Answer PEOPLE if it is part of a conversation, a "
    "lecture, a story or a broadcast, or if it is meant for somebody in the room. Answer with that one word only."
)


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
            url, api_key_env, timeout_s, sleep: see `ChatClient`.
            cache: JSONL file of answers, created if missing; answers of other models in it are ignored.

        Raises:
            UsageError: see `ChatClient`.
            BadData: the cache contains something else.
        """
        self._client = ChatClient(
            url, model, purpose="judge", api_key_env=api_key_env, timeout_s=timeout_s, sleep=sleep
        )
        self._cache, self._known = cache, _read_cache(cache, model)

    def addressee(self, text: str) -> Addressee:
        """Whom `text` addresses, from the cache or from the model.

        Raises:
            RemoteError: the server cannot be reached, refuses the request, or does not speak the protocol.
        """
        if text in self._known:
            return self._known[text]
        try:
            found = _read_answer(self._client.ask(PROMPT, text))
        except Refused:
            raise
        except RemoteError as error:
            raise RemoteError(f"{error}. Answers so far are kept in {self._cache}") from None
        self._cache.parent.mkdir(parents=True, exist_ok=True)
        with self._cache.open("a", encoding="utf-8") as file:
            row = {"text": text, "verdict": found, "model": self._client.model}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._known[text] = found
        return found


def _read_answer(answer: str) -> Addressee:
    """The addressee that an answer names."""
    named = set(re.findall(r"\b(assistant|people)\b", answer.lower()))
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
