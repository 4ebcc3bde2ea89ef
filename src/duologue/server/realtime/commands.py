"""Carries out the requests of a Realtime client on its session."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from duologue.core.backend import Sampling
from duologue.core.config import MAX_CHARACTERS_PER_TOKEN
from duologue.core.transitions import Interruptible
from duologue.server.fields import Rejection
from duologue.server.realtime.items import Item
from duologue.server.realtime.messages import (
    ACTIVE,
    EAGERNESS,
    EMPTY,
    NOT_ACTIVE,
    RealtimeConfig,
    ResponseRequest,
    event_id,
    read_event,
)
from duologue.server.realtime.response import whole_words
from duologue.server.realtime.session import RealtimeSession
from duologue.types import well_formed
from duologue.voice.policy import by_voice

_MOST_DRAFTS = 64


class Commands:
    """Carries out the client's events, one after another."""

    def __init__(self, session: RealtimeSession, *, speak: Callable[["Commands"], object]) -> None:
        """`speak` makes sure that there is a voice, and raises `EngineFull` if no slot is free."""
        self.session = session
        self._speak = speak
        self._drafts: dict[str, str] = {}  # growing words that are not judged
        self._has_reports = False  # the client reports what has been heard

    def take(self, message: Mapping[str, Any]) -> None:
        """Carry out an event. The session must have processed all earlier events.

        Raises:
            Rejection, UsageError, EngineError: the event was refused, and nothing changed.
        """
        kind, fields = message["type"], read_event(message, is_duplex=self.session.is_duplex)
        if kind == "response.create":
            self._create_response(ResponseRequest.from_json(fields["response"], event_id(message)))
            return
        self.session.go_on()
        if kind in _WITHOUT_VOICE:
            text, code, param = _WITHOUT_VOICE[kind]
            raise Rejection(text, code=code, param=param)
        self._COMMANDS[kind](self, fields)

    # ------------------------------------------------------------------ the session

    def _update(self, fields: dict[str, Any]) -> None:
        session = self.session
        before, config = session.config, session.config.changed(fields["session"])
        if config.instructions != before.instructions:
            session.history.check(config.instructions)
        if before.is_audio and not config.is_audio and session.has_spoken:
            raise Rejection("a session that has spoken cannot go back to text", param="session.output_modalities")
        if config.is_audio:
            self._speak(self)
        self._configure(config)
        if session.running is None and not session.listening.items and session.request is None:
            session.history.sync(config.instructions, session.items.answered)  # at once, since it takes a while
        session.tell_config("session.updated")

    def _configure(self, config: RealtimeConfig) -> None:
        session, detection = self.session, config.turn_detection
        before, session.config = session.config, config
        if detection != before.turn_detection or config.is_audio != before.is_audio:
            eagerness = 0.0 if detection is None else EAGERNESS[detection.eagerness]
            is_protected = detection is not None and not detection.interrupt_response
            interruptible = Interruptible.NO if is_protected else Interruptible.YES
            policy = session.model.policy(eagerness=eagerness, interruptible=interruptible)
            session.handle.adjust(by_voice(policy) if config.is_audio else policy)
            session.handle.protect(interruptible)
        session.handle.limit(session.max_tokens)
        session.handle.sample(Sampling(temperature=config.temperature))

    def mute(self) -> None:
        """Continue the session in text, because the voice has failed."""
        self._configure(replace(self.session.config, is_audio=False, has_voice=False))
        self.session.tell_config("session.updated")

    # ------------------------------------------------------------------ items

    def _create_item(self, fields: dict[str, Any]) -> None:
        session, item = self.session, Item.from_json(fields["item"])
        if item.role != "assistant":
            session.history.check_turn(item.text)
        elif len(item.text) > MAX_CHARACTERS_PER_TOKEN * session.handle.session.config.max_length:
            message = "this text is longer than the context"
            raise Rejection(message, code="string_above_max_length", param="item.content")
        is_last = session.items.insert(item, fields["previous_item_id"])
        session.show(item)
        session.pop_verdict()
        if item.role != "user" or not item.text.strip() or not is_last or session.config.turn_detection is None:
            return
        running, response = session.running, session.response
        is_unheard = running is not None and not running.num_heard and not session.listening.items
        if is_unheard and response is not None and response.is_done and not self._has_reports:
            session.handle.hear_out()  # faster than any reader, so a program, which has everything that it waited for
        if session.running is not None or session.listening.items:
            session.hear(item)

    def _retrieve_item(self, fields: dict[str, Any]) -> None:
        item = self._item(fields, "item_retrieve_invalid_item_id")
        self.session.send("conversation.item.retrieved", item=item.as_json())

    def _delete_item(self, fields: dict[str, Any]) -> None:
        session, item = self.session, self._item(fields, "item_delete_invalid_item_id")
        if item in session.listening.items:
            message = f"item {item.id!r} is being judged; delete it after the decision"
            raise Rejection(message, code="item_delete_invalid_item_id", param="item_id")
        if session.response_to(item) is not None:
            session.stop()
        session.delete(item)

    def _truncate_item(self, fields: dict[str, Any]) -> None:
        session, item = self.session, self._item(fields, "item_truncate_invalid_item_id")
        if item.role != "assistant":
            message = "only items of the assistant can be truncated"
            raise Rejection(message, code="item_truncate_invalid_item_id", param="item_id")
        if fields["content_index"] != 0:
            raise Rejection("an item has one part: content_index must be 0", param="content_index")
        length = item.length_at(fields["audio_end_ms"] / 1000, session.characters_per_second)
        if (response := session.response_to(item)) is not None:
            response.cut_at = length
            session.handle.hear_out(response.base + length)
            session.stop()
        item.text, item.status = whole_words(item.text, length), "incomplete"
        session.tell_truncated(item, fields["audio_end_ms"])

    def _item(self, fields: dict[str, Any], code: str) -> Item:
        item = self.session.items.find(fields["item_id"])
        if item is None:
            raise Rejection(f"there is no item {fields['item_id']!r}", code=code, param="item_id")
        return item

    # ------------------------------------------------------------------ responses

    def _create_response(self, request: ResponseRequest) -> None:
        session = self.session
        if request.instructions is not None:
            session.history.check(request.instructions)
        if session.adopt(request):
            return
        if session.request is not None:
            raise Rejection("a requested response is about to begin; wait for response.done", code=ACTIVE)
        if (why := session.pop_verdict()) is not None:
            raise Rejection(why, code=ACTIVE)
        running, response = session.running, session.response
        if running is None:
            session.start(request)
        elif session.listening.items:
            session.request = request  # until the words have been decided on
        elif response is None:
            session.request = request  # the answer is prepared, and may be heard now
            session.handle.respond()
        elif not response.is_done:
            raise Rejection("a response is in progress; wait for response.done, or cancel it", code=ACTIVE)
        else:
            session.handle.hear_out()  # a client that requests the next answer has heard this one
            session.start(request)

    def _cancel(self, fields: dict[str, Any]) -> None:
        session, response = self.session, self.session.response
        name = fields["response_id"]
        if name is not None and (response is None or response.id != name):
            raise Rejection(f"Cancellation failed: {name!r} is not in progress", code=NOT_ACTIVE, param="response_id")
        if session.running is None and session.request is None:
            raise Rejection("Cancellation failed: no response is in progress", code=NOT_ACTIVE)
        session.give_up()

    # ------------------------------------------------------------------ the duplex extension

    def _append(self, fields: dict[str, Any]) -> None:
        self.grow(fields["utterance"], fields["text"], is_final=fields["final"])

    def grow(self, label: str, text: str, *, is_final: bool, is_audio: bool = False) -> None:
        """Set all words so far of the utterance that the client calls `label`. `is_audio`: they were spoken."""
        session, listening, text = self.session, self.session.listening, well_formed(text)
        detection, running = session.config.turn_detection, session.running
        is_free = running is None and not listening.items
        if detection is None:
            is_judged = listening.is_growing(label)  # from before turn detection was switched off
        else:
            is_judged = label not in self._drafts and (detection.create_response or not is_free)
        if not is_judged:
            self._draft(label, text, is_final, is_audio)
            return
        if is_free:
            session.history.sync(session.config.instructions, session.items.answered)
        utterance = listening.utterance(label)
        is_answered = running is not None and running.find(utterance.name) is not None and not running.num_heard
        listening.grow(utterance, text, is_answered=is_answered, is_audio=is_audio)
        session.handle.hear(text, utterance=utterance.name, final=is_final)
        if read := session.history.session.words_of(utterance.name):
            listening.leave_out(utterance, read)
        # That they are answered may not have been told yet. Otherwise they were dropped before, or there are none.
        if session.handle.session.input_text is None and not is_answered:
            listening.items = listening.typed
        if is_final:
            listening.end(label)

    def forget(self, label: str) -> None:
        """The words of an utterance that was spoken were refused: earlier ones of it count no more."""
        self._drafts.pop(label, None)

    def commit(self, text: str, failure: str | None = None) -> None:
        """Make `text`, which was spoken, an item that waits for `response.create`. Without words, too: stock clients
        wait for an item behind a commit, and the model does not read an empty one. `failure`: why there are no words.

        Raises:
            Rejection: it is too long for a turn.
        """
        session, text = self.session, well_formed(text)
        session.history.check_turn(text)
        session.go_on()
        item = Item("user", text, is_audio=True)
        session.items.add(item)
        session.pop_verdict()
        session.show_committed(item, failure)

    def _draft(self, label: str, text: str, is_final: bool, is_audio: bool) -> None:
        """Only the client says when something is answered: words that have ended are an item, and wait."""
        session = self.session
        session.history.check_turn(text)
        if not is_final:
            if label not in self._drafts and len(self._drafts) >= _MOST_DRAFTS:
                raise Rejection(f"at most {_MOST_DRAFTS} utterances can wait to be ended", param="utterance")
            self._drafts[label] = text
            return
        self._drafts.pop(label, None)
        if text.strip() and is_audio:
            self.commit(text)
        elif text.strip():
            item = Item("user", text)
            session.items.add(item)
            session.pop_verdict()
            session.show(item)

    def _retract(self, fields: dict[str, Any]) -> None:
        session, listening, wanted = self.session, self.session.listening, fields["utterance"]
        grown = [utterance for _, utterance in listening.grown if wanted in (None, utterance.label)]
        drafts = [label for label in self._drafts if wanted in (None, label)]
        if not grown and not drafts:
            raise Rejection("there are no such words to cancel", code="input_not_active")
        for label in drafts:
            del self._drafts[label]
        for utterance in grown:
            session.handle.retract(utterance.name)
            listening.forget(utterance)

    def _acknowledge(self, fields: dict[str, Any]) -> None:
        session, response, length = self.session, self.session.response, fields["played_chars"]
        if length is None:
            if fields["played_ms"] is None:
                raise Rejection("played_chars or played_ms is needed", code="missing_required_parameter")
            length = int(fields["played_ms"] / 1000 * session.characters_per_second)
            length = length if response is None else min(length, len(response.said))
        if not self._has_reports:
            self._has_reports = True
            session.handle.take_reports()
        heard, item_id = None, fields["item_id"]
        if (
            response is not None
            and item_id in (None, response.item.id)
            and fields["response_id"] in (None, response.id)
        ):
            if length > len(response.said):
                raise Rejection(f"only {len(response.said)} characters have been said", param="played_chars")
            session.handle.heard(response.base + length, answer=response.number)
            running, item_id = session.running, response.item.id
            is_over = running is None or running.id != response.number
            heard = len(response.said) if is_over or running is None else max(0, running.num_heard - response.base)
        session.send("playback.acknowledged", item_id=item_id, played_chars=length, heard_chars=heard)

    def _clear(self, _: dict[str, Any]) -> None:
        self.session.send("input_audio_buffer.cleared")

    _COMMANDS: ClassVar[Mapping[str, Callable[["Commands", dict[str, Any]], None]]] = {
        "session.update": _update,
        "conversation.item.create": _create_item,
        "conversation.item.retrieve": _retrieve_item,
        "conversation.item.delete": _delete_item,
        "conversation.item.truncate": _truncate_item,
        "response.cancel": _cancel,
        "input_audio_buffer.clear": _clear,
        "input.text.append": _append,
        "input.cancel": _retract,
        "playback.ack": _acknowledge,
    }


_NEEDS_VOICE = (
    "this server has no voice; start it with --voice auto. Send text: an item with content of type input_text"
)
_WITHOUT_VOICE = {
    "input_audio_buffer.append": (_NEEDS_VOICE, "audio_not_supported", "type"),
    "input_audio_buffer.commit": (f"the input audio buffer is empty: {_NEEDS_VOICE}", EMPTY, None),
    "output_audio_buffer.clear": (
        "sound that was sent is with the client: drop what has not been played",
        "audio_not_supported",
        "type",
    ),
}
