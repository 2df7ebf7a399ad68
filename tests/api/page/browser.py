"""Debian's chromium, and pages in it that must cause no complaint of the browser's."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from playwright.async_api import Browser, Page, async_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SECONDS = 30.0
"""Longest wait for what a page is to show: a browser starts slowly on a busy machine."""


@contextlib.asynccontextmanager
async def running_browser() -> AsyncIterator[Browser]:
    """A headless browser without any data of its own."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS)
        try:
            yield browser
        finally:
            await browser.close()


@contextlib.asynccontextmanager
async def visiting(
    browser: Browser, url: str, *, may_say: str | None = None, language: str = "en-US", **options: object
) -> AsyncIterator[Page]:
    """A page that is drawn, in a context of its own. What the browser complains of, its policy too, is an error.

    Args:
        may_say: a text in complaints that are expected.
        options: those of a browser's context.
    """
    complaints: list[str] = []
    context = await browser.new_context(locale=language, **options)  # type: ignore[arg-type]
    context.set_default_timeout(1000 * SECONDS)
    page = await context.new_page()
    page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    try:
        await page.goto(url)
        # A page is drawn after its load event, with what its database or the server says: before, keys reach nobody.
        await page.locator("main").wait_for()
        yield page
        assert [each for each in complaints if may_say is None or may_say not in each] == []
    finally:
        await context.close()


@dataclass(slots=True)
class Line:
    """A way to a server that can be cut."""

    url: str
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def cut(self) -> None:
        """Ends all connections at once."""
        for writer in self.writers:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def line_to(address: tuple[str, int]) -> AsyncIterator[Line]:
    """A port of loopback that leads to ``address``."""
    line = Line("")

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*address)
        line.writers |= {writer, far_writer}
        try:
            await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))
        finally:
            line.writers -= {writer, far_writer}

    listener = await asyncio.start_server(connect, "127.0.0.1", 0)
    line.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
    try:
        yield line
    finally:
        listener.close()
        line.cut()
