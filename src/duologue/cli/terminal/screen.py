"""The full-screen chat. Keys are the input; the screen shows a `Transcript`."""

import asyncio
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout import (
    BufferControl,
    Dimension,
    FormattedTextControl,
    HSplit,
    Layout,
    UIContent,
    UIControl,
    VSplit,
    Window,
)
from prompt_toolkit.layout.processors import AfterInput
from prompt_toolkit.styles import Style

from duologue.cli.terminal.cells import Line, fitted, width_of, wrapped
from duologue.cli.terminal.commands import About, Commands, is_command
from duologue.cli.terminal.lines import latency_ms
from duologue.cli.terminal.transcript import Transcript
from duologue.core.transitions import Floor
from duologue.errors import UsageError

if TYPE_CHECKING:
    from duologue.client import Talk
    from duologue.engine.handle import Handle

PAUSE_S = 0.35  # without a key; then the words typed so far are a partial

STYLE = Style.from_dict(
    {
        "time": "ansibrightblack",
        "gap": "ansibrightblack",
        "note": "ansiyellow",
        "user": "",
        "process": "ansigreen",
        "incomplete": "ansiyellow",
        "ignore": "ansibrightblack",
        "stop": "ansired",
        "verdict": "italic",
        "heard": "bold",
        "unheard": "ansibrightblack",
        "cut": "ansired strike",
        "status": "reverse",
        "prompt": "ansicyan",
        "hint": "ansibrightblack",
    }
)
KEYS = (
    "Enter end · ^C stop · ^R resume · ^G answer now · PgUp scroll · /help · ^C quit",
    "Enter end · Esc stop · ^R resume · ^G answer now · /help · ^C quit",
    "Esc stop · ^R resume · ^G now · ^C quit",
    "Esc stop · ^C quit",
    "^C quit",
)
"""The longest one that fits is shown."""
WELCOME = (
    "Type a question and press Enter. Type again while the answer is being written: a remark that is not meant for",
    "the model is ignored, a new question interrupts, “stop” silences it, and “go on” resumes the answer.",
    "Pasted text is sent with Enter. Up brings back what you typed. /help lists the commands.",
)


