"""What a Realtime client asks for, carried out on its dialogue."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from duologue.core.transitions import Interruptible
from duologue.server.realtime.config import EAGERNESS, RealtimeConfig
from duologue.server.realtime.dialogue import Dialogue
from duologue.server.realtime.errors import ACTIVE, EMPTY, NEEDS_VOICE, NOT_ACTIVE, Rejection
from duologue.server.realtime.items import Item
from duologue.server.realtime.listening import label
from duologue.server.realtime.messages import event_id, read
from duologue.server.realtime.request import Request
from duologue.server.realtime.response import Response, whole_words
from duologue.types import well_formed
from duologue.voice.policy import by_voice

_MOST_DRAFTS = 64


class Commands:
    """Carries out one event of the client's after the other."""

    def __init__(self, dialogue: Dialogue, *, speak: Callable[[], None] = lambda: None) -> None:
        """`speak` sees to it that there is a voice; it raises `EngineFull` if there cannot be one."""
        self._dialogue = dialogue
        self._speak = speak
        self._drafts: dict[str, str] = {}  # words that grow while nobody is to judge them
        self._has_reports = False  # the client tells what has been heard
        self._commands: Mapping[str, Callable[[dict[str, Any], str | None], None]] = {
            "session.update": self._update,
            "conversation.item.create": self._create_item,
            "conversation.item.retrieve": self._retrieve_item,
            "conversation.item.delete": self._delete_item,
            "conversation.item.truncate": self._truncate_item,
            "response.create": self._create_response,
            "response.cancel": self._cancel,
            "input_audio_buffer.append": self._refuse_audio,
            "input_audio_buffer.commit": self._refuse_commit,
            "input_audio_buffer.clear": lambda *_: dialogue.say("input_audio_buffer.cleared"),
            "output_audio_buffer.clear": self._refuse_clear,
            "input.text.append": self._append,
            "input.cancel": self._retract,
            "playback.ack": self._acknowledge,
        }

    def take(self, message: Mapping[str, Any]) -> None:
        """Carry out an event. All that the session told before must have been taken by the dialogue.

        Raises:
            Rejection, UsageError, EngineError: it is not done, and nothing else changed.
        """
        fields = read(message, is_duplex=self._dialogue.is_duplex)
        if message["type"] != "response.create":
            self._dialogue.go_on()
        self._commands[message["type"]](fields, event_id(message))

    # ------------------------------------------------------------------ the session

    def _update(self, fields: dict[str, Any], _: str | None) -> None:
        dialogue = self._dialogue
        before, config = dialogue.config, dialogue.config.changed(fields["session"])
        if config.instructions != before.instructions:
            dialogue.history.check(config.instructions)
        if before.is_audio and not config.is_audio and dialogue.has_spoken:
            raise Rejection("a session that has spoken goes on to speak", param="session.output_modalities")
        if config.is_audio:
            self._speak()
        dialogue.config = config
        self._apply(before)
        if dialogue.running is None and not dialogue.listening.items and dialogue.request is None:
            dialogue.history.sync(config.instructions, dialogue.items.answered)  # now, since it takes a while
        dialogue.say("session.updated", session=config.as_json(dialogue.id, dialogue.model.name))

    def _apply(self, before: RealtimeConfig) -> None:
        dialogue, detection = self._dialogue, self._dialogue.config.turn_detection
        if detection != before.turn_detection or dialogue.config.is_audio != before.is_audio:
            eagerness = 0.0 if detection is None else EAGERNESS[detection.eagerness]
            is_protected = detection is not None and not detection.interrupt_response
            interruptible = Interruptible.NO if is_protected else Interruptible.YES
            policy = dialogue.model.policy(eagerness=eagerness, interruptible=interruptible)
            dialogue.handle.adjust(by_voice(policy) if dialogue.config.is_audio else policy)
            dialogue.handle.protect(interruptible)
        dialogue.handle.limit(dialogue.max_tokens)

    def mute(self) -> None:
        """The voice has failed: from now on the session is one in text."""
        dialogue, before = self._dialogue, self._dialogue.config
        dialogue.config = replace(before, is_audio=False, has_voice=False)
        self._apply(before)
        dialogue.say("session.updated", session=dialogue.config.as_json(dialogue.id, dialogue.model.name))

    # ------------------------------------------------------------------ items

    def _create_item(self, fields: dict[str, Any], _: str | None) -> None:
        dialogue, item = self._dialogue, Item.from_json(fields["item"])
        if item.role != "assistant":
            dialogue.history.check_turn(item.text)
        elif len(item.text) > 32 * dialogue.session.config.max_length:
            raise Rejection(
                "this text is longer than the context", code="string_above_max_length", param="item.content"
            )
        is_last = dialogue.items.insert(item, fields["previous_item_id"])
        dialogue.show(item)
        dialogue.pop_verdict()
        if item.role != "user" or not item.text.strip() or not is_last or dialogue.config.turn_detection is None:
            return
        if self._is_program():
            dialogue.handle.hear_out()
        if dialogue.running is not None or dialogue.listening.items:
            dialogue.hear(item)

    def _is_program(self) -> bool:
        """Whether the client goes on faster than anybody reads: it has got what it waited for."""
        dialogue, running, response = self._dialogue, self._dialogue.running, self._dialogue.response
        is_unheard = running is not None and not running.num_heard and not dialogue.listening.items
        return is_unheard and response is not None and response.is_done and not self._has_reports

    def _retrieve_item(self, fields: dict[str, Any], _: str | None) -> None:
        item = self._item(fields, "item_retrieve_invalid_item_id")
        self._dialogue.say("conversation.item.retrieved", item=item.as_json())

    def _delete_item(self, fields: dict[str, Any], _: str | None) -> None:
        dialogue, item = self._dialogue, self._item(fields, "item_delete_invalid_item_id")
        if item in dialogue.listening.items:
            raise Rejection(
                f"item {item.id!r} is being listened to; delete it when it is known what becomes of it",
                code="item_delete_invalid_item_id",
                param="item_id",
            )
        if self._answer_of(item) is not None:
            dialogue.stop()
        dialogue.delete(item)

    def _truncate_item(self, fields: dict[str, Any], _: str | None) -> None:
        dialogue, item = self._dialogue, self._item(fields, "item_truncate_invalid_item_id")
        if item.role != "assistant":
            raise Rejection(
                "only what the assistant said can be truncated", code="item_truncate_invalid_item_id", param="item_id"
            )
        if fields["content_index"] != 0:
            raise Rejection("an item has one part: content_index must be 0", param="content_index")
        length = item.length_at(fields["audio_end_ms"] / 1000, dialogue.rate)
        if (response := self._answer_of(item)) is not None:
            response.cut_at = length
            dialogue.handle.hear_out(response.base + length)
            dialogue.stop()
        item.text, item.status = whole_words(item.text, length), "incomplete"
        dialogue.tell_truncated(item, fields["audio_end_ms"])

    def _item(self, fields: dict[str, Any], code: str) -> Item:
        item = self._dialogue.items.find(fields["item_id"])
        if item is None:
            raise Rejection(f"there is no item {fields['item_id']!r}", code=code, param="item_id")
        return item

    def _answer_of(self, item: Item) -> Response | None:
        """The response that `item` belongs to, if its answer is running."""
        response = self._dialogue.response
        return response if response is not None and response.item is item else None

    # ------------------------------------------------------------------ responses

    def _create_response(self, fields: dict[str, Any], name: str | None) -> None:
        dialogue, request = self._dialogue, Request.from_json(fields["response"], name)
        if request.instructions is not None:
            dialogue.history.check(request.instructions)
        if dialogue.adopt(request):
            return
        if dialogue.request is not None:
            raise Rejection("a response that was asked for is about to begin; wait for response.done", code=ACTIVE)
        if (why := dialogue.pop_verdict()) is not None:
            raise Rejection(why, code=ACTIVE)
        running, response = dialogue.running, dialogue.response
        if running is None:
            dialogue.start(request)
        elif dialogue.listening.items:
            dialogue.request = request  # until it is known what becomes of the words
        elif response is None:
            dialogue.request = request  # it is prepared, and may be heard now
            dialogue.handle.respond()
        elif not response.is_done:
            raise Rejection("a response is in progress; wait for response.done, or cancel it", code=ACTIVE)
        else:
            dialogue.handle.hear_out()  # who asks for the next one has got this one
            dialogue.start(request)

    def _cancel(self, fields: dict[str, Any], _: str | None) -> None:
        dialogue, response = self._dialogue, self._dialogue.response
        name = fields["response_id"]
        if name is not None and (response is None or response.id != name):
            raise Rejection(f"Cancellation failed: {name!r} is not in progress", code=NOT_ACTIVE, param="response_id")
        if dialogue.running is None and dialogue.request is None:
            raise Rejection("Cancellation failed: no response is in progress", code=NOT_ACTIVE)
        dialogue.give_up()

    # ------------------------------------------------------------------ audio

    def _refuse_audio(self, _: dict[str, Any], __: str | None) -> None:
        raise Rejection(NEEDS_VOICE, code="audio_not_supported", param="type")

    def _refuse_clear(self, _: dict[str, Any], __: str | None) -> None:
        raise Rejection(
            "what was sent is with the client: drop what has not been played", code="audio_not_supported", param="type"
        )

    def _refuse_commit(self, _: dict[str, Any], __: str | None) -> None:
        raise Rejection(f"the input audio buffer is empty: {NEEDS_VOICE}", code=EMPTY)

    # ------------------------------------------------------------------ the duplex extension

    def _append(self, fields: dict[str, Any], _: str | None) -> None:
        self.grow(fields["utterance"], fields["text"], is_final=fields["final"])

    def grow(self, utterance: str, text: str, *, is_final: bool, is_audio: bool = False) -> None:
        """All words of an utterance so far are `text`. `is_audio`: they were spoken."""
        dialogue, listening, text = self._dialogue, self._dialogue.listening, well_formed(text)
        detection, running = dialogue.config.turn_detection, dialogue.running
        is_free = running is None and not listening.items
        if detection is None:
            is_judged = listening.is_growing(utterance)  # from before it was switched off
        else:
            is_judged = utterance not in self._drafts and (detection.create_response or not is_free)
        if not is_judged:
            self._draft(utterance, text, is_final, is_audio)
            return
        if is_free:
            dialogue.history.sync(dialogue.config.instructions, dialogue.items.answered)
        name = listening.name(utterance)
        is_answered = running is not None and running.find(name) is not None and not running.num_heard
        listening.grow(name, text, is_answered=is_answered, is_audio=is_audio)
        dialogue.handle.hear(text, utterance=name, final=is_final)
        # That they are answered may not have been told yet. Otherwise they were dropped before, or there are none.
        if dialogue.session.input_text is None and not is_answered:
            listening.items = listening.typed
        if is_final:
            listening.end(utterance)

    def forget(self, utterance: str) -> None:
        """Words that cannot be taken were spoken: those before are none, either."""
        self._drafts.pop(utterance, None)

    def commit(self, text: str, failure: str | None = None) -> None:
        """`text` was spoken, and is an item, which waits for `response.create`; without words, too, since stock clients
        wait for an item behind a commit. Then it is no part of what the model reads. `failure`: why there are no words.

        Raises:
            Rejection: it is too long for a turn.
        """
        dialogue, text = self._dialogue, well_formed(text)
        dialogue.history.check_turn(text)
        dialogue.go_on()
        item = Item("user", text, is_audio=True)
        dialogue.items.add(item)
        dialogue.pop_verdict()
        dialogue.show_committed(item, failure)

    def _draft(self, utterance: str, text: str, is_final: bool, is_audio: bool) -> None:
        """Only the client says when something is answered: words that have ended are an item, and wait."""
        dialogue = self._dialogue
        dialogue.history.check_turn(text)
        if not is_final:
            if utterance not in self._drafts and len(self._drafts) >= _MOST_DRAFTS:
                raise Rejection(f"no more than {_MOST_DRAFTS} utterances can wait to be ended", param="utterance")
            self._drafts[utterance] = text
            return
        self._drafts.pop(utterance, None)
        if text.strip() and is_audio:
            self.commit(text)
        elif text.strip():
            item = Item("user", text)
            dialogue.items.add(item)
            dialogue.pop_verdict()
            dialogue.show(item)

    def _retract(self, fields: dict[str, Any], _: str | None) -> None:
        dialogue, listening = self._dialogue, self._dialogue.listening
        wanted = fields["utterance"]
        grown = [item.utterance for item in listening.items if item.utterance is not None]
        grown = [name for name in grown if wanted in (None, label(name))]
        drafts = [name for name in self._drafts if wanted in (None, name)]
        if not grown and not drafts:
            raise Rejection("there are no such words to take back", code="input_not_active")
        for name in drafts:
            del self._drafts[name]
        for name in grown:
            dialogue.handle.retract(name)
            listening.forget(name)
            listening.end(label(name))

    def _acknowledge(self, fields: dict[str, Any], _: str | None) -> None:
        dialogue, response = self._dialogue, self._dialogue.response
        length = fields["played_chars"]
        if length is None:
            if fields["played_ms"] is None:
                raise Rejection("played_chars or played_ms is needed", code="missing_required_parameter")
            length = int(fields["played_ms"] / 1000 * dialogue.rate)
            length = min(length, len(response.said)) if response is not None else length
        is_this = response is not None and (
            fields["item_id"] in (None, response.item.id) and fields["response_id"] in (None, response.id)
        )
        if not self._has_reports:
            self._has_reports = True
            dialogue.handle.take_reports()
        heard = None
        if is_this and response is not None:
            if length > len(response.said):
                raise Rejection(f"only {len(response.said)} characters have been said", param="played_chars")
            dialogue.handle.heard(response.base + length, answer=response.number)
            running = dialogue.running
            is_over = running is None or running.id != response.number
            heard = len(response.said) if is_over or running is None else max(0, running.num_heard - response.base)
        dialogue.say(
            "playback.acknowledged",
            item_id=response.item.id if is_this and response is not None else fields["item_id"],
            played_chars=length,
            heard_chars=heard,
        )
