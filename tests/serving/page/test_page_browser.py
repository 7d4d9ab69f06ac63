"""The page in Debian's Chromium: steps, errors, keys, screens, and text that stays text."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.servers.live_server import LiveServer, endless_server, running_server, wait_for
from support.table_session import session_on_table

from medusa_trt.runtime.bundle import Bundle

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install playwright"
)
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("Debian's chromium is not installed", allow_module_level=True)

DANGEROUS = "<img src=x onerror=alert(1)>"
MARKDOWN = f"""# Title {DANGEROUS}

- one **bold**
- two `code`
  1. inner

```python
print("{DANGEROUS}")
```
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page that must not fail, ask another server, or run what the model wrote."""
    page = browser.new_page(**getattr(request, "param", {}))
    faults: list[str] = []
    page.asked = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: faults.append(dialog.message))
    page.on("request", lambda asked: page.asked.append(asked))
    page.set_default_timeout(30_000)
    yield page
    assert not faults
    assert len({asked.url.split("/")[2] for asked in page.asked}) == 1
    page.close()


def open_page(page: Any, live: LiveServer) -> None:
    page.goto(live.url)
    playwright.expect(page.locator("#model")).to_have_text(live.service.model_name)


def ask(page: Any, text: str = "hello", limit: int = 24) -> None:
    """Sends a message from the keyboard and waits for the end of the reply or an error."""
    page.locator("#settings").evaluate("element => { element.open = true; }")
    page.fill("#limit", str(limit))
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")
    playwright.expect(page.locator("#stop")).to_be_disabled()


def read_bodies(page: Any) -> list[dict[str, Any]]:
    """The bodies of the requests for replies so far."""
    return [asked.post_data_json for asked in page.asked if asked.method == "POST"]


def make_stream(text: str) -> str:
    """A stream of one part."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": "stop"}
    return f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n\n"


def test_one_goes_back_through_the_steps_of_a_conversation(page: Any, live: LiveServer) -> None:
    open_page(page, live)
    ask(page)
    first = page.locator(".assistant .body").inner_text()
    page.focus("#which")
    page.keyboard.press("Home")
    for step in range(int(page.get_attribute("#which", "max")) + 1):
        assert page.inner_text("#place").startswith(f"step {step + 1} of ")
        words = page.inner_text("#tree .hint")
        if step and words.startswith("no drafts"):
            assert page.locator("#tree g").count() == 2
        elif step:
            drafts, accepted = (int(part.split()[0]) for part in words.split(", ")[:2])
            assert page.locator("#tree g").count() == drafts + 2
            assert page.locator("#tree g.accepted").count() == accepted
        page.keyboard.press("ArrowRight")
    ask(page, "more")
    last = read_bodies(page)[-1]
    assert [message["role"] for message in last["messages"]] == ["user", "assistant", "user"]
    assert last["messages"][1]["content"].split() == first.split()
    assert last["steps"] and last["max_tokens"] == 24


def test_the_comparison_makes_one_reply_after_the_other(page: Any, live: LiveServer) -> None:
    open_page(page, live)
    ask(page)
    page.click("#compare")
    playwright.expect(page.locator("#comparison")).to_contain_text("the same text")
    bodies = read_bodies(page)[1:]
    assert [body.get("tree") for body in bodies] == ["plain", None] * 2
    assert not any("steps" in body for body in bodies)
    lines = live.log[-4:]
    assert [line["accepted_tokens"] == 0 for line in lines[::2]] == [True, True]


def test_text_of_the_model_stays_text(page: Any, live: LiveServer) -> None:
    open_page(page, live)
    kind = {"content-type": "text/event-stream"}
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(body=make_stream(MARKDOWN), headers=kind),
    )
    ask(page, DANGEROUS)
    assert page.inner_text(".user") == DANGEROUS
    assert page.locator("#messages img").count() == 0
    body = page.locator(".assistant .body")
    assert body.locator("h3").inner_text() == f"Title {DANGEROUS}"
    assert body.locator("ul > li").count() == 2 and body.locator("ul ol > li").count() == 1
    assert body.locator("strong").inner_text() == "bold"
    assert body.locator("pre code").inner_text() == f'print("{DANGEROUS}")'


def test_after_an_error_the_message_can_be_sent_again(page: Any, live: LiveServer) -> None:
    open_page(page, live)
    ask(page, "h" * 600)
    assert "shorten the prompt" in page.inner_text("[role=alert]")
    page.click("#clear")
    page.route("**/v1/chat/completions", lambda route: route.abort())
    ask(page)
    assert "does not answer" in page.inner_text("[role=alert]")
    page.unroute("**/v1/chat/completions")
    page.press("#prompt", "Enter")
    playwright.expect(page.locator(".piece").first).to_be_visible()


def test_escape_ends_a_reply_on_the_server_and_keeps_it(page: Any, tiny_bundle: Bundle) -> None:
    with endless_server(tiny_bundle) as live:
        open_page(page, live)
        page.fill("#prompt", "hello")
        page.press("#prompt", "Enter")
        wait_for(lambda: int(page.get_attribute("#which", "max")) > 3)
        page.keyboard.press("Escape")
        playwright.expect(page.locator(".assistant .note")).to_have_text("stopped")
        live.wait_until_idle()
        assert page.is_enabled("#send") and page.inner_text(".assistant .body")


def test_a_key_is_asked_for(page: Any, tiny_bundle: Bundle, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    session, _ = session_on_table(tiny_bundle, takes_new_trees=True)
    with session, running_server(session, max_sequences=1, api_key_file=keys) as live:
        page.goto(live.url)
        playwright.expect(page.locator("#key")).to_be_focused()
        page.fill("#key", "wrong")
        page.press("#key", "Enter")
        playwright.expect(page.locator("#state")).to_contain_text("needs a key")
        page.fill("#key", "secret")
        page.press("#key", "Enter")
        playwright.expect(page.locator("#model")).to_have_text(live.service.model_name)
        ask(page)
        assert page.locator("[role=alert]").count() == 0


@pytest.mark.parametrize(
    "page", [{"viewport": {"width": 390, "height": 800}, "color_scheme": "dark"}], indirect=True
)
def test_narrow_and_dark_screens(page: Any, live: LiveServer) -> None:
    open_page(page, live)
    ask(page)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(int(part) for part in ground[4:-1].split(",")) < 60
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
