"""The page paints at once and keeps up with events.

Claim: on loopback the first paint takes less than 1 s, and 60 events a second are drawn without dropped frames.

Why: the page is 100 kB, with no build step and nothing loaded from elsewhere. Events only change a state, which is
drawn once per frame, and only changed parts are rendered again.

How: headless Chromium on a real server: the one at `--url`, otherwise one around a scripted model, which is fast enough
for any rate, in a process of its own. Every character is a token, so an answer read at 10 words a second makes 60
events a second. A user types meanwhile. Frames are counted by `requestAnimationFrame`; a frame is dropped if the next
one comes more than one and a half frames later. The same is counted while nothing happens, because a busy machine drops
frames without the page. The CPU time of the page's own thread, as Chromium reports it, does not depend on that. First
paint is Chromium's own measure, in several fresh browsers.
"""

import asyncio
import itertools
import multiprocessing
import shutil
import statistics
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import measuring

from duologue.evaluation.quantiles import percentile, summary

FRAME_MS = 1000 / 60
COUNT = """
(seconds) => new Promise((done) => {
  const times = [];
  const until = performance.now() + seconds * 1000;
  const next = (at) => {
    times.push(at);
    if (at < until) requestAnimationFrame(next);
    else done(times);
  };
  requestAnimationFrame(next);
})
"""
PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
WORDS = ("mhm", "what about the", "aside")  # none of these ends the answer


def serve(ready: Connection) -> None:
    """A server around the scripted model of the tests, run in a process of its own."""
    sys.path.insert(0, str(measuring.ROOT / "tests" / "support"))
    from serving import scripted_model, serving

    async def run() -> None:
        answers = {"go": " ".join(f"word{i} and more;" for i in range(600))}
        async with serving(scripted_model(answers, max_length=1 << 15), max_answer=12_000, context=1 << 15) as server:
            ready.send(server.http)
            await asyncio.Event().wait()

    asyncio.run(run())


async def typing(page: Any, seconds: float) -> None:
    """Type for so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for word in WORDS:
            await page.locator("#input").press_sequentially(word, delay=60)
            await asyncio.sleep(0.4)
            await page.locator("#input").press("Enter")


async def num_events(page: Any) -> int:
    """Events so far, as the page counts them; the list is closed again, because it costs time."""
    await page.locator("#log summary").click()
    await page.wait_for_timeout(100)
    text = await page.locator("#num-events").inner_text()
    await page.locator("#log summary").click()
    return int(text.split()[0])


async def measure(url: str, args: Any) -> dict[str, Any]:
    """First paints, then frames while events arrive."""
    from playwright.async_api import async_playwright

    paints = []
    async with async_playwright() as play:
        for _ in range(args.repeats):
            chromium = await play.chromium.launch(executable_path=args.chromium)
            page = await chromium.new_page()
            await page.goto(url, wait_until="load")
            await page.wait_for_function(PAINT)
            paints.append(await page.evaluate(PAINT))
            await chromium.close()
        chromium = await play.chromium.launch(executable_path=args.chromium)
        page = await chromium.new_page(viewport={"width": 1280, "height": 860})
        await page.goto(f"{url}?rate={args.rate:g}")
        idle = await page.evaluate(COUNT, 3)
        await page.locator("#input").press_sequentially(args.say)
        await page.locator("#input").press("Enter")
        await page.wait_for_timeout(1500)
        session = await page.context.new_cdp_session(page)
        await session.send("Performance.enable", {"timeDomain": "threadTicks"})
        first, began, before = await num_events(page), time.monotonic(), await busy(session)
        typist = asyncio.create_task(typing(page, args.seconds))
        times = await page.evaluate(COUNT, args.seconds)
        await typist
        after, took = await busy(session), time.monotonic() - began
        last = await num_events(page)
        await chromium.close()
    gaps = [b - a for a, b in itertools.pairwise(times)]
    return {
        "first_paint_ms": summary(paints, 1),
        "events_per_s": round((last - first) / took, 1),
        "frames": {**frames(gaps), "idle_page": frames([b - a for a, b in itertools.pairwise(idle)])},
        "page_ms_per_frame": {name: round(1000 * (after[name] - before[name]) / took / 60, 3) for name in after},
    }


async def busy(session: Any) -> dict[str, float]:
    """CPU seconds of the page: in total, and for scripts, layout and style."""
    found = {row["name"]: row["value"] for row in (await session.send("Performance.getMetrics"))["metrics"]}
    return {name: found[f"{name}Duration"] for name in ("Task", "Script", "Layout", "RecalcStyle")}


def frames(gaps: list[float]) -> dict[str, float]:
    """How many frames were drawn, and how many were dropped."""
    dropped = sum(round(gap / FRAME_MS) - 1 for gap in gaps if gap > 1.5 * FRAME_MS)
    return {
        "drawn": len(gaps),
        "dropped": dropped,
        "dropped_share": round(dropped / (len(gaps) + dropped), 5),
        "median_ms": round(statistics.median(gaps), 2),
        "p99_ms": round(percentile(gaps, 99), 2),
        "longest_ms": round(max(gaps), 2),
    }


def main() -> int:
    """Run it."""
    parser = measuring.arguments(__doc__, with_model=False)
    parser.add_argument("--url", help="a running server (default: one of its own)")
    parser.add_argument("--say", default="go", help="the question, which should get a long answer")
    parser.add_argument("--rate", type=float, default=10, help="words read per second")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--repeats", type=int, default=5, help="of the first paint")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser")
    args = parser.parse_args()
    measurement = measuring.begin(args)
    server = None
    url = args.url
    if url is None:
        mine, theirs = multiprocessing.Pipe()
        server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
        server.start()
        theirs.close()  # so that `recv` fails if the server ends
        url = mine.recv() + "/"
    try:
        found = asyncio.run(measure(url, args))
    finally:
        if server is not None:
            server.terminate()
            server.join()
    counted = found["frames"]
    rows = [
        ("first paint, p50 and most (ms)", f"{found['first_paint_ms']['p50']}, {found['first_paint_ms']['max']}"),
        ("events a second", found["events_per_s"]),
        ("frames drawn, dropped", f"{counted['drawn']}, {counted['dropped']}"),
        ("the same while nothing happens", f"{counted['idle_page']['drawn']}, {counted['idle_page']['dropped']}"),
        ("between two frames, p99 and most (ms)", f"{counted['p99_ms']}, {counted['longest_ms']}"),
        ("the page's thread, of 16.7 ms a frame (ms)", found["page_ms_per_frame"]["Task"]),
    ]
    measuring.finish(args, measurement, found, ("", "measured"), rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
