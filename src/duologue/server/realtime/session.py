"""Translates a session's events for a Realtime client: items, responses, and the fate of words said over an answer.

Words typed over an answer are judged, and a client's `response.create` after them waits for the decision. Nothing is
reported before that: `speech_started` makes stock clients stop playback, so it must not be sent for words that are not
meant for the assistant.
"""

import asyncio
from dataclasses import dataclass, replace
from typing import Any

from duologue.core import events as e
from duologue.core.answer import Answer
from duologue.engine.playback_clock import CHARACTERS_PER_WORD
from duologue.errors import DuologueError, UsageError
from duologue.models.model import Model
from duologue.server.config import ServerConfig
from duologue.server.conversation import Conversation
from duologue.server.fields import Rejection
from duologue.server.long_texts import LongTexts
from duologue.server.realtime.history import History, merged
from duologue.server.realtime.items import Item, Items, Listening, label_of, new_id, words
from duologue.server.realtime.messages import ACTIVE, RealtimeConfig, ResponseRequest, as_error
from duologue.server.realtime.response import Response, Send
from duologue.types import InputState

GRACE_S = 0.25
"""How long words that will be answered wait for the `response.create` that a client may send after them."""
_VERDICT_S = 2.0  # a later `response.create` has nothing to do with words that were dropped

_MOST_NOTES = 32  # answers; fewer of a session can continue


@dataclass(slots=True)
class _AnswerNotes:
    """Facts about an answer that are kept in addition to its response."""

    is_hidden: bool = False  # it is not reported to the client
    is_stopped: bool = False  # the client stopped it
    finished: str | None = None  # why the model ended it
    num_heard: int = 0  # characters, when it was cut


