"""The page in a real browser, in front of fake workers: keys, text as text, stop, errors, narrow screens."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect
from tests.browser import TIMEOUT_MS, opened, running_browser

from baton.router.page.routes import CSP
from baton.text import Tokenizer

from .cluster import Cluster, cluster, wait_until
from .tokenizer_folder import make_tokenizer_folder

expect.set_options(timeout=TIMEOUT_MS)
KEY = "a-key-of-the-page"
MARKUP = '<img/src=x/onerror="document.title=1"><b>bold</b>&amp;'
SERVED = ("/", "/page/main.js", "/page/page.css", "/page/chat.css", "/page/system.css", "/page/icon.svg")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as started:
        yield started


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    workers: list[dict[str, Any]] = [
        {"worker_id": "p0", "legs": ["prefill"]},
        {"worker_id": "d0", "legs": ["decode"], "step_ms": 10.0},
    ]
    with cluster(tmp_path_factory.mktemp("page"), workers, path="remote") as made:
        yield made


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("page")
    says = Tokenizer(str(make_tokenizer_folder(folder / "says"))).encode(MARKUP, add_special_tokens=False)
    workers = [{"worker_id": "d0", "legs": ["decode"], "script_ids": list(says), "answer_len": len(says) + 1}]
    with cluster(folder, workers, api_key=(KEY,)) as made:
        yield made


def ask(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Message").fill(text)
    page.keyboard.press("Enter")


def test_the_files_are_served_to_everybody_and_load_nothing_from_elsewhere(guarded: Cluster) -> None:
    for path in SERVED:
        answer = httpx.get(f"{guarded.url}{path}").raise_for_status()
        assert answer.headers["content-security-policy"] == CSP
        assert answer.headers["x-content-type-options"] == "nosniff"
    html = httpx.get(f"{guarded.url}/").text
    for link in re.findall(r'(?:src|href)="([^"]+)"', html):
        assert httpx.get(f"{guarded.url}/{link}").status_code == 200, link
    assert not re.search(r"style=|<style|<script(?![^>]*src=)|\son\w+=|//", html.replace("<!doctype", ""))


@pytest.mark.parametrize("path", ["/page/", "/page/no.js", "/page/routes.py", "/page/..%2fapp.py", "/page"])
def test_nothing_else_of_the_package_is_served(guarded: Cluster, path: str) -> None:
    assert httpx.get(f"{guarded.url}{path}").status_code == 404


def test_the_key_is_asked_for_once_and_a_wrong_one_is_said(guarded: Cluster, browser: Browser) -> None:
    assert httpx.get(f"{guarded.url}/debug/requests").status_code == 401
    assert httpx.get(f"{guarded.url}/debug/workers").status_code == 401
    with opened(browser, guarded.url) as page:
        dialog = page.get_by_role("dialog", name="API key")
        expect(dialog).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_role("status")).to_have_text("API key needed")
        page.get_by_role("button", name="Enter API key").click()
        dialog.get_by_label("Key").fill("a-wrong-key-indeed")
        page.keyboard.press("Enter")
        expect(dialog).to_contain_text("The API key is not known here.")
        dialog.get_by_label("Key").fill(KEY)
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_have_text("Ready")
        expect(dialog).to_be_hidden()
        page.reload()
        expect(page.get_by_role("status")).to_have_text("Ready")
        expect(dialog).to_be_hidden()
        assert page.evaluate("document.cookie") == ""
        assert KEY not in page.evaluate("JSON.stringify({...localStorage})")


def test_what_a_model_writes_is_shown_as_text_whatever_it_is(guarded: Cluster, browser: Browser) -> None:
    with opened(browser, guarded.url) as page:
        page.get_by_label("Key", exact=True).fill(KEY)
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_have_text("Ready")
        ask(page, MARKUP)
        answer = page.get_by_role("article", name="Answer")
        expect(answer.locator("p").first).to_have_text(MARKUP)
        expect(page.get_by_role("article", name="You")).to_have_text(MARKUP)
        expect(answer).to_contain_text("cached")
        assert page.locator("#log img, #log b").count() == 0
        assert page.title() == "Baton · tiny"


def test_an_answer_is_stopped_and_asked_for_again(pair: Cluster, browser: Browser) -> None:
    with opened(browser, pair.url) as page:
        ask(page, "write for a long time")
        answer = page.get_by_role("article", name="Answer")
        expect(answer.locator(".facts")).to_contain_text("p0 → d0 · first token")
        page.get_by_role("button", name="Stop").click()
        expect(answer.locator(".facts")).to_contain_text("stopped")
        wait_until(lambda: not pair.state.dispatcher.flows)
        expect(page.locator("[data-state=cancelled]").first).to_contain_text("yours")
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Max tokens").fill("5")
        page.get_by_role("button", name="Regenerate").click()
        expect(answer.locator(".facts")).to_contain_text("5 tokens")
        expect(answer).to_have_count(1)


def test_who_asks_before_the_models_are_known_is_answered_by_the_first(pair: Cluster, browser: Browser) -> None:
    with opened(browser, pair.url) as page:
        page.route("**/v1/models", lambda route: route.abort())
        page.reload()
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Max tokens").fill("3")
        ask(page, "hello")
        expect(page.get_by_role("article", name="Answer").locator(".facts")).to_contain_text("3 tokens")


def test_settings_are_sent_and_errors_are_shown_as_the_api_says_them(pair: Cluster, browser: Browser) -> None:
    with opened(browser, pair.url) as page:
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("System prompt").fill("be brief")
        page.get_by_label("Temperature").fill("0.5")
        page.get_by_label("Max tokens").fill("100000")
        with page.expect_request("**/v1/chat/completions") as sent:
            ask(page, "hello")
        body = sent.value.post_data_json
        assert body is not None
        assert body["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
        assert (body["temperature"], body["max_tokens"], body["model"]) == (0.5, 100000, "tiny")
        expect(page.get_by_role("alert")).to_have_text(re.compile(r"400 · max_tokens=100000 is not valid: .*"))
        page.get_by_label("Max tokens").fill("3")
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_role("article", name="Answer").locator(".facts")).to_contain_text("3 tokens")


def test_a_router_that_is_away_is_waited_for(pair: Cluster, browser: Browser) -> None:
    with opened(browser, pair.url) as page:
        status = page.get_by_role("status")
        expect(status).to_have_text("Ready")
        page.context.set_offline(True)
        expect(status).to_have_text("Router gone, reconnecting…")
        page.context.set_offline(False)
        expect(status).to_have_text("Ready")


def test_a_page_without_a_worker_says_so(tmp_path: Path, browser: Browser) -> None:
    with cluster(tmp_path, []) as made, opened(browser, made.url) as page:
        expect(page.get_by_role("status")).to_have_text("No decode worker")
        expect(page.get_by_role("region", name="Workers")).to_contain_text("No worker is here.")
        expect(page.get_by_role("region", name="Last requests")).to_contain_text("No request yet.")


@pytest.mark.parametrize("width", [320, 390, 700, 1000])
def test_nothing_is_cut_off_on_a_narrow_screen(pair: Cluster, browser: Browser, width: int) -> None:
    with opened(browser, pair.url, viewport={"width": width, "height": 700}) as page:
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Max tokens").fill("4")
        ask(page, "hello")
        expect(page.locator("#requests li").first).to_contain_text("4 out")
        expect(page.locator(".failures")).to_contain_text("refused")
        assert too_wide(page) == []
        open_tab(page, "Workers")
        expect(page.get_by_role("rowheader", name="d0", exact=True)).to_be_visible()
        assert too_wide(page) == []
        open_tab(page, "Requests")
        page.locator("#requests li button").first.click()
        expect(page.get_by_role("cell", name="prefill", exact=True).first).to_be_visible()
        assert too_wide(page) == []


def open_tab(page: Page, name: str) -> None:
    tab = page.get_by_role("tab", name=name)
    if tab.count():  # on a wide screen all is shown
        tab.click()


def too_wide(page: Page) -> list[str]:
    """Name what is wider than its place."""
    found: list[str] = page.evaluate(
        """() => [...document.querySelectorAll("body, header, main, .tabs, .totals, .card, .workers, .requests, .chat, .system")]
            .filter((box) => box.scrollWidth > box.clientWidth).map((box) => box.className || box.tagName)"""
    )
    return found


def test_on_a_phone_chat_workers_and_requests_are_tabs(pair: Cluster, browser: Browser) -> None:
    with opened(browser, pair.url, viewport={"width": 390, "height": 800}) as page:
        chat, workers, requests = (page.get_by_role("tabpanel", name=name) for name in ("Chat", "Workers", "Requests"))
        expect(chat).to_be_visible()
        expect(workers).to_be_hidden()
        page.get_by_role("tab", name="Chat").focus()
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("tab", name="Workers")).to_be_focused()
        expect(workers).to_be_visible()
        expect(chat).to_be_hidden()
        page.keyboard.press("ArrowRight")
        expect(requests).to_be_visible()
        assert page.get_by_role("tab", selected=True).all_text_contents() == ["Requests"]
        page.set_viewport_size({"width": 1200, "height": 800})
        expect(page.get_by_role("tab")).to_have_count(0)
        expect(page.get_by_role("region", name="Chat")).to_be_visible()
        expect(page.get_by_role("region", name="Workers")).to_be_visible()


def test_everything_is_reached_by_keyboard_in_reading_order(pair: Cluster, browser: Browser) -> None:
    with opened(browser, pair.url) as page:
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Max tokens").fill("2")
        ask(page, "hello")
        expect(page.locator("#requests li").first).to_contain_text("2 out")
        page.get_by_role("button", name="Settings").focus()
        reached = []
        for _ in range(30):
            page.keyboard.press("Tab")
            reached.append(
                page.evaluate(
                    "(({id, name, className, tagName}) => id || name || className || tagName)(document.activeElement)"
                )
            )
            if reached[-1] == "row":
                break
        assert reached == [
            *("history-button", "new-chat", "system", "temperature", "top_p", "max_tokens", "seed", "stop", "link"),
            *("log", "link copy", "link again"),
            *("question", "send", "pause", "row"),
        ]
        row = page.locator("#requests li button").first
        page.keyboard.press("Enter")
        expect(row).to_have_attribute("aria-expanded", "true")
        expect(page.get_by_role("button", name="Why these workers?")).to_be_visible()
