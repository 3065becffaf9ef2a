"""The page against a real deployment: a question is asked, answered, and seen on the workers and the timeline."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect
from tests.browser import TIMEOUT_MS, opened, running_browser
from tests.cluster import MODEL, Cluster

expect.set_options(timeout=TIMEOUT_MS)
QUESTION = "which workers read and write this? " * 4


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as started:
        yield started


def test_a_question_is_answered_and_its_way_through_the_pair_is_drawn(cluster: Cluster, browser: Browser) -> None:
    said = (
        cluster.client("1p1d")
        .chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": QUESTION.strip()}], max_tokens=24, temperature=0
        )
        .choices[0]
        .message.content
    )
    assert said
    with opened(browser, cluster.routers["1p1d"].url) as page:
        expect(page.get_by_role("status")).to_have_text("Ready")
        workers = page.get_by_role("table")
        expect(workers.get_by_role("rowheader", name="Prefill reads prompts")).to_be_visible()
        expect(workers.get_by_role("rowheader", name="p0", exact=True)).to_be_visible()
        expect(workers.get_by_role("rowheader", name="d0 both legs", exact=True)).to_have_count(2)  # under each of them

        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Temperature").fill("0")
        page.get_by_label("Max tokens").fill("24")
        page.get_by_role("textbox", name="Message").fill(QUESTION.strip())
        page.keyboard.press("Enter")
        answer = page.get_by_role("article", name="Answer")
        facts = answer.locator(".facts")
        expect(facts).to_contain_text("p0 → d0 · first token")
        expect(facts).to_contain_text("cached")
        assert answer.locator("p").first.text_content() == said

        row = page.locator("#requests li").first
        expect(row).to_contain_text("yours")
        expect(row).to_have_attribute("data-state", "finished")
        expect(row.get_by_role("button")).to_contain_text("p0 → d0")
        drawn = row.locator("rect[data-kind]").evaluate_all(
            "bars => bars.map(bar => [bar.dataset.kind, bar.getBoundingClientRect().width > 0])"
        )
        kinds = [kind for kind, _ in drawn]
        assert {"queue", "prefill", "decode"} <= set(kinds)
        assert all(is_seen for _, is_seen in drawn)
        row.get_by_role("button").click()
        shown = row.get_by_role("row").filter(has_text="prefill").first
        expect(shown).to_contain_text("p0")
        expect(row.get_by_role("row").filter(has_text="KV transfer")).to_contain_text("d0")
        expect(row.get_by_role("row").filter(has=page.get_by_text("decode", exact=True))).to_contain_text("d0")
        row.get_by_role("button", name="Why these workers?").click()
        expect(row).to_contain_text("p0 → d0 ✓")
        transfers = page.get_by_role("region", name="KV transfers")
        expect(transfers.get_by_role("rowheader", name="p0 → d0")).to_be_visible()
        expect(transfers.get_by_role("cell").first).to_have_text(re.compile(r"[0-9.]+ kB in [0-9.]+ m?s · \d+ tokens"))
