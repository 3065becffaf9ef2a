"""What a model wrote, as the page shows it: Markdown as elements, and nothing of what hostile text asks for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Error, Page, expect
from tests.browser import TIMEOUT_MS, opened, running_browser

from baton.text import Tokenizer

from .cluster import Cluster, cluster
from .tokenizer_folder import make_tokenizer_folder

expect.set_options(timeout=TIMEOUT_MS)
ANSWER = """# Plan

Some *soft*, **strong** and `code <b>` text with a [link](https://example.com/a_(b)).

1. one
   - inner
2. two

| a | b |
|---|--:|
| 1 | **2** |

> quoted

```python
print("<script>alert(1)</script>")
```
<script>document.title = "script"</script><img src=x onerror="document.title='img'">
<svg/onload=document.title=1><iframe src="javascript:document.title=2"></iframe>
[click](javascript:document.title=3) ![x](https://elsewhere.example/p.png)
"""
TAGS = {
    *(
        "p",
        "h3",
        "h4",
        "h5",
        "h6",
        "hr",
        "blockquote",
        "ul",
        "ol",
        "li",
        "div",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
    ),
    *("pre", "code", "strong", "em", "del", "a", "span", "button"),
}
ATTRIBUTES = {
    *("class", "start", "data-align", "tabindex", "role", "aria-label", "href", "title", "target", "rel", "type")
}
HOSTILE = (
    "<script>pwned=1</script>",
    '<img src=x onerror="pwned=1">',
    "<svg><animate onbegin=pwned=1 attributeName=x>",
    "<a href='javascript:pwned=1'>x</a>",
    "[x](javascript:pwned=1)",
    "[x](JaVaScRiPt:pwned=1)",
    "[x](java\tscript:pwned=1)",
    "[x](&#106;avascript:pwned=1)",
    "[x]( javascript:pwned=1 'title')",
    "[x](data:text/html;base64,PHNjcmlwdD5wd25lZD0xPC9zY3JpcHQ+)",
    "[x](vbscript:msgbox)",
    "[x](file:///etc/passwd)",
    "[x](//elsewhere.example)",
    "[x](/v1/models)",
    '[x](https://e.example/"onmouseover="pwned=1)',
    "<javascript:pwned=1>",
    "<https://e.example/<script>pwned=1</script>>",
    "![x](https://elsewhere.example/p.png)",
    "[![x](javascript:pwned=1)](javascript:pwned=1)",
    "`<script>pwned=1</script>`",
    "```<script>\n<script>pwned=1</script>\n```",
    '```"><img src=x onerror=pwned=1>\nx\n```',
    "| <script>pwned=1</script> | b |\n|---|---|\n| [x](javascript:pwned=1) | <img src=x onerror=pwned=1> |",
    "# <img src=x onerror=pwned=1>",
    "> <img src=x onerror=pwned=1>\n- <img src=x onerror=pwned=1>",
    "**<img src=x onerror=pwned=1>**",
    '<!--><script>pwned=1</script>--><style>*{background:url("https://elsewhere.example")}</style>',
    "<template><script>pwned=1</script></template></p></div></article><form action=https://elsewhere.example>",
    "\u202e\u0000<script\u0000>pwned=1</script>",
)
OPENERS = (
    "*",
    "**a",
    "_a ",
    "`",
    "[",
    "[](",
    "[a](",
    "> ",
    "- ",
    "|",
    "~~",
    "\\",
    "h",
    "https://",
    "#",
    "<",
    "![",
    "*a **b ",
)
ENDLESS = (
    *(part * (60_000 // len(part)) for part in OPENERS),
    *("\n".join("  " * i + "- x" for i in range(300)), "> " * 300 + "x", "a|b\n-|-\n" + "|x" * 20_000),
    "_a_ " * 70_000,  # more elements than one call takes arguments
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as started:
        yield started


@pytest.fixture(scope="module")
def writing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A worker that answers everything with ANSWER."""
    folder = tmp_path_factory.mktemp("page")
    says = Tokenizer(str(make_tokenizer_folder(folder / "says"))).encode(ANSWER, add_special_tokens=False)
    workers: list[dict[str, Any]] = [{"worker_id": "d0", "script_ids": list(says), "answer_len": len(says) + 1}]
    with cluster(folder, workers) as made:
        yield made


def ask(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Message").fill(text)
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible()


def render(page: Page, text: str) -> dict[str, Any]:
    """Return the elements that the page makes of a text: tags, attributes, links, and what it reads."""
    made: dict[str, Any] = page.evaluate(
        """async (text) => {
            const { Markdown } = await import("./page/markdown.js");
            const node = document.createElement("div");
            document.body.append(node);
            new Markdown(node).show(text);
            const all = [...node.querySelectorAll("*")];
            const made = {
                tags: all.map((each) => each.localName),
                attributes: all.flatMap((each) => each.getAttributeNames()),
                links: all.filter((each) => each.href).map((each) => each.href),
                text: node.textContent,
            };
            node.remove();
            return made;
        }""",
        text,
    )
    return made


def test_markdown_is_shown_as_elements_and_hostile_parts_of_it_as_text(writing: Cluster, browser: Browser) -> None:
    with opened(browser, writing.url) as page:
        ask(page, "hello")
        answer = page.get_by_role("article", name="Answer")
        expect(answer.get_by_role("heading", name="Plan")).to_be_visible()
        expect(answer.locator("strong").first).to_have_text("strong")
        expect(answer.locator("p code")).to_have_text("code <b>")
        link = answer.get_by_role("link", name="link")
        expect(link).to_have_attribute("href", "https://example.com/a_(b)")
        expect(link).to_have_attribute("rel", "noopener noreferrer nofollow")
        expect(answer.locator("ol > li > ul > li")).to_have_text("inner")
        expect(answer.locator("ol > li")).to_have_count(2)
        expect(answer.get_by_role("cell", name="2")).to_have_attribute("data-align", "right")
        expect(answer.locator("blockquote")).to_have_text("quoted")
        expect(answer.locator("pre code")).to_have_text('print("<script>alert(1)</script>")')
        expect(answer).to_contain_text('<script>document.title = "script"</script><img src=x onerror=')
        expect(answer).to_contain_text("[click](javascript:document.title=3)")
        expect(answer.get_by_role("link", name="picture: x")).to_be_visible()
        assert answer.locator("script, img, svg, iframe").count() == 0
        assert page.title() == "Baton · tiny"
        page.reload()  # as it was kept: by the same way
        expect(page.get_by_role("article", name="Answer").locator("pre code")).to_be_visible()
        assert page.locator("#log").locator("script, img, svg, iframe").count() == 0
        assert page.title() == "Baton · tiny"


@pytest.fixture(scope="module")
def shown(writing: Cluster, browser: Browser) -> Iterator[Page]:
    with opened(browser, writing.url) as page:
        yield page
        assert page.evaluate("typeof pwned") == "undefined"


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_makes_more_than_the_elements_that_show_text(shown: Page, text: str) -> None:
    made = render(shown, text)
    assert set(made["tags"]) <= TAGS
    assert set(made["attributes"]) <= ATTRIBUTES
    assert all(link.startswith(("http://", "https://", "mailto:")) for link in made["links"])
    assert shown.evaluate("typeof pwned") == "undefined"


@pytest.mark.parametrize("text", ENDLESS, ids=[repr(text[:8]) for text in ENDLESS])
def test_text_that_opens_without_end_does_not_hang_the_page(shown: Page, text: str) -> None:
    assert len(render(shown, text)["text"]) <= len(text)


@pytest.mark.parametrize(
    ("text", "tags", "read"),
    [
        ("***both***", ["p", "strong", "em"], "both"),
        ("*a **b** c*", ["p", "em", "strong"], "a b c"),
        ("snake_case_name and 2 * 3 * 4", ["p"], "snake_case_name and 2 * 3 * 4"),
        ("``a`b``", ["p", "code"], "a`b"),
        ("\\*not\\*", ["p"], "*not*"),
        ("~~gone~~", ["p", "del"], "gone"),
        ("one\ntwo", ["p"], "one\ntwo"),
        ("see https://example.com/x.", ["p", "a"], "see https://example.com/x."),
        ("<mailto:a@example.com>", ["p"], "<mailto:a@example.com>"),
        ("- a\n- b\n\ntext", ["ul", "li", "li", "p"], "abtext"),
        ("1. a\n\n   more\n2. b", ["ol", "li", "p", "p", "li", "p"], "amoreb"),
        ("- a\n\t- b", ["ul", "li", "ul", "li"], "ab"),
        ("---", ["hr"], ""),
        ("a | b", ["p"], "a | b"),
        ("####### seven", ["p"], "####### seven"),
        ("```\nopen", ["div", "div", "span", "button", "pre", "code"], "textCopyopen"),
        ("&amp; &lt;", ["p"], "&amp; &lt;"),
    ],
)
def test_markdown_reads_as_it_is_meant(shown: Page, text: str, tags: list[str], read: str) -> None:
    made = render(shown, text)
    assert (made["tags"], made["text"]) == (tags, read)


def test_answers_and_code_are_copied_as_they_were_written(writing: Cluster, browser: Browser) -> None:
    with opened(browser, writing.url, permissions=["clipboard-read", "clipboard-write"]) as page:
        ask(page, "hello")
        page.get_by_role("button", name="Copy code").click()
        expect(page.get_by_role("button", name="Copy code")).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == 'print("<script>alert(1)</script>")'
        page.get_by_role("button", name="Copy answer").click()
        expect(page.get_by_role("button", name="Copy answer")).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == ANSWER


def test_chats_are_kept_in_the_browser_until_they_are_cleared(writing: Cluster, browser: Browser) -> None:
    with opened(browser, writing.url) as page:
        for text in ("first question", "second question"):
            ask(page, text)
            page.get_by_role("textbox", name="Message").fill("more")
            page.keyboard.press("Enter")
            expect(page.get_by_role("article", name="Answer")).to_have_count(2)
            expect(page.get_by_role("button", name="Regenerate")).to_be_visible()
            page.get_by_role("button", name="New chat").click()
            expect(page.get_by_text("Ask the model something.")).to_be_visible()
        page.reload()
        page.get_by_role("button", name="History").click()
        kept = page.locator("#chats li")
        expect(kept).to_have_count(2)
        expect(kept.first).to_contain_text("second question")
        kept.last.get_by_role("button").first.click()
        expect(page.get_by_role("article", name="You")).to_have_text(["first question", "more"])
        expect(page.get_by_role("article", name="Answer").last.locator(".facts")).to_contain_text("first token")
        page.get_by_role("button", name="Regenerate").click()  # there is one, for the last answer
        expect(page.get_by_role("button", name="Regenerate")).to_be_visible()
        expect(page.get_by_role("article", name="Answer")).to_have_count(2)
        page.get_by_role("button", name="History").click()
        page.get_by_role("button", name="Forget second question").click()
        expect(kept).to_have_count(1)
        page.get_by_role("button", name="Clear all").click()
        page.get_by_role("button", name="Forget 1 chat?").click()
        expect(page.get_by_text("No chat is kept yet.")).to_be_visible()
        assert page.evaluate("localStorage.getItem('baton.chats')") is None


def test_what_else_is_found_in_the_browser_breaks_nothing(writing: Cluster, browser: Browser) -> None:
    with opened(browser, writing.url) as page:
        for text in ("no json", '{"a":1}', '[{"id":1}]', '[{"id":"a","at":1,"messages":[{"role":"user"}]}]'):
            page.evaluate("text => { localStorage['baton.chats'] = text; localStorage['baton.settings'] = text }", text)
            page.reload()
            expect(page.get_by_role("status")).to_have_text("Ready")
            page.get_by_role("button", name="History").click()
            expect(page.get_by_text("No chat is kept yet.")).to_be_visible()


def test_all_settings_are_sent_and_kept_and_reset(writing: Cluster, browser: Browser) -> None:
    with opened(browser, writing.url) as page:
        page.get_by_role("button", name="Settings").click()
        fields = {"System prompt": "be brief", "Temperature": "0.25", "Top p": "0.9", "Max tokens": "7", "Seed": "5"}
        for label, value in fields.items():
            page.get_by_label(label).fill(value)
        page.get_by_label("Stop").fill("END\n\\n\\n")
        page.reload()
        expect(page.get_by_role("button", name="Settings (6)")).to_be_visible()
        with page.expect_request("**/v1/chat/completions") as sent:
            ask(page, "hello")
        body = sent.value.post_data_json
        assert body is not None
        assert {name: body[name] for name in ("temperature", "top_p", "max_tokens", "seed", "stop", "model")} == {
            **{"temperature": 0.25, "top_p": 0.9, "max_tokens": 7, "seed": 5, "stop": ["END", "\n\n"], "model": "tiny"}
        }
        page.get_by_role("button", name="Settings").click()
        page.get_by_role("button", name="Reset").click()
        expect(page.get_by_role("button", name="Settings", exact=True)).to_be_visible()
        assert page.evaluate("Object.keys(JSON.parse(localStorage['baton.settings']))") == ["model"]


def test_what_the_model_draws_with_by_default_is_shown(tmp_path: Path, browser: Browser) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.6, "top_p": 0.95}')
    with cluster(tmp_path, [{"worker_id": "d0"}]) as made, opened(browser, made.url) as page:
        page.get_by_role("button", name="Settings").click()
        expect(page.get_by_label("Temperature")).to_have_attribute("placeholder", "0.6, the model's")
        expect(page.get_by_label("Top p")).to_have_attribute("placeholder", "0.95, the model's")
        expect(page.get_by_label("Seed")).to_have_attribute("placeholder", "random")


def test_the_model_is_chosen_by_name_and_stays_chosen(tmp_path: Path, browser: Browser) -> None:
    names = ("large", "small")
    with (
        cluster(tmp_path, [{"worker_id": "d0", "model_name": "large"}], served_model_name=names) as made,
        opened(browser, made.url) as page,
    ):
        model = page.get_by_label("Model")
        expect(model).to_have_value("large")
        model.select_option("small")
        page.reload()
        expect(model).to_have_value("small")
        expect(page).to_have_title("Baton · small")
        with page.expect_request("**/v1/chat/completions") as sent:
            ask(page, "hello")
        assert sent.value.post_data_json is not None
        assert sent.value.post_data_json["model"] == "small"


def test_the_browser_itself_refuses_to_read_text_as_markup(writing: Cluster, browser: Browser) -> None:
    page = browser.new_page()
    try:
        page.goto(f"{writing.url}/")
        for attempt in ("document.body.innerHTML = '<b>x</b>'", "document.createElement('script').text = 'x'"):
            with pytest.raises(Error, match="requires 'Trusted"):
                page.evaluate(f"() => {{ {attempt} }}")
    finally:
        page.close()
