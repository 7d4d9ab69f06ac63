"""The page: its files, and a conversation in a browser."""

import re
import shutil
from typing import Any

import pytest
from support.servers.live_server import LiveServer, running_server

from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.serving.page import PAGE_PATHS

CHROMIUM = shutil.which("chromium")


def test_the_page_needs_no_key_and_nothing_from_elsewhere(
    tiny_bundle: Bundle, tmp_path: Any
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    session = MedusaSession(tiny_bundle, num_threads=1)
    with session, running_server(session, max_sequences=1, api_key_file=keys) as live:
        assert live.client.get("/v1/models").status_code == 401
        for path in PAGE_PATHS:
            reply = live.client.get(path)
            assert reply.status_code == 200
            assert "default-src 'none'" in reply.headers["content-security-policy"]
            assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", reply.text)
            for name in re.findall(r'(?:src|href|from) ?=?"(?!data:)([^"]+)"', reply.text):
                folder = "/static/" if name.startswith("./") else "/"
                assert folder + name.removeprefix("./") in PAGE_PATHS


@pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")
def test_a_conversation_in_the_browser(live: LiveServer) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text))
        page.goto(live.url)
        api.expect(page.locator("#model")).to_have_text(live.service.model_name)

        page.locator("summary").click()
        page.locator("#limit").fill("12")
        page.locator("#prompt").fill("hello <b>you</b>")
        page.locator("#prompt").press("Enter")
        api.expect(page.locator(".piece").first).to_be_visible()
        api.expect(page.locator("#compare")).to_be_enabled()
        assert page.locator(".user").inner_text() == "hello <b>you</b>"
        shown = page.locator(".assistant .body").inner_text()
        expected = live.chat(
            messages=[{"role": "user", "content": "hello <b>you</b>"}],
            max_tokens=12,
            temperature=0,
        ).json()["choices"][0]["message"]["content"]
        assert shown.split() == expected.split()

        api.expect(page.locator("#tree svg")).to_be_visible()
        last = page.locator("#place").inner_text()
        page.locator("#previous").click()
        assert page.locator("#place").inner_text() != last
        page.locator("#compare").click()
        api.expect(page.locator("#comparison")).to_contain_text("the same text", timeout=60_000)

        page.locator("#limit").fill("0")
        page.locator("#prompt").fill("again")
        page.locator("#send").click()
        api.expect(page.locator(".error")).to_contain_text("max_tokens")
        browser.close()
    assert [text for text in problems if "400 (Bad Request)" not in text] == []