class Terminal:
    """One conversation on the screen."""

    def __init__(self, talk: "Handle | Talk", title: str, commands: Commands | None = None, **application: Any) -> None:
        """`title` names the model; `application` is passed to prompt_toolkit, for tests."""
        self.transcript = Transcript()
        self._talk = talk
        self._title = title
        self._commands = commands or Commands(talk, About(title))
        self._now = 0.0  # time of the newest event
        self._is_held = False  # the text was pasted or brought back: it is not judged before Enter
        self._is_pasting = False  # keys that arrived together with a line break are being processed
        self._names = (f"typed-{number}" for number in count())
        self._utterance: str | None = None  # the one in the input line, if it has begun
        self._pause: asyncio.TimerHandle | None = None
        self._back = 0  # lines scrolled up
        self._height = 10  # of the transcript, as last drawn
        self._input = Buffer(multiline=True, on_text_changed=self._typed)
        self._application: Application[None] = Application(
            layout=Layout(self._layout()),
            key_bindings=self._keys(),
            style=STYLE,
            full_screen=True,
            mouse_support=False,
            **application,
        )
        self._application.ttimeoutlen = 0.05  # Esc alone is a key

    async def run(self) -> None:
        """Talk until the user quits. Raises `EngineError` if the backend fails."""
        telling = asyncio.create_task(self._tell())
        try:
            await self._application.run_async()
        finally:
            self._cancel_pause()
            telling.cancel()
            results = await asyncio.gather(telling, return_exceptions=True)
        if isinstance(results[0], Exception):
            raise results[0]

    async def _tell(self) -> None:
        try:
            async for event in self._talk.events():
                self._now = event.at
                self._commands.tell(event)
                self.transcript.tell(event)
                self._application.invalidate()
        finally:
            if self._application.is_running:
                self._application.exit()

    # ------------------------------------------------------------------ the screen

    def _layout(self) -> HSplit:
        prompt = Window(FormattedTextControl([("class:prompt", "you> ")]), width=5, dont_extend_width=True)
        hint = AfterInput(lambda: [] if self._input.text else [("class:hint", "type at any moment")])
        line = Window(BufferControl(self._input, input_processors=[hint]), wrap_lines=True)
        return HSplit(
            [
                Window(_Lanes(self), wrap_lines=False, always_hide_cursor=True),
                Window(FormattedTextControl(self._status), height=2, style="class:status"),
                VSplit([prompt, line], height=self._input_height),
            ]
        )

    def lines(self, width: int, height: int) -> list[Line]:
        """The upper part of the screen."""
        self._height = height
        shown = self.transcript.lines(width, height, back=self._back)
        if not shown and not self._back:
            return [[("class:hint", line)] for part in WELCOME for line in wrapped(part, width)]
        return shown

    def _input_height(self) -> Dimension:
        size = self._application.output.get_size()
        columns = max(1, size.columns - 5)
        text = self._input.text[:2000]
        num = sum(width_of(line) // columns + 1 for line in text.split("\n"))
        return Dimension.exact(max(1, min(num, 6, size.rows - 4)))

    def _status(self) -> StyleAndTextTuples:
        width = self._application.output.get_size().columns
        parts = [f" {self._doing()}"]
        decided = self.transcript.last_decision
        if decided is not None:
            parts.append("  ".join(f"{state} {p:.2f}" for state, p in decided.decision.probabilities))
            parts.append(f"decided in {latency_ms(decided):.0f} ms")
        if self._back:
            parts.insert(1, f"{self._back} lines up")
        title = f" {self._title} · "
        beside = next((keys for keys in KEYS[:3] if width_of(title) + width_of(keys) < width), None)
        alone = next((keys for keys in KEYS if width_of(keys) < width - 1), "")
        below = f" {alone}" if beside is None else title + beside
        return [("", fitted("   ".join(parts), width) + "\n"), ("", fitted(below, width))]

    def _doing(self) -> str:
        names = {Floor.SILENT: "silent", Floor.PREPARED: "about to answer", Floor.SPEAKING: "speaking"}
        return (names[self._talk.floor] + ", listening" * self._talk.is_listening).ljust(19)

    # ------------------------------------------------------------------ the input line is an utterance that grows

    def _typed(self, _: Buffer) -> None:
        self._cancel_pause()
        text = self._input.text
        self._is_held = self._is_held and bool(text)
        if self._is_held or (self._utterance is None and is_command(text)):
            return
        if self._utterance is None and text:
            self._utterance = next(self._names)
            self._back = 0
            self._talk.hear("", utterance=self._utterance)  # the onset
        if self._utterance is not None:
            self._pause = asyncio.get_running_loop().call_later(PAUSE_S, self._partial)

    def _cancel_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _partial(self) -> None:
        if self._utterance is not None:
            self._talk.hear(self._input.text, utterance=self._utterance)

    def _end(self, text: str) -> None:
        """End the utterance with `text`, and keep what was typed for Up."""
        self._cancel_pause()
        if self._utterance is None and text.strip():
            self._utterance = next(self._names)
        if self._utterance is not None:
            self._talk.hear(text, utterance=self._utterance, final=True)
            self._utterance = None
        self._clear()

    def _clear(self) -> None:
        self._input.append_to_history()
        self._is_held = False
        self._input.reset()
        self._back = 0

    def _enter(self, event: KeyPressEvent) -> None:
        """Send what was typed; but a line break within a paste is text.

        Terminals that do not mark a paste send it as keys, all at once.
        """
        text, more = self._input.text, event.key_processor.input_queue
        is_followed = bool(more) and (len(more[0].key) == 1 or more[0].key in (Keys.ControlM, Keys.ControlJ))
        if text and (is_followed or self._is_pasting):
            self._is_pasting = self._is_held = True
            asyncio.get_running_loop().call_soon(self._end_paste)  # when all keys that came at once are processed
            self._input.insert_text("\n")
        elif "\n" not in text and is_command(text):
            self._command(text)
        else:
            self._end(text)

    def _end_paste(self) -> None:
        self._is_pasting = False

    def _command(self, text: str) -> None:
        """Carry out a command. Up brings it back, also one that could not be carried out."""
        try:
            note = self._commands.run(text)
        except UsageError as error:
            note = str(error)
        if self._utterance is not None:
            self._end("")
        else:
            self._clear()
        if note:
            self.transcript.note(self._now, note)
        if self._commands.is_over:
            self._application.exit()

    def _paste(self, event: KeyPressEvent) -> None:
        self._cancel_pause()
        self._is_held = True
        self._input.insert_text(event.data.replace("\r\n", "\n").replace("\r", "\n"))

    def _recall(self, move: Callable[[], None]) -> None:
        """Go up or down: in the text, or to what was typed before, which is not judged before Enter."""
        before, was_held = self._input.text, self._is_held
        self._is_held = True
        move()
        if self._input.text == before:
            self._is_held = was_held

    def _interrupt(self) -> None:
        """Stop the answer; if there is none, leave."""
        if self._talk.floor is not Floor.SILENT:
            self._talk.stop()
        else:
            self._application.exit()

    def _escape(self) -> None:
        """Stop the assistant, or, if it is silent, discard the words that were typed."""
        if self._talk.floor is not Floor.SILENT:
            self._talk.stop()
        else:
            self._end("")

    def _scroll(self, lines: int) -> None:
        step = max(1, self._height // 2) * lines
        fits = len(self.transcript.lines(self._application.output.get_size().columns, self._height, back=self._back))
        if lines < 0 or fits >= self._height:
            self._back = max(0, self._back + step)

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()
        is_empty = Condition(lambda: not self._input.text)
        keys.add("enter")(self._enter)
        keys.add(Keys.BracketedPaste)(self._paste)
        keys.add("up")(lambda _: self._recall(self._input.auto_up))
        keys.add("down")(lambda _: self._recall(self._input.auto_down))
        keys.add("escape", eager=True)(lambda _: self._escape())
        keys.add("c-r")(lambda _: self._talk.resume())
        keys.add("c-g")(lambda _: self._talk.respond())
        keys.add("pageup")(lambda _: self._scroll(1))
        keys.add("pagedown")(lambda _: self._scroll(-1))
        keys.add("c-c")(lambda _: self._interrupt())
        keys.add("<sigint>")(lambda _: self._interrupt())
        keys.add("c-d", filter=is_empty)(lambda event: event.app.exit())
        return keys


class _Lanes(UIControl):
    """The transcript, in the size of the window."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    def create_content(self, width: int, height: int) -> UIContent:
        lines = self._terminal.lines(width, height)
        return UIContent(get_line=lambda i: list(lines[i]), line_count=len(lines), show_cursor=False)
