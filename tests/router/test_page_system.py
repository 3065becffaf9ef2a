"""What the page tells of the system: workers that died, replays, refusals, transfers, totals; and that all can read it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from tests.browser import TIMEOUT_MS, opened, running_browser

from .cluster import Cluster, cluster

expect.set_options(timeout=TIMEOUT_MS)
PREFILL, DECODE = "baton-prefill-6d8f7c9b4-x7k2p", "baton-decode-5f4b8-qq9zt"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as started:
        yield started


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    workers: list[dict[str, Any]] = [
        {"worker_id": PREFILL, "legs": ["prefill"]},
        {"worker_id": DECODE, "legs": ["decode"]},
    ]
    with cluster(tmp_path_factory.mktemp("page"), workers, path="remote") as made:
        yield made


def ask(made: Cluster, **body: Any) -> httpx.Response:
    prompt = [20 + i % 60 for i in range(40)]
    return httpx.post(f"{made.url}/v1/completions", json={"prompt": prompt, "max_tokens": 5} | body)


def rows(page: Page, state: str) -> Locator:
    return page.locator(f"#requests li[data-state={state}]")


def test_a_worker_that_died_stays_in_red_and_its_request_is_seen_to_go_on(tmp_path: Path, browser: Browser) -> None:
    # the second one reads slowly, so that the replay is seen
    dying, other = {"worker_id": "d0", "die_after_tokens": 5}, {"worker_id": "d1", "prefill_rate": 1.5}
    with (
        cluster(tmp_path, [dying, other], policy="round-robin") as made,
        opened(browser, made.url, reduced_motion="no-preference") as page,
    ):
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Max tokens").fill("30")
        page.get_by_role("textbox", name="Message").fill("hello")
        page.keyboard.press("Enter")
        answer = page.get_by_role("article", name="Answer")
        bar, stripes = answer.locator(".moving .track span"), page.locator("#requests .replaying")
        expect(answer.locator(".moving")).to_contain_text("decode lost: the answer goes on at another worker")
        expect(stripes).to_have_count(1)  # a line has no height, so to the browser it is never visible
        moves = "moving => getComputedStyle(moving).animationName"
        assert (bar.evaluate(moves), stripes.evaluate(moves)) == ("along", "stripes")
        expect(rows(page, "running")).to_contain_text("replaying")

        lost = page.locator("tr.lost")
        expect(lost).to_have_attribute("data-worker", "d0")
        expect(lost).to_contain_text("1 request went on elsewhere")
        assert "died " in lost.inner_text()
        assert "ago" in lost.inner_text() or "now" in lost.inner_text()
        red, green, _ = lost.locator("b").evaluate("each => getComputedStyle(each).color.match(/[0-9]+/g).map(Number)")
        assert red > 2 * green

        expect(answer.locator(".facts")).to_contain_text("decode lost, went on at d1")
        expect(answer.locator(".facts")).to_contain_text("30 tokens")
        expect(answer.locator(".moving")).to_be_hidden()
        expect(stripes).to_have_count(0)
        expect(rows(page, "finished")).to_contain_text("1 replay")
        expect(page.locator(".failures")).to_contain_text("1 replays")
        page.reload()
        expect(lost).to_contain_text("died")


def test_refused_requests_are_listed_with_time_and_state_and_joined_while_alike(
    pair: Cluster, browser: Browser
) -> None:
    with opened(browser, pair.url) as page:
        ask(pair).raise_for_status()
        for _ in range(3):
            assert ask(pair, max_tokens=100_000).status_code == 400
        assert ask(pair, model="another").status_code == 404
        newest, before = rows(page, "refused").first, rows(page, "refused").nth(1)
        expect(newest).to_contain_text("model not found")
        expect(newest).to_contain_text("404")
        expect(before).to_contain_text("× 3")
        expect(before).to_contain_text("context length exceeded")
        before.get_by_role("button").click()
        expect(before).to_contain_text("Refused 3 times, from")
        expect(rows(page, "finished").first).to_contain_text("5 out")
        expect(page.locator(".failures [data-kind=refused]")).to_contain_text("refused")


def test_the_role_is_said_before_a_name_that_is_cut(pair: Cluster, browser: Browser) -> None:
    with opened(browser, pair.url) as page:
        ask(pair).raise_for_status()
        route = rows(page, "finished").first.locator(".route")
        expect(route).to_have_text("prefill …-x7k2p → decode …-qq9zt")
        expect(route.locator("b").first).to_have_attribute("title", PREFILL)


def test_transfers_are_shown_for_each_pair_with_bytes_and_time(pair: Cluster, browser: Browser) -> None:
    with opened(browser, pair.url) as page:
        ask(pair, prompt=[90, *range(20, 60)]).raise_for_status()
        transfers = page.get_by_role("region", name="KV transfers")
        expect(transfers.get_by_role("rowheader")).to_have_text(f"{PREFILL} → {DECODE}")
        expect(transfers.get_by_role("cell").first).to_contain_text("1 B in 10 ms")


def test_totals_are_of_the_last_minute_and_their_curves_of_fifteen(pair: Cluster, browser: Browser) -> None:
    with opened(browser, pair.url) as page:
        ask(pair).raise_for_status()
        totals = page.get_by_role("region", name="Last minute")
        for title in ("Requests/s", "Tokens/s", "First token", "Gap of tokens", "In 15 minutes"):
            expect(totals.get_by_text(title, exact=True)).to_be_visible()
        expect(totals).to_contain_text("p99")
        pictures = totals.get_by_role("img")
        expect(pictures).to_have_count(5)
        for line in totals.locator(".line-0").all():  # the router's next point comes within five seconds
            expect(line).to_have_attribute("d", re.compile(r".{9}"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_its_ground(pair: Cluster, browser: Browser, scheme: str) -> None:
    with opened(browser, pair.url, color_scheme=scheme) as page:
        ask(pair).raise_for_status()
        assert ask(pair, model="another").status_code == 404
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Max tokens").fill("5")
        page.get_by_role("textbox", name="Message").fill("hello")
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Regenerate")).to_be_visible()
        expect(rows(page, "finished").first).to_be_visible()
        assert page.evaluate(_FAINT) == []


def test_whoever_wants_no_motion_sees_none(pair: Cluster, browser: Browser) -> None:
    with opened(browser, pair.url, reduced_motion="reduce") as page:
        assert (
            page.evaluate(
                """() => {
                const track = document.createElement("div");
                track.className = "track";
                track.append(document.createElement("span"));
                document.body.append(track);
                return getComputedStyle(track.firstChild).animationName;
            }"""
            )
            == "none"
        )


def test_every_control_has_a_name(pair: Cluster, browser: Browser) -> None:
    with opened(browser, pair.url) as page:
        page.get_by_role("button", name="Settings").click()
        page.get_by_role("button", name="History").click()
        expect(page.get_by_role("status")).to_have_text("Ready")
        nameless = page.evaluate(
            """() => [...document.querySelectorAll("button, input, select, textarea")]
                .filter((each) => !(each.textContent.trim() && each.localName === "button")
                    && !each.labels?.length && !each.getAttribute("aria-label"))
                .map((each) => each.outerHTML)"""
        )
        assert nameless == []


_FAINT = """() => {
    const parse = (color) => { const [r, g, b, a = 1] = color.match(/[0-9.]+/g).map(Number); return { rgb: [r, g, b], a }; };
    const light = ([r, g, b]) => {
        const [R, G, B] = [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * R + 0.7152 * G + 0.0722 * B;
    };
    const ground = (node) => {
        for (; node; node = node.parentElement) {
            const { rgb, a } = parse(getComputedStyle(node).backgroundColor);
            if (a === 1) return rgb;
        }
        return [255, 255, 255];
    };
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const faint = [];
    while (texts.nextNode()) {
        const node = texts.currentNode.parentElement;
        if (!texts.currentNode.data.trim() || !node.checkVisibility() || node.closest("svg, option, script")) continue;
        const [a, b] = [light(parse(getComputedStyle(node).color).rgb), light(ground(node))].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 4.5) faint.push(`${ratio.toFixed(2)} ${texts.currentNode.data.slice(0, 40)}`);
    }
    return faint;
}"""
"""Texts whose contrast is below 4.5, as WCAG 2 counts it."""
