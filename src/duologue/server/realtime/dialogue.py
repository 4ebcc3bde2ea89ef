"""A session's events as a Realtime client knows them: items, responses, and what becomes of words said over an answer.

What is typed over an answer is judged, and a client's `response.create` behind it waits for the decision. Only then is
anything told: `speech_started` makes stock clients stop, so it must not come for words that are none of the
assistant's business.
"""

from collections.abc import Callable
from typing import Any, Protocol

from duologue.core import events as e
from duologue.core.answer import Answer
from duologue.core.session import Session
from duologue.errors import UsageError
from duologue.models.model import Model
from duologue.server.conversation import Conversation
from duologue.server.realtime.config import RealtimeConfig
from duologue.server.realtime.errors import ACTIVE, Rejection
from duologue.server.realtime.history import History
from duologue.server.realtime.items import Item, Items, merged, new_id, words
from duologue.server.realtime.listening import PREFIX, Listening, label
from duologue.server.realtime.request import Request
from duologue.server.realtime.response import Response, Say
from duologue.types import InputState

GRACE_S = 0.25
"""How long words that are to be answered wait for the `response.create` that a client sends behind them."""
_VERDICT_S = 2.0  # after so long, a `response.create` has nothing to do with words that were dropped
_MOST_CUT = 8  # answers that were cut and may go on; a session keeps fewer


class Timer(Protocol):
    """Something that will happen, unless it is cancelled."""

    def cancel(self) -> None: ...


