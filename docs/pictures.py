"""Take the pictures of the page and of `baton top`: `python -m docs.pictures`, from a checkout with Chromium.

Starts the demo model on a prefill and two decode workers, sends requests of all kinds for a while, and looks at the page:
light, dark, on a phone, and after a decode worker was killed. Then at `baton top`, on a terminal of 80 columns.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
from docs import terminal
from playwright.sync_api import Browser, Page
from tests.browser import opened, running_browser
from tests.processes import BatonProcess, eventually, free_ports

from baton.top import THE_START, Observer, frame

IMAGES = Path(__file__).parent / "images"
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
LOAD_S = 100
"""Before the first picture, so that the curves have a course."""
ANIMALS = ("a miller", "an owl", "a sailor", "the old baker", "two sisters", "a fox")


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with deployment() as (router, workers), load(router.url) as is_over:
        is_over.wait(LOAD_S)
        with running_browser() as browser:
            take(browser, router.url, "page-desktop", color_scheme="light", viewport=DESKTOP)
            take(browser, router.url, "page-dark", color_scheme="dark", viewport=DESKTOP)
            take(browser, router.url, "page-phone", viewport=PHONE, device_scale_factor=1.5)
            take(browser, router.url, "page-dead-worker", workers, color_scheme="light", viewport=DESKTOP)
        (IMAGES / "top.svg").write_text(asyncio.run(top(router.url)))


@contextlib.contextmanager
def deployment() -> Iterator[tuple[BatonProcess, dict[str, BatonProcess]]]:
    """Start workers and a router that knows them; give both."""
    with tempfile.TemporaryDirectory() as name:
        folder, workers, known = Path(name), {}, []
        for worker_id, leg in (("p0", "prefill"), ("d0", "decode"), ("d1", "decode")):
            port, control = free_ports(2)
            flags = ("--worker-id", worker_id, "--port", str(port), "--control-port", str(control))
            workers[worker_id] = BatonProcess([leg, *flags], folder / f"{worker_id}.log", port).start()
            known += ["--worker", f"tcp://127.0.0.1:{control}"]
        (port,) = free_ports(1)
        arguments = ["router", "--port", str(port), "--path", "remote", *known]
        router = BatonProcess(arguments, folder / "router.log", port).start()
        try:
            for process in (*workers.values(), router):
                process.wait_ready()
            eventually(lambda: len(httpx.get(f"{router.url}/debug/workers").json()["workers"]) == 3, "all are seen")
            yield router, workers
        finally:
            for process in (router, *workers.values()):
                process.kill()


@contextlib.contextmanager
def load(url: str) -> Iterator[threading.Event]:
    """Send requests until the block ends: most are answered, every eighth is refused."""
    is_over = threading.Event()

    def send() -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            for i in itertools.count():
                if is_over.wait(0.2 + 0.6 * (i % 7 == 0)):
                    return
                text = f"Request {i}. Tell me a story about {ANIMALS[i % len(ANIMALS)]}. " * (1 + i % 5)
                body = {"messages": [{"role": "user", "content": text}], "max_tokens": 24 + 24 * (i % 4)}
                client.post("/v1/chat/completions", json=body | ({"max_tokens": 10**6} if i % 8 == 5 else {}))

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield is_over
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def take(
    browser: Browser, url: str, name: str, dying: Mapping[str, BatonProcess] | None = None, **context: object
) -> None:
    """Look at the page after two questions; the worker that answers the second one dies meanwhile, if any shall."""
    with opened(browser, url, **context) as page:
        page.locator("#status[data-state=ready]").wait_for()
        ask(page, "What is the capital of France?")
        page.locator(".again").wait_for()
        ask(page, "Tell me a story about a miller.")
        if dying is not None:
            facts = page.locator("#log .answer:last-child .facts", has_text="→").text_content()
            dying[str(facts).split(" ")[2]].kill()  # "p0 → d1 · …"
            page.locator("tr.lost").first.wait_for()
            page.locator("#requests .tag.warn").first.wait_for()
        page.locator(".again").wait_for()
        page.wait_for_timeout(3500)  # the totals are asked for every third second
        page.screenshot(path=IMAGES / f"{name}.png")


async def top(url: str) -> str:
    """Draw one frame of `baton top`."""
    observer = Observer(url, None)
    try:
        before = await observer.look()
        await asyncio.sleep(2)  # speeds are of this time
        return terminal.picture("baton top", frame(url, before, await observer.look(), THE_START))
    finally:
        await observer.close()


def ask(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Message").fill(text)
    page.keyboard.press("Enter")


if __name__ == "__main__":
    main()
