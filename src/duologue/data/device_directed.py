"""Rules for device-directed speech: lines of background talk that may be addressed to an assistant after all.

Talk between people contains lines that an assistant should answer ("hey google, what's on tonight"). Labelled as
background, they teach the wrong thing. A match makes a line doubtful, so it is left out and never relabelled. A
language model can find the cases that rules cannot (see `judge`).
"""

import re

from duologue.data import forms

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


def device_directed(text: str) -> str | None:
    """The name of the first rule that matches `text`, or None."""
    spoken = forms.spoken(text)
    return next((name for name, pattern in RULES.items() if pattern.search(spoken)), None)