class Dialogue:
    """One conversation. `take` gets the session's events in order; `Commands` has what the client wants.

    Args:
        rate: characters that are heard in a second, for clients that count in milliseconds.
        most_tokens: of an answer.
        now: the time in seconds.
        later: calls a function after so many seconds.
    """

    def __init__(
        self,
        talk: Conversation,
        model: Model,
        say: Say,
        *,
        system: str,
        rate: float,
        most_tokens: int,
        now: Callable[[], float],
        later: Callable[[float, Callable[[], None]], Timer],
        is_duplex: bool,
        has_voice: bool = False,
    ) -> None:
        self.id = new_id("sess")
        self.conversation = new_id("conv")
        self.handle = talk.handle
        self.model = model
        self.say = say
        self.rate = rate
        self.is_duplex = is_duplex
        self.config = RealtimeConfig(instructions=system, has_voice=has_voice)
        self.has_spoken = False  # by voice
        self.items = Items()
        self.history = History(talk.handle, model, system)
        self.listening = Listening()
        self.response: Response | None = None  # whose answer is running, until it was heard to the end or cut
        self.request: Request | None = None  # which waits for its answer to begin
        self._is_started = False  # whether an answer to `request` was begun on purpose
        self._most_tokens = most_tokens
        self._verdict: tuple[str, float] | None = None  # why nothing answers what was typed last, and since when
        self._now = now
        self._later = later
        self._held_back: list[e.Event] | None = None  # while a `response.create` may be on its way
        self._timer: Timer | None = None
        self._stopping: int | None = None  # an answer that the client stops
        self._muted: set[int] = set()  # answers that nobody is told of
        self._finished: dict[int, str] = {}
        self._heard: dict[int, int] = {}  # characters, of answers that were cut
        self._is_onset_told = False
        self._apply: dict[type[e.Event], Callable[[Any], None]] = {
            e.Refused: self._refused,
            e.Dropped: self._dropped,
            e.Promoted: self._promoted,
            e.Released: lambda event: self._begin(event.answer, 0),
            e.Resumed: self._resumed,
            e.Said: self._said,
            e.Heard: self._was_heard,
            e.Finished: self._was_finished,
            e.Committed: self._committed,
            e.TakenBack: self._taken_back,
            e.Withdrawn: self._withdrawn,
            e.Suspended: self._suspended,
            e.Trimmed: self._trimmed,
            e.Edited: self._edited,
        }

    # ------------------------------------------------------------------ what one can see

    @property
    def session(self) -> Session:
        """To be read. It is ahead of what was told while `take` waits for a `response.create`."""
        return self.history.session

    @property
    def running(self) -> Answer | None:
        """The answer that is running."""
        return self.session.running

    @property
    def unheard(self) -> list[e.Event]:
        """What a voice that begins now has missed of the running answer, as far as it was told."""
        response = self.response
        if response is None:
            return []
        heard = response.base + response.num_heard
        rest = e.Said(self._now(), response.number, heard, response.said[response.num_heard :])
        reason = "stop" if response.is_done else self._finished.get(response.number)
        return [rest] if reason is None else [rest, e.Finished(self._now(), response.number, reason)]

    @property
    def max_tokens(self) -> int:
        """Of an answer, as the session's configuration has it."""
        return min(self.config.max_output_tokens or self._most_tokens, self._most_tokens)

    # ------------------------------------------------------------------ what commands do

    def hear(self, item: Item) -> None:
        """`item` was typed where the model decides what becomes of it."""
        self._verdict = None
        self.listening.items.append(item)
        self.handle.hear(item.text, utterance=item.id, final=True)

    def start(self, request: Request) -> None:
        """Answer what has not been answered, whatever the model thinks of it.

        Raises:
            Rejection, UsageError: it cannot be answered; nothing else changed.
        """
        waiting, grown = self.items.unanswered, [item for item in self.listening.items if item.utterance is not None]
        self.history.check_turn(words([*waiting, *grown]))
        told = request.instructions if request.instructions is not None else self.config.instructions
        self.history.check(told)
        must_begin_anew = self.running is not None or self._is_out_of_order(waiting)
        if self.history.sync(told, self.items.answered, is_forced=must_begin_anew):
            self.listening.items = grown  # what was being heard was given up
            for item in grown:
                name = self.listening.rename(item)
                self.handle.hear(self.listening.text(name), utterance=name)
        self.request, self._is_started = request, True
        for item in waiting:
            item.utterance = None  # it is in the conversation, and grows no more
            if item.text.strip() and item not in self.listening.items:
                self.hear(item)
        self.handle.limit(min(request.max_output_tokens or self.max_tokens, self._most_tokens))
        self.handle.respond()
        self.handle.limit(self.max_tokens)

    def _is_out_of_order(self, waiting: list[Item]) -> bool:
        """Whether items that are being listened to come behind others that are not."""
        heard = [item in self.listening.items for item in waiting]
        return heard != sorted(heard, reverse=True)

    def adopt(self, request: Request) -> bool:
        """The answer that is about to begin is the one to `request`, if there is one. Returns whether there is."""
        if self._held_back is None:
            return False
        self.request = request
        self.go_on()
        return True

    def pop_verdict(self) -> str | None:
        """Why what was typed just now is not answered, if it is not. It is told once."""
        verdict, self._verdict = self._verdict, None
        return verdict[0] if verdict is not None and self._now() < verdict[1] + _VERDICT_S else None

    def give_up(self) -> None:
        """The client wants no response any more, nor that what is being listened to is answered."""
        self.stop()
        if self.request is not None:
            self.request, self._is_started = None, False
            self.handle.edit(merged(self.session.history))
            self.listening.items = []

    def stop(self) -> None:
        """The client ends the answer."""
        if (running := self.running) is not None:
            self._stopping = running.id
            self.handle.stop()

    def show(self, item: Item) -> None:
        """Tell that `item` is part of the conversation."""
        previous = self.items.previous(item)
        self.say("conversation.item.added", previous_item_id=previous, item=item.as_json())
        self.say("conversation.item.done", previous_item_id=previous, item=item.as_json())
        if (surplus := self.items.pop_surplus()) is not None:
            self.say("conversation.item.deleted", item_id=surplus.id)

    def show_committed(self, item: Item, failure: str | None = None) -> None:
        """Tell that `item`, which was said as words that grow, is part of the conversation. `failure`: why there are no
        words.
        """
        self.say("input_audio_buffer.committed", item_id=item.id, previous_item_id=self.items.previous(item))
        self.show(item)
        if failure is not None:
            self.tell_failed(item.id, failure)
        elif item.is_audio:
            kind = "conversation.item.input_audio_transcription.completed"
            usage = {"type": "duration", "seconds": 0}
            self.say(kind, item_id=item.id, content_index=0, transcript=item.text, usage=usage)

    def tell_failed(self, name: str, why: str) -> None:
        """Tell that nobody knows what was said as the item of that id."""
        error = {"type": "server_error", "code": "transcription_failed", "message": why, "param": None}
        kind = "conversation.item.input_audio_transcription.failed"
        self.say(kind, item_id=name, content_index=0, error=error)

    def delete(self, item: Item) -> None:
        """Take `item` out of the conversation."""
        if item in self.items:
            self.items.remove(item)
            self.say("conversation.item.deleted", item_id=item.id)

    # ------------------------------------------------------------------ what the session tells

    def take(self, event: e.Event) -> None:
        """It happened."""
        if isinstance(event, e.Decided):
            self._tell_decision(event)
        if self._held_back is not None:
            self._held_back.append(event)
        elif isinstance(event, e.Decided) and self._may_be_asked_for(event):
            self._held_back = []
            self._timer = self._later(GRACE_S, self.go_on)
        else:
            self._translate(event)

    def go_on(self) -> None:
        """No `response.create` is waited for any more."""
        if self._held_back is None:
            return
        held, self._held_back = self._held_back, None
        if self._timer is not None:
            self._timer.cancel()
        for event in held:
            self._translate(event)
        self.settle()

    def settle(self) -> None:
        """All that happened so far was told: an answer that is finished has no more words."""
        response = self.response
        is_spoken = response is not None and response.is_audio  # which ends when it was heard
        if self._held_back is None and response is not None and not response.is_done and not is_spoken:
            reason = self._finished.pop(response.number, None)
            if reason is not None:
                is_whole = reason != "length"
                response.end(
                    "completed" if is_whole else "incomplete",
                    None if is_whole else "max_output_tokens",
                    self._previous(response.item),
                )

    def close(self) -> None:
        """It is over."""
        if self._timer is not None:
            self._timer.cancel()

    def _translate(self, event: e.Event) -> None:
        if not isinstance(event, (e.Said, e.Finished)):
            self.settle()
        if (apply := self._apply.get(type(event))) is not None:
            apply(event)

    def _may_be_asked_for(self, event: e.Decided) -> bool:
        newest, detection = self.listening.newest, self.config.turn_detection
        return (
            event.decision.state is InputState.PROCESS
            and self.request is None
            and newest is not None
            and newest.utterance is None
            and detection is not None
            and detection.create_response
        )

    # ------------------------------------------------------------------ words

    def _promoted(self, event: e.Promoted) -> None:
        for item in self.listening.answer():
            behind = self.listening.turn[self.listening.turn.index(item) + 1 :]
            self.items.add(item, before=next((other for other in behind if other in self.items), None))
            self.show_committed(item)
        detection = self.config.turn_detection
        if self.request is not None and self.request.is_special and not self._is_started:
            self._muted.add(event.answer)  # it was begun without what is asked for: again
            self._retry(self.request)
        elif self.request is None and (detection is None or not detection.create_response):
            self._muted.add(event.answer)  # only who asks is answered
            if (running := self.running) is not None and running.id == event.answer:
                self.handle.stop()

    def _retry(self, request: Request) -> None:
        try:
            self.start(request)
        except UsageError as error:
            self.handle.stop()
            self._fail(error if isinstance(error, Rejection) else Rejection(str(error)))

    def _dropped(self, event: e.Dropped) -> None:
        if event.reason == "edit":
            return  # for a change of the history; they are still there
        gone = self.listening.drop(event.text)
        if event.reason == InputState.STOP and self._may_cut and gone:
            self._onset(event.at, gone[-1])
        typed = [item for item in gone if item.utterance is None]
        for item in typed:
            self.delete(item)
        why = _WHY.get(event.reason, f"the words were given up: {event.reason}")
        if self.request is not None and not self.listening.items:
            self._fail(Rejection(why, code=ACTIVE if event.reason in _WHY else "server_error"))
        elif typed and self.request is None:
            self._verdict = why, self._now()

    def _refused(self, event: e.Refused) -> None:
        if event.what == "respond" and self.request is not None:
            self._fail(Rejection(f"there is nothing to respond to: {event.reason}", code="response_not_possible"))

    def _fail(self, error: Rejection) -> None:
        """The response that was asked for will not be."""
        request, self.request, self._is_started = self.request, None, False
        self.say("error", error=error.as_json(None if request is None else request.event_id))

    @property
    def _may_cut(self) -> bool:
        detection = self.config.turn_detection
        return self.response is not None and (detection is None or detection.interrupt_response)

    def _onset(self, at: float, item: Item | None) -> None:
        """The user's words cut the answer."""
        is_expected = self.request is not None and self.request.is_tracked
        if self._is_onset_told or is_expected or item is None:
            return
        self._is_onset_told, at_ms = True, round(at * 1000)
        self.say("input_audio_buffer.speech_started", audio_start_ms=at_ms, item_id=item.id)
        self.say("input_audio_buffer.speech_stopped", audio_end_ms=at_ms, item_id=item.id)

    def _tell_decision(self, event: e.Decided) -> None:
        if not self.is_duplex:
            return
        decision, detection = event.decision, self.config.turn_detection
        is_protected = event.speaking and detection is not None and not detection.interrupt_response
        action = _ACTIONS[decision.state, is_protected]
        if decision.state is InputState.PROCESS and not event.speaking:
            action = "respond"
        is_grown = event.utterance.startswith(PREFIX)
        self.say(
            "overlap.decision",
            policy="duologue",
            state=str(decision.state),
            probabilities={str(state): round(p, 6) for state, p in decision.probabilities},
            action=action,
            speaking=event.speaking,
            text=event.text,
            latency_ms=round((event.at - event.heard_at) * 1000, 1),
            item_id=None if is_grown else event.utterance,
            utterance=label(event.utterance) if is_grown else None,
        )

    # ------------------------------------------------------------------ answers

    def _begin(self, number: int, base: int) -> None:
        if number in self._muted:
            return
        request, self.request, self._is_started = self.request or Request(), None, False
        running = self.running
        answer = running if running is not None and running.id == number else None
        is_audio = self.config.is_audio
        self.has_spoken = self.has_spoken or is_audio
        response = Response(
            number, base, request, answer, conversation=self.conversation, say=self.say, is_audio=is_audio
        )
        typed = self.listening.typed
        self.items.add(response.item, before=typed[0] if typed else None)
        self.response = response
        response.begin(self.items.previous(response.item))

    def _resumed(self, event: e.Resumed) -> None:
        self._begin(event.answer, self._heard.pop(event.suspended, 0) if event.exact else 0)

    def _said(self, event: e.Said) -> None:
        if (response := self._response(event.answer)) is not None:
            response.add(event.start, event.text)

    def _was_heard(self, event: e.Heard) -> None:
        if (response := self._response(event.answer)) is not None:
            response.hear(event.position)

    def _was_finished(self, event: e.Finished) -> None:
        self._finished[event.answer] = event.reason

    def _committed(self, event: e.Committed) -> None:
        if (response := self._response(event.answer)) is not None:
            response.item.text, self.response = event.text[response.base :], None
            if not response.is_done:
                is_whole = self._finished.pop(event.answer, "stop") != "length"
                status, reason = ("completed", None) if is_whole else ("incomplete", "max_output_tokens")
                response.end(status, reason, self._previous(response.item))
            self._stopping = None
        self.listening.close_turn()
        if self.request is not None and self.running is None and self.session.input_text:
            self.handle.respond()  # it waited for the end of the answer, and that has come

    def _suspended(self, event: e.Suspended) -> None:
        self._heard[event.answer] = len(event.heard)
        if len(self._heard) > _MOST_CUT:
            del self._heard[next(iter(self._heard))]
        if (response := self._response(event.answer)) is not None:
            response.hear(len(event.heard))
            self._cut(response, event.at)
        self.listening.close_turn()

    def _withdrawn(self, event: e.Withdrawn) -> None:
        is_ours = event.answer in self._muted or self._stopping == event.answer
        if (response := self._response(event.answer)) is not None:
            response.hear(0)
            self._cut(response, event.at)
        if not is_ours:
            for item in self.listening.turn:
                self.delete(item)
        self.listening.close_turn()

    def _taken_back(self, event: e.TakenBack) -> None:
        if (response := self._response(event.answer)) is not None:
            self._cut(response, event.at)
        for item in self.listening.take_back():
            self.delete(item)
            self.listening.renew(item)

    def _cut(self, response: Response, at: float) -> None:
        """The answer ended before it was heard to the end: what was not heard is not in the context."""
        if self._stopping == response.number:
            reason = "client_cancelled"
        else:
            reason = "turn_detected"
            self._onset(at, self.listening.newest)
        self.response, self._stopping, self._is_onset_told = None, None, False
        heard, item = response.heard, response.item
        item.text, item.status = heard, "incomplete"
        if not response.is_done:
            response.end("cancelled", reason, self._previous(item))
        if not heard.strip():
            self.delete(item)
        elif response.cut_at is None and len(heard) < len(response.said.rstrip()) and item in self.items:
            self.tell_truncated(item, round(item.seconds_at(len(heard), self.rate) * 1000))

    def tell_truncated(self, item: Item, at_ms: int) -> None:
        """Tell what is left of an item of the assistant's; `text` is beyond the protocol, which counts time alone."""
        self.say("conversation.item.truncated", item_id=item.id, content_index=0, audio_end_ms=at_ms, text=item.text)

    def _trimmed(self, event: e.Trimmed) -> None:
        self.history.num_trimmed += event.turns_dropped

    def _edited(self, event: e.Edited) -> None:
        if self.response is not None:
            self._cut(self.response, event.at)
        self._muted.clear()
        self._finished.clear()
        self._heard.clear()

    def _response(self, number: int) -> Response | None:
        """The response whose answer that is, if it was told of."""
        return self.response if self.response is not None and self.response.number == number else None

    def _previous(self, item: Item) -> str | None:
        return self.items.previous(item) if item in self.items else None


_WHY = {
    "ignore": "the words were none of the assistant's business, and the answer that there is goes on",
    "stop": "the words asked for silence, so nothing is said",
    "patience": "the words stayed incomplete, and the answer that there is goes on",
}
_ACTIONS = {
    (InputState.PROCESS, False): "interrupt",
    (InputState.PROCESS, True): "defer",
    (InputState.INCOMPLETE, False): "wait",
    (InputState.INCOMPLETE, True): "wait",
    (InputState.IGNORE, False): "ignore",
    (InputState.IGNORE, True): "ignore",
    (InputState.STOP, False): "stop",
    (InputState.STOP, True): "ignore",
}
