"""The pages as people use them, in headless chromium: what is drawn, kept, sent and said when something fails."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from app.api.service import ApiSettings
from app.keys import parse_keys
from tests.api.conftest import Server, answering, replying, start_server
from tests.serving.rig import until

pytest.importorskip("playwright", reason="no playwright here: pip install 'tuili[test]'")

from tests.api.page.browser import CHROMIUM, line_to, running_browser, visiting

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium"),
]
KEY = "some-key-0123456789"
MARKDOWN = """## Why

**Blue** light, `sky` and [more](https://a.example/), [less](javascript:alert(1)).

1. one
2. two

```python
print("hi")
```

| a | b |
|---|---|
| 1 | 2 |

<script>window.broken = 1</script> <b>bold</b>

![picture](https://a.example/x.png) 你好"""
LONG = "word " * 60
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Lima"}}\n</tool_call>'
DONE, LAST = '[data-state="done"]', ".turn.assistant >> nth=-1"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with running_browser() as running:
        yield running


def slowly(text: str) -> AbstractAsyncContextManager[Server]:
    """A server that takes its time over an answer."""
    return start_server(next_token=answering(text), num_blocks=512, max_model_len=4096, delay=0.02)


def pause(server: Server, *, after: int) -> None:
    """Answers stand still after so many tokens, for as long as the browser needs, until :func:`resume`."""
    assert server.rig.runner is not None
    sampled = itertools.count()
    server.rig.runner.withhold = lambda _step, _row: next(sampled) >= after


def resume(server: Server) -> None:
    """Answers go on where they stand."""
    assert server.rig.runner is not None
    server.rig.runner.withhold = None


async def ask(page: Page, text: str) -> None:
    await page.fill(".composer textarea", text)
    await page.press(".composer textarea", "Enter")


async def asked(page: Page, text: str) -> None:
    """Asks, and waits for the whole answer."""
    before = await page.locator(f".turn.assistant{DONE}").count()
    await ask(page, text)
    await page.locator(f".turn.assistant{DONE}").nth(before).wait_for()


async def text_of(page: Page, selector: str) -> str:
    return (await page.locator(selector).inner_text()).strip()


async def sent_body(page: Page, action: str) -> dict[str, Any]:
    """Body of the chat request that a click sends."""
    async with page.expect_request("**/v1/chat/completions") as waiting:
        await page.click(action)
    body: dict[str, Any] = json.loads((await waiting.value).post_data or "")
    return body


async def test_an_answer_is_drawn_and_kept(browser: Browser) -> None:
    async with replying(MARKDOWN) as server, visiting(browser, server.url) as page:
        await asked(page, "Why is it <b>blue</b>?")
        assert await text_of(page, ".bubble") == "Why is it <b>blue</b>?"
        answer = page.locator(".markdown")
        assert await answer.locator("strong").inner_text() == "Blue"
        assert await answer.locator("ol li").count() == 2
        assert await answer.locator("td").all_inner_texts() == ["1", "2"]
        assert await answer.locator("pre code").inner_text() == 'print("hi")'
        # What a model writes is never markup, loads nothing and leads nowhere it could run.
        assert await answer.locator("script, b, img").count() == 0
        assert [await each.get_attribute("href") for each in await answer.locator("a").all()] == [
            "https://a.example/",
            "https://a.example/x.png",
        ]
        assert await page.evaluate("window.broken") is None
        assert (await answer.inner_text()).endswith("picture 你好")
        await page.keyboard.press("Alt+n")
        await asked(page, "Another one")
        await page.reload()
        await page.locator(f".turn.assistant{DONE}").wait_for()
        titles = await page.locator(".conversation-title").all_inner_texts()
        assert titles == ["Another one", "Why is it <b>blue</b>?"]
        await page.click(".conversation >> nth=1")
        assert await text_of(page, ".bubble") == "Why is it <b>blue</b>?"
        assert await page.locator(".token").count() > 100


async def test_stop_leaves_what_came_and_goes_on(browser: Browser) -> None:
    async with slowly(LONG) as server, visiting(browser, server.url) as page:
        pause(server, after=40)
        await ask(page, "Go")
        await page.locator(".token").nth(10).wait_for()
        await page.click("[data-action=stop]")
        await page.locator('.turn.assistant[data-state="stopped"]').wait_for()
        await until(lambda: server.rig.client.stats.num_running == 0)
        part = await text_of(page, ".markdown")
        assert 5 < len(part) <= 40
        resume(server)
        await page.click("[data-action=go-on]")
        await page.locator(f".turn.assistant{DONE}").wait_for()
        assert await text_of(page, ".markdown") == LONG.strip()
        pause(server, after=40)
        await ask(page, "Again")
        await page.locator(".turn.assistant >> nth=1 >> .token >> nth=3").wait_for()
        await page.keyboard.press("Escape")
        await page.locator('.turn.assistant[data-state="stopped"]').wait_for()


async def test_a_question_is_kept_when_the_page_goes_before_its_answer(browser: Browser) -> None:
    async with slowly(LONG) as server, visiting(browser, server.url) as page:
        pause(server, after=40)
        await ask(page, "Go")
        await page.locator(".token").nth(3).wait_for()
        await page.reload()
        assert await text_of(page, ".bubble") == "Go"
        await page.locator('.turn.assistant[data-state="broken"]').wait_for()


async def test_edits_and_other_answers_are_branches(browser: Browser) -> None:
    async with replying("Yes.") as server, visiting(browser, server.url) as page:
        await asked(page, "First")
        await page.hover(".turn.user")
        await page.click("[data-action=edit]")
        await page.fill(".edit-area", "Second")
        await page.click("[data-action=edit-send]")
        await page.locator(f".turn.assistant{DONE}").wait_for()
        assert await text_of(page, ".bubble") == "Second"
        assert await text_of(page, ".turn.user .branches") == "2/2"
        await page.click(".turn.user .branches button >> nth=0")
        assert await text_of(page, ".bubble") == "First"
        await page.click("[data-action=again]")
        await page.locator(".turn.assistant .branches").wait_for()
        assert await text_of(page, ".turn.assistant .branches") == "2/2"
        await page.reload()
        await page.locator(".turn.assistant .branches").wait_for()
        assert await text_of(page, ".bubble") == "First"
        await page.click("[data-action=fork]")
        assert await page.locator(".conversation").count() == 2
        assert await page.locator(".branches").count() == 0


async def test_tokens_and_times_are_told(browser: Browser) -> None:
    async with replying("Sure: 你好") as server, visiting(browser, server.url) as page:
        await asked(page, "x" * 40)
        await page.hover(".token >> nth=1")
        rows = page.locator(".tooltip .alternative")
        assert await rows.count() == 5
        assert (await rows.nth(0).inner_text()).split("\n")[0] == "u"
        assert "60.7 %" in await rows.nth(0).inner_text()
        assert "chosen" in (await rows.nth(0).get_attribute("class") or "")
        await page.focus(".markdown-frame")
        await page.keyboard.press("ArrowRight")
        assert (await rows.nth(0).inner_text()).split("\n")[0] == "r"
        # Bytes that are no character alone belong to the one that they make.
        assert await page.locator(".token").last.inner_text() == "好"
        await page.locator(".timeline summary").click()
        names = await page.locator(".timeline dt").all_inner_texts()
        assert [name.strip() for name in names[:4]] == ["Queue", "Prefill", "Decode", "Other"]
        assert "0 of 59 tokens" in (await page.locator(".timeline dd").all_inner_texts())[-1]
        await page.click("[data-action=again]")
        await page.locator(".branches").wait_for()
        await page.locator(f".turn.assistant{DONE} .timeline summary").click()
        assert "48 of 59 tokens" in (await page.locator(".timeline dd").all_inner_texts())[-1]


async def test_schema_and_settings_are_sent(browser: Browser) -> None:
    river = '{"river": "Seine", "country": "France", "length_km": 777}'
    async with replying(river) as server, visiting(browser, server.url) as page:
        body = await sent_body(page, "[data-offer=schema]")
        assert body["response_format"]["json_schema"]["schema"]["required"] == ["river", "country", "length_km"]
        await page.locator(f".turn.assistant{DONE}").wait_for()
        assert set(json.loads(await text_of(page, ".markdown"))) == {"river", "country", "length_km"}
        await page.click("[data-panel=settings]")
        await page.fill("[data-setting=system]", "Be brief.")
        await page.fill("[data-setting=temperature]", "0.5")
        await page.fill("[data-setting=max_tokens]", "12")
        await page.fill("[data-setting=schema]", "{")
        assert "No JSON" in await text_of(page, ".json:visible .problem >> nth=0")
        await page.fill("[data-setting=schema]", '{"type": "boolean"}')
        body = await sent_body(page, "[data-action=again]")
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}
        assert (body["temperature"], body["max_tokens"]) == (0.5, 12)
        assert body["response_format"]["json_schema"]["schema"] == {"type": "boolean"}


async def test_a_tool_is_called_and_its_result_given(browser: Browser) -> None:
    async with replying(CALL) as server, visiting(browser, server.url) as page:
        body = await sent_body(page, "[data-offer=tool]")
        assert body["tools"][0]["function"]["name"] == "get_weather"
        await page.locator(f".turn.assistant{DONE}").wait_for()
        assert await text_of(page, ".card-head code") == "get_weather"
        assert json.loads(await text_of(page, ".card pre")) == {"city": "Lima"}
        await page.fill(".result-area", "18 °C")
        body = await sent_body(page, "[data-action=give-results]")
        question, call, result = body["messages"]
        assert question["role"] == "user"
        assert json.loads(call["tool_calls"][0]["function"]["arguments"]) == {"city": "Lima"}
        assert result == {"role": "tool", "tool_call_id": call["tool_calls"][0]["id"], "content": "18 °C"}
        await page.locator(".turn.tool").wait_for()


async def test_the_language_changes_while_an_answer_comes(browser: Browser) -> None:
    async with slowly(LONG[:150]) as server, visiting(browser, server.url) as page:
        assert await page.get_attribute("html", "lang") == "en"
        pause(server, after=40)
        await ask(page, "Go")
        await page.locator(".token").nth(3).wait_for()
        await page.click('.foot-link[lang="zh"]')
        assert await page.get_attribute("html", "lang") == "zh-CN"
        assert await text_of(page, ".new") == "新对话"
        resume(server)
        await page.locator(f".turn.assistant{DONE}").wait_for()
        assert await text_of(page, ".markdown") == LONG[:150].strip()
        await page.reload()
        assert await text_of(page, ".new") == "新对话"
    async with replying("你好") as server, visiting(browser, server.url, language="zh-CN") as page:
        assert await text_of(page, ".welcome h1") == "想了解些什么？"


async def test_a_dropped_connection_says_so_and_goes_on(browser: Browser) -> None:
    async with (
        slowly(LONG) as server,
        line_to(server.address) as line,
        visiting(browser, line.url, may_say="ERR_") as page,
    ):
        pause(server, after=40)
        await ask(page, "Go")
        await page.locator(".token").nth(10).wait_for()
        line.cut()
        await page.locator('.turn.assistant[data-state="broken"]').wait_for()
        assert "connection was lost" in await text_of(page, ".notice")
        part = await text_of(page, ".markdown")
        assert LONG.startswith(part)
        await page.reload()
        assert await text_of(page, ".markdown") == part
        resume(server)
        await page.click("[data-action=go-on]")
        await page.locator(f".turn.assistant{DONE}").wait_for()
        assert await text_of(page, ".markdown") == LONG.strip()


async def test_a_server_with_keys_asks_for_one(browser: Browser) -> None:
    settings = ApiSettings(api_keys=parse_keys([KEY]))
    async with (
        start_server(settings, next_token=answering("Hello"), num_blocks=512, max_model_len=4096) as server,
        visiting(browser, server.url, may_say="401") as page,
    ):
        await page.fill("dialog input[type=password]", "wrong-key-0123456789")
        await page.keyboard.press("Enter")
        await page.locator("dialog .problem").wait_for()
        await page.fill("dialog input[type=password]", KEY)
        await page.keyboard.press("Enter")
        await page.locator(".welcome p").wait_for()
        await asked(page, "Hi")
        assert await text_of(page, ".markdown") == "Hello"
        assert await page.evaluate("sessionStorage.getItem('tuili.key')") == KEY
        assert await page.evaluate("localStorage.getItem('tuili.key')") is None
        await page.click("[data-panel=engine]")
        await page.locator(".tile").nth(2).wait_for()


async def test_the_engine_is_seen_at_work(browser: Browser) -> None:
    async with slowly(LONG) as server, visiting(browser, server.url) as page:
        await page.keyboard.press("Alt+e")
        await page.locator(".owners").wait_for()
        pause(server, after=40)
        await ask(page, "Go")
        await page.locator(".rows li").wait_for()
        assert "Request 1" in await text_of(page, ".rows li")
        assert await page.locator(".owners .owner-1").count() == 1
        await page.keyboard.press("Escape")
        await page.locator('.turn.assistant[data-state="stopped"]').wait_for()
        await page.locator(".engine .quiet").wait_for()


async def test_a_phone_has_it_all_within_its_width(browser: Browser) -> None:
    phone: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    async with replying(MARKDOWN) as server, visiting(browser, server.url, **phone) as page:
        fits = "document.scrollingElement.scrollWidth <= innerWidth"
        assert await page.evaluate(fits)
        await asked(page, "Why? " * 40)
        assert await page.evaluate(fits)
        await page.tap(".token >> nth=2")
        box = await page.locator(".tooltip").bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
        await page.tap(".menu-button")
        await page.locator(".conversation").wait_for()
        await page.tap(".new")
        await page.locator(".welcome").wait_for()
        for name in ("engine", "settings"):
            await page.tap(f"[data-panel={name}]")
            await page.locator(".panel h2").wait_for()
            assert await page.evaluate(fits)
            await page.tap(".panel-head button")


async def test_the_dark_follows_the_system_until_one_chooses(browser: Browser) -> None:
    is_dark = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g)[0] < 60"
    async with replying("Yes.") as server, visiting(browser, server.url, color_scheme="dark") as page:
        assert await page.evaluate(is_dark)
        await page.locator(".sidebar-foot .icon-button").click()
        assert not await page.evaluate(is_dark)
        await page.reload()
        assert not await page.evaluate(is_dark)


async def test_the_api_page_documents_and_tries(browser: Browser) -> None:
    async with replying("Yes.") as server, visiting(browser, f"{server.url}/docs") as page:
        await page.locator(".operation").nth(5).wait_for()
        await page.fill("input[type=search]", "chat completions")
        assert await page.locator(".operation:visible").count() >= 1
        chat = page.locator('[id="post-/v1/chat/completions"]')
        await chat.locator("> summary").click()
        assert "messages" in await chat.locator(".fields .name").all_inner_texts()
        await chat.locator(".button.primary").click()
        await chat.locator(".try-line", has_text="200").wait_for()
        assert "Yes." in await chat.locator(".try-answer pre").inner_text()
        await page.click('.link-button[lang], .link-button:has-text("中文")')
        assert await page.get_attribute("html", "lang") == "zh-CN"
