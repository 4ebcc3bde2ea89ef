"""The page of a server in headless Chromium, for tests: `async with browsing(server) as page`."""

import asyncio
import contextlib
import importlib.util
import os
import shutil
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving import Running

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = os.environ.get("DUOLOGUE_CHROMIUM") or next((path for name in _NAMES if (path := shutil.which(name))), None)
ARTEFACTS = Path(__file__).parents[2] / "artefacts"
QUICK = "?rate=20&pause=2000"  # reads fast, and does not take a slow machine's keys for pauses
WIDE, PHONE = (1280, 860), (390, 844)


def missing() -> str | None:
    """Why there is no browser to test with; None if there is one."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed"
    if CHROMIUM is None:
        return "there is no Chromium (Debian: apt-get install chromium), nor does DUOLOGUE_CHROMIUM name one"
    return None


class Browsing:
    """A page that is shown, and what it complained of."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("console", lambda message: message.type in ("error", "warning") and self._complain(message.text))
        page.on("pageerror", lambda error: self._complain(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        self.requests: list[str] = []

    def _complain(self, text: str) -> None:
        self.complaints.append(text)

    async def say(self, text: str, *, ends: bool = True, delay: float = 5) -> None:
        """Type it, with `delay` ms from key to key; Enter ends it."""
        await self.page.locator("#input").press_sequentially(text, delay=delay)
        if ends:
            await self.page.locator("#input").press("Enter")

    async def heard(self, words: int, *, view: int = 0) -> None:
        """Until so many words of answers were heard."""
        code = "([words, view]) => (heard(view).match(/\\S+/g) ?? []).length >= words"
        await self.page.wait_for_function(code, arg=[words, view])

    async def heard_text(self, view: int = 0) -> str:
        """All that was heard of answers, as the page shows it."""
        return str(await self.page.evaluate("view => heard(view)", view))

    async def shows(self, selector: str, text: str | None = None) -> Any:
        """Until there is such an element, with such text in it."""
        found = self.page.locator(selector, has_text=text).first
        await found.wait_for(state="visible")
        return found

    async def picture(self, name: str) -> None:
        """Keep what it looks like."""
        ARTEFACTS.mkdir(exist_ok=True)
        await self.page.screenshot(path=ARTEFACTS / f"{name}.png")


_FAKES = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
HEARD = """
window.heard = (view) => [...document.querySelectorAll(".transcript")[view].querySelectorAll(".heard")]
  .map((part) => part.textContent).join("");
"""


@contextlib.asynccontextmanager
async def browsing(
    server: "Running",
    query: str = QUICK,
    *,
    size: tuple[int, int] = WIDE,
    dark: bool = False,
    quiet: bool = True,
    microphone: Path | None = None,
) -> AsyncIterator[Browsing]:
    """The page at `query` of `server`. With `quiet`, it must not complain on its console. What `microphone` hears is
    in that WAV file, from the moment at which it is opened.
    """
    from playwright.async_api import async_playwright

    async with async_playwright() as play:
        flags = [] if microphone is None else [*_FAKES, f"--use-file-for-fake-audio-capture={microphone}%noloop"]
        chromium = await play.chromium.launch(executable_path=CHROMIUM, args=flags)
        context = await chromium.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light"
        )
        context.set_default_timeout(60_000)  # for a busy machine; nothing waits for so long otherwise
        await context.add_init_script(HEARD)
        browsing = Browsing(await context.new_page())
        try:
            await browsing.page.goto(server.http + "/" + query)
            yield browsing
        finally:
            await chromium.close()
        if quiet:
            assert browsing.complaints == []


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run it in a loop of its own."""
    asyncio.run(asyncio.wait_for(test, 240))
