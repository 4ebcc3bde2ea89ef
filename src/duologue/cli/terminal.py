"""The full-screen chat: type while the answer is being written. Keys in, a `Transcript` on the screen."""

import asyncio
from typing import Any

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.layout import BufferControl, FormattedTextControl, HSplit, Layout, VSplit, Window
from prompt_toolkit.styles import Style

from duologue.cli.transcript import Transcript
from duologue.live import Live

PAUSE_S = 0.35  # without a key for so long, what is typed so far is a partial

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
    }
)
KEYS = "Enter end · Esc stop · ^R resume · ^G answer now · ^C quit"


class Terminal:
    """One conversation on the screen."""

    def __init__(self, live: Live, title: str, **application: Any) -> None:
        self._live = live
        self._title = title
        self._transcript = Transcript()
        self._num_utterances = 0
        self._is_open = False  # whether the utterance in the input line has begun
        self._pause: asyncio.TimerHandle | None = None
        self._input = Buffer(multiline=False, on_text_changed=self._typed)
        self._application: Application[None] = Application(
            layout=Layout(self._layout()),
            key_bindings=self._keys(),
            style=STYLE,
            full_screen=True,
            mouse_support=False,
            refresh_interval=0.1,
            **application,
        )
        self._application.ttimeoutlen = 0.05  # Esc alone is a key here

    async def run(self) -> None:
        """Talk until the user quits. Raises `EngineError` if the backend fails."""
        telling = asyncio.create_task(self._tell())
        try:
            await self._application.run_async()
        finally:
            telling.cancel()
            results = await asyncio.gather(telling, return_exceptions=True)
        if isinstance(results[0], Exception):
            raise results[0]

    async def _tell(self) -> None:
        try:
            async for event in self._live.events():
                self._transcript.tell(event)
                self._application.invalidate()
        except Exception:
            self._application.exit()
            raise

    def _layout(self) -> HSplit:
        prompt = Window(FormattedTextControl([("class:prompt", "you> ")]), width=5, dont_extend_width=True)
        line = Window(BufferControl(self._input), wrap_lines=True)
        return HSplit(
            [
                Window(FormattedTextControl(self._lines), wrap_lines=False),
                Window(FormattedTextControl(self._status), height=2, style="class:status"),
                VSplit([prompt, line], height=1),
            ]
        )

    def _lines(self) -> StyleAndTextTuples:
        size = self._application.output.get_size()
        out: StyleAndTextTuples = []
        for line in self._transcript.lines(size.columns, max(1, size.rows - 3)):
            out += line
            out.append(("", "\n"))
        return out

    def _status(self) -> StyleAndTextTuples:
        session = self._live.session
        text = f" {session.phase.value:9}"
        decided = self._transcript.last_decision
        if decided is not None:
            shares = "  ".join(f"{state} {p:.2f}" for state, p in decided.decision.probabilities)
            text += f" {shares}   decided in {(decided.at - decided.heard_at) * 1000:.0f} ms"
        width = self._application.output.get_size().columns
        return [("", text.ljust(width)[:width] + "\n"), ("", f" {self._title} · {KEYS}"[:width])]

    # ------------------------------------------------------------------ the input line is an utterance that grows

    @property
    def _utterance(self) -> str:
        return f"typed-{self._num_utterances}"

    def _typed(self, _: Buffer) -> None:
        if self._pause is not None:
            self._pause.cancel()
        if not self._is_open and self._input.text:
            self._is_open = True
            self._live.hear("", utterance=self._utterance)  # the onset
        if self._is_open:
            self._pause = asyncio.get_running_loop().call_later(PAUSE_S, self._partial)

    def _partial(self) -> None:
        if self._is_open:
            self._live.hear(self._input.text, utterance=self._utterance)

    def _end(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        if self._is_open:
            self._live.hear(self._input.text, utterance=self._utterance, final=True)
            self._is_open = False
            self._num_utterances += 1
        self._input.reset()

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()
        keys.add("enter")(lambda _: self._end())
        keys.add("escape", eager=True)(lambda _: self._live.stop())
        keys.add("c-r")(lambda _: self._live.resume())
        keys.add("c-g")(lambda _: self._live.respond())
        keys.add("c-c")(lambda event: event.app.exit())
        keys.add("c-d")(lambda event: event.app.exit())
        return keys