class RealtimeSession:
    """One conversation: `take` receives the session's events in order; `Commands` carries out the client's requests.

    Words, answer and history are those of `handle.session`. This class holds what only the protocol knows.
    """

    def __init__(
        self,
        conversation: Conversation,
        model: Model,
        limits: ServerConfig,
        send: Send,
        *,
        long_texts: LongTexts,
        is_duplex: bool,
        has_voice: bool,
    ) -> None:
        self.id = new_id("sess")
        self.handle = conversation.handle
        self.model = model
        self.send = send
        self.is_duplex = is_duplex
        self.characters_per_second = limits.words_per_second * CHARACTERS_PER_WORD  # for clients that count in time
        self.config = RealtimeConfig(instructions=limits.system, has_voice=has_voice)
        self.has_spoken = False  # by voice
        self.items = Items()
        client = conversation.client
        self.history = History(conversation.handle, model, limits.system, client=client, long_texts=long_texts)
        self.listening = Listening()
        self.response: Response | None = None  # of the running answer, until that is heard to its end or cut
        self.request: ResponseRequest | None = None  # that waits for its answer to begin
        self._conversation_id = new_id("conv")
        self._most_tokens = limits.max_answer
        self._verdict: tuple[str, float] | None = None  # why the newest typed words get no answer, and until when
        self._held_back: list[e.Event] | None = None  # while a `response.create` may be on its way
        self._timer: asyncio.TimerHandle | None = None
        self._answers: dict[int, _AnswerNotes] = {}

    # ------------------------------------------------------------------ state

    @property
    def running(self) -> Answer | None:
        """The running answer. It may be ahead of the reports while these wait for a `response.create`."""
        return self.handle.session.running

    @property
    def unheard(self) -> list[e.Event]:
        """The part of the running answer that a voice that starts now has missed, as far as it was reported."""
        response, now = self.response, self.handle.session.now
        if response is None:
            return []
        heard = response.base + response.num_heard
        rest = e.Said(now, response.number, heard, response.said[response.num_heard :])
        reason = "stop" if response.is_done else self._notes(response.number).finished
        return [rest] if reason is None else [rest, e.Finished(now, response.number, reason)]

    @property
    def max_tokens(self) -> int:
        """Maximum tokens of an answer, by the session's configuration."""
        return min(self.config.max_output_tokens or self._most_tokens, self._most_tokens)

    def response_to(self, item: Item) -> Response | None:
        """The response that this item belongs to, if its answer is running."""
        return self.response if self.response is not None and self.response.item is item else None

    # ------------------------------------------------------------------ for commands

    def tell_config(self, kind: str) -> None:
        """Report the configuration in an event of type `kind`."""
        self.send(kind, session=self.config.as_json(self.id, self.model.name))

    def tell_error(self, error: DuologueError, event_id: str | None = None) -> None:
        """Report an error. `event_id` is that of the client's event."""
        self.send("error", error=as_error(error, event_id))

    def hear(self, item: Item) -> None:
        """Let the model judge `item`, which was typed."""
        self._verdict = None
        self.listening.items.append(item)
        self.handle.hear(item.text, utterance=item.id, final=True)

    def start(self, request: ResponseRequest) -> None:
        """Answer what has not been answered, regardless of the model's decision.

        Raises:
            Rejection, UsageError: it cannot be answered; nothing changed.
        """
        waiting, grown = self.items.unanswered, self.listening.grown
        self.history.check_turn(words([*waiting, *(item for item, _ in grown)]))
        instructions = self.config.instructions if request.instructions is None else request.instructions
        self.history.check(instructions)
        must_begin_anew = self.running is not None or self._is_out_of_order(waiting)
        if self.history.sync(instructions, self.items.answered, is_forced=must_begin_anew):
            self.listening.items = [item for item, _ in grown]  # what was being heard was given up
            for _, utterance in grown:
                self.listening.rename(utterance)
                self.handle.hear(utterance.text, utterance=utterance.name)
        self.request = replace(request, is_started=True)
        for item in waiting:
            item.utterance = None  # it is in the conversation, and no longer grows
            if item.words and item not in self.listening.items:
                self.hear(item)
        self.handle.limit(min(request.max_output_tokens or self.max_tokens, self._most_tokens))
        self.handle.respond()
        self.handle.limit(self.max_tokens)

    def _is_out_of_order(self, waiting: list[Item]) -> bool:
        """Whether items that are being heard come after others that are not."""
        heard = [item in self.listening.items for item in waiting]
        return heard != sorted(heard, reverse=True)

    def adopt(self, request: ResponseRequest) -> bool:
        """If an answer is about to begin, make it the answer to `request`. Returns whether there is one."""
        if self._held_back is None:
            return False
        self.request = request
        self.go_on()
        return True

    def pop_verdict(self) -> str | None:
        """The reason why the latest typed words are not answered, if they are not. It is returned once."""
        verdict, self._verdict = self._verdict, None
        return verdict[0] if verdict is not None and asyncio.get_running_loop().time() < verdict[1] else None

    def give_up(self) -> None:
        """End the answer, and give up the request for one and the words being heard."""
        self.stop()
        if self.request is not None:
            self.request = None
            self.handle.edit(merged(self.handle.session.history))
            self.listening.items = []

    def stop(self) -> None:
        """End the answer for the client."""
        if (running := self.running) is not None:
            self._notes(running.id).is_stopped = True
            self.handle.stop()

    def show(self, item: Item) -> None:
        """Report that `item` is part of the conversation."""
        previous = self.items.previous(item)
        self.send("conversation.item.added", previous_item_id=previous, item=item.as_json())
        self.send("conversation.item.done", previous_item_id=previous, item=item.as_json())
        while (surplus := self.items.pop_surplus()) is not None:
            self.send("conversation.item.deleted", item_id=surplus.id)

    def show_committed(self, item: Item, failure: str | None = None) -> None:
        """Report that `item`, whose words grew, is part of the conversation. `failure`: why it has no words."""
        self.send("input_audio_buffer.committed", item_id=item.id, previous_item_id=self.items.previous(item))
        self.show(item)
        if failure is not None:
            self.tell_failed(item.id, failure)
        elif item.is_audio:
            kind = "conversation.item.input_audio_transcription.completed"
            usage = {"type": "duration", "seconds": 0}
            self.send(kind, item_id=item.id, content_index=0, transcript=item.text, usage=usage)

    def tell_failed(self, item_id: str, why: str) -> None:
        """Report that the words of an item could not be recognised."""
        error = {"type": "server_error", "code": "transcription_failed", "message": why, "param": None}
        kind = "conversation.item.input_audio_transcription.failed"
        self.send(kind, item_id=item_id, content_index=0, error=error)

    def tell_truncated(self, item: Item, at_ms: int) -> None:
        """Report what is left of an assistant's item. `text` is an addition to the protocol, which counts only time."""
        self.send("conversation.item.truncated", item_id=item.id, content_index=0, audio_end_ms=at_ms, text=item.text)

    def delete(self, item: Item) -> None:
        """Remove `item` from the conversation."""
        if item in self.items:
            self.items.remove(item)
            self.send("conversation.item.deleted", item_id=item.id)

    # ------------------------------------------------------------------ events of the session

    def take(self, event: e.Event) -> None:
        """Translate an event, unless it has to wait for a `response.create`."""
        if isinstance(event, e.Decided):
            self._tell_decision(event)
        if self._held_back is not None:
            self._held_back.append(event)
        elif isinstance(event, e.Decided) and self._may_be_asked_for(event):
            self._held_back = []
            self._timer = asyncio.get_running_loop().call_later(GRACE_S, self.go_on)
        else:
            self._translate(event)

    def go_on(self) -> None:
        """Stop waiting for a `response.create`."""
        if self._held_back is None:
            return
        held, self._held_back = self._held_back, None
        if self._timer is not None:
            self._timer.cancel()
        for event in held:
            self._translate(event)
        self.settle()

    def settle(self) -> None:
        """Act on the fact that all events so far were reported: a finished answer has no more words."""
        response = self.response
        if self._held_back is not None or response is None or response.is_done or response.is_audio:
            return  # a spoken answer ends when it has been heard
        if (reason := self._notes(response.number).finished) is not None:
            self._complete(response, reason)

    def _complete(self, response: Response, reason: str) -> None:
        status, why = _ENDS.get(reason, ("completed", None))
        response.end(status, why, self.items.previous(response.item))

    async def prepare(self, kind: str, fields: Any) -> None:
        """Tokenise in a thread what a request of type `kind` will need, if that takes long."""
        wanted = fields.get("instructions") if isinstance(fields, dict) else None
        if kind in ("session.update", "response.create", "input.text.append"):
            instructions = wanted if isinstance(wanted, str) else self.config.instructions
            await self.history.prepare(instructions, self.items.answered)

    def close(self) -> None:
        """End the session."""
        if self._timer is not None:
            self._timer.cancel()

    def _translate(self, event: e.Event) -> None:
        if not isinstance(event, e.Said | e.Finished):
            self.settle()
        match event:
            case e.Said():
                if (response := self._response(event.answer)) is not None:
                    response.add(event.start, event.text)
            case e.Heard():
                if (response := self._response(event.answer)) is not None:
                    response.hear(event.position)
            case e.Finished():
                self._notes(event.answer).finished = event.reason
            case e.Released():
                self._begin(event.answer, 0)
            case e.Resumed():
                self._begin(event.answer, self._notes(event.suspended).num_heard if event.exact else 0)
            case e.Promoted():
                self._promoted(event)
            case e.Dropped():
                self._dropped(event)
            case e.Committed():
                self._committed(event)
            case e.Suspended():
                self._notes(event.answer).num_heard = len(event.heard)
                self._cut(event.answer, event.at, len(event.heard))
                self.listening.close_turn()
            case e.Withdrawn():
                self._withdrawn(event)
            case e.Failed(unanswered=True):
                self._cut(event.answer, event.at)
            case e.TakenBack():
                self._cut(event.answer, event.at)
                for item in self.listening.take_back():
                    self.delete(item)
                    self.listening.renew(item)
            case e.Edited():
                if self.response is not None:
                    self._cut(self.response.number, event.at)
                self._answers.clear()
            case e.Trimmed():
                self.history.num_trimmed += event.turns_dropped
            case e.Refused(what="respond") if self.request is not None:
                error = f"there is nothing to respond to: {event.reason}"
                self._fail(Rejection(error, code="response_not_possible"))

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
        if not self.listening.turn:  # words that were ignored until now, when they count as the reply to a question
            self.listening.turn = [Item("user", event.text, is_audio=self.config.is_audio)]
            self.items.add(self.listening.turn[0])
            self.show_committed(self.listening.turn[0])
        detection, request = self.config.turn_detection, self.request
        if request is not None and request.is_special and not request.is_started:
            self._notes(
                event.answer
            ).is_hidden = True  # it was begun without the requested settings, so it is begun again
            try:
                self.start(request)
            except UsageError as error:
                self.handle.stop()
                self._fail(error)
        elif request is None and (detection is None or not detection.create_response):
            self._notes(event.answer).is_hidden = True  # only requests are answered
            if (running := self.running) is not None and running.id == event.answer:
                self.handle.stop()

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
            self._verdict = why, asyncio.get_running_loop().time() + _VERDICT_S

    def _fail(self, error: DuologueError) -> None:
        """Report that the requested response fails."""
        request, self.request = self.request, None
        self.tell_error(error, None if request is None else request.event_id)

    @property
    def _may_cut(self) -> bool:
        detection = self.config.turn_detection
        return self.response is not None and (detection is None or detection.interrupt_response)

    def _onset(self, at: float, item: Item | None) -> None:
        """Report that the user's words cut the answer."""
        is_expected = self.request is not None and self.request.is_tracked
        if self.response is None or self.response.is_onset_told or is_expected or item is None:
            return
        self.response.is_onset_told, at_ms = True, round(at * 1000)
        self.send("input_audio_buffer.speech_started", audio_start_ms=at_ms, item_id=item.id)
        self.send("input_audio_buffer.speech_stopped", audio_end_ms=at_ms, item_id=item.id)

    def _tell_decision(self, event: e.Decided) -> None:
        if not self.is_duplex:
            return
        decision, detection = event.decision, self.config.turn_detection
        is_protected = event.speaking and detection is not None and not detection.interrupt_response
        action = _ACTIONS[decision.state, is_protected]
        if decision.state is InputState.PROCESS and not event.speaking:
            action = "respond"
        label = label_of(event.utterance)
        self.send(
            "overlap.decision",
            policy="duologue",
            state=str(decision.state),
            probabilities={str(state): round(p, 6) for state, p in decision.probabilities},
            action=action,
            speaking=event.speaking,
            text=event.text,
            latency_ms=round((event.at - event.heard_at) * 1000, 1),
            item_id=event.utterance if label is None else None,
            utterance=label,
        )

    # ------------------------------------------------------------------ answers

    def _begin(self, number: int, base: int) -> None:
        if self._notes(number).is_hidden:
            return
        request, self.request = self.request or ResponseRequest(), None
        running, is_audio = self.running, self.config.is_audio
        answer = running if running is not None and running.id == number else None
        self.has_spoken = self.has_spoken or is_audio
        response = Response(
            number, base, request, answer, conversation=self._conversation_id, send=self.send, is_audio=is_audio
        )
        self.items.add(response.item, before=next(iter(self.listening.typed), None))
        self.response = response
        response.begin(self.items.previous(response.item))

    def _committed(self, event: e.Committed) -> None:
        if (response := self._response(event.answer)) is not None:
            response.item.text = event.text[response.base :]
            if not response.is_done:
                self._complete(response, self._notes(event.answer).finished or "stop")
            self.response = None
        self.listening.close_turn()
        if self.request is not None and self.running is None and self.handle.session.input_text:
            self.handle.respond()  # it waited for the end of the answer, which has come

    def _withdrawn(self, event: e.Withdrawn) -> None:
        notes = self._notes(event.answer)
        self._cut(event.answer, event.at, 0)
        if not notes.is_hidden and not notes.is_stopped:
            for item in self.listening.turn:
                self.delete(item)
        self.listening.close_turn()

    def _cut(self, number: int, at: float, num_heard: int | None = None) -> None:
        """End an answer that was not heard to its end: the unheard part is not in the context."""
        response, is_stopped = self._response(number), self._notes(number).is_stopped
        if response is None:
            return
        if num_heard is not None:
            response.hear(num_heard)
        if not is_stopped:
            self._onset(at, self.listening.newest)
        self.response = None
        heard, item = response.heard, response.item
        item.text, item.status = heard, "incomplete"
        if not response.is_done:
            reason = "client_cancelled" if is_stopped else "turn_detected"
            response.end("cancelled", reason, self.items.previous(item))
        if not heard.strip():
            self.delete(item)
        elif response.cut_at is None and len(heard) < len(response.said.rstrip()) and item in self.items:
            self.tell_truncated(item, round(item.seconds_at(len(heard), self.characters_per_second) * 1000))

    def _response(self, number: int) -> Response | None:
        """The response for that answer, if there is one."""
        return self.response if self.response is not None and self.response.number == number else None

    def _notes(self, number: int) -> _AnswerNotes:
        if number not in self._answers:
            self._answers[number] = _AnswerNotes()
            if len(self._answers) > _MOST_NOTES:
                del self._answers[next(iter(self._answers))]
        return self._answers[number]


_ENDS = {"length": ("incomplete", "max_output_tokens"), "failed": ("failed", "server_error")}
"""How a response ends that ends for this reason, and why; others are completed."""
_WHY = {
    "ignore": "the words were none of the assistant's business, and the answer that there is goes on",
    "stop": "the words asked for silence, so nothing is said",
    "no words": "there are no words in it, only what recognisers write for sounds",
    "echo": "the words are an echo of the assistant's own",
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
