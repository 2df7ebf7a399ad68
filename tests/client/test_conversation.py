"""`tuili chat` as a user runs it, through a pipe and on a terminal, against a live server."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

import httpx
import pytest

from app.api.service import ApiSettings
from app.client.conversation import Conversation
from app.client.target import TargetError
from app.keys import parse_keys
from app.text.chat_template import ChatTemplate
from tests.api.conftest import NO_TLS, Server, start_server
from tests.byte_tokenizer import CHATML_TEMPLATE
from tests.serving.rig import repeat, until

KEY = "0123456789abcdef"
COMMAND = (sys.executable, "-m", "app.cli", "chat", "--temperature", "0")


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """One character a token."""
    async with start_server(next_token=repeat("abcdefgh")) as running_server:
        yield running_server


async def piped(url: str, text: str, *args: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "--url", url, *args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate(text.encode())
    return process.returncode, out.decode(), err.decode()


def prompt_lengths(server: Server) -> list[int]:
    return [record.usage.prompt_tokens for record in server.rig.ledger.records]


def length(*messages: tuple[str, str]) -> int:
    """Tokens of a conversation; the control tokens of its template are one each."""
    rendered = ChatTemplate(CHATML_TEMPLATE).render([{"role": role, "content": text} for role, text in messages])
    return len(rendered.replace("<|im_start|>", "#").replace("<|im_end|>", "#").encode())


async def test_piped_lines_are_turns_and_answers_alone_are_printed(server: Server) -> None:
    text = "first question\n\nsecond\n/reset\nthird"
    code, out, err = await piped(server.url, text, "--max-tokens", "4", "--system", "Be brief.")
    assert (code, err) == (0, "")
    answers = out.splitlines()
    assert [len(answer) for answer in answers] == [4, 4, 4]
    system = ("system", "Be brief.")
    first = ("user", "first question")
    assert prompt_lengths(server) == [
        length(system, first),
        length(system, first, ("assistant", answers[0]), ("user", "second")),
        length(system, ("user", "third")),
    ]


async def test_address_and_key_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async with start_server(ApiSettings(api_keys=parse_keys([KEY])), next_token=repeat("abcd")) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        process = await asyncio.create_subprocess_exec(
            *COMMAND, "--max-tokens", "4", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        out, _ = await process.communicate(b"Hi")
    assert (process.returncode, len(out.decode().strip())) == (0, 4)


async def test_what_goes_wrong_in_a_pipe_ends_it(server: Server) -> None:
    for args, message in (
        (("--url", server.url, "--model", "other"), "HTTP 404"),
        (("--url", "http://127.0.0.1:1"), "cannot reach"),
        (("--url", "http://127.0.0.1:1", "--model", "m"), "127.0.0.1:1/v1/chat"),
        (("--url", "nonsense", "--model", "m"), "nonsense"),
    ):
        code, out, err = await piped(*args[1:2], "Hi\nAgain\n", *args[2:])
        assert (code, out) == (1, "")
        assert message in err
        assert "Traceback" not in err
        assert len(err.splitlines()) == 1


async def test_an_answer_closed_early_is_aborted_and_remembered() -> None:
    async with start_server(next_token=repeat("abcdefgh"), delay=0.002) as server:
        with httpx.Client(verify=NO_TLS) as http:
            conversation = Conversation(http, f"{server.url}/v1/chat/completions", {"max_tokens": 400})
            answer = conversation.ask("Hi")
            pieces = [await asyncio.to_thread(next, answer) for _ in range(3)]
            await asyncio.to_thread(answer.close)
            await server.rig.settled()
        (record,) = server.rig.ledger.records
        assert 3 <= record.generated_tokens < 400
        assert conversation.messages == [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "".join(pieces)},
        ]


async def test_a_failed_question_is_not_part_of_the_conversation(server: Server) -> None:
    runner = server.rig.runner
    assert runner is not None
    runner.fail_collect = lambda step: step.step == 3
    with httpx.Client(verify=NO_TLS) as http:
        conversation = Conversation(http, f"{server.url}/v1/chat/completions", {"max_tokens": 9})
        with pytest.raises(TargetError):
            await asyncio.to_thread(list, conversation.ask("Hi"))
        assert conversation.messages == []
        assert len("".join(await asyncio.to_thread(list, conversation.ask("Hi")))) == 9


class Terminal:
    """The program on a terminal of its own."""

    def __init__(self, url: str) -> None:
        self._master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "dumb"}
        self.process = subprocess.Popen(
            [*COMMAND, "--url", url],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            # Whoever runs the tests in the background ignores Ctrl-C, and a child inherits that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(slave)
        self.shown = ""
        asyncio.get_running_loop().add_reader(self._master, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._master, 4096)
        except OSError:  # the other end is closed
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._master)
        self.shown += data.decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    async def shows(self, text: str, times: int = 1) -> None:
        await until(lambda: self.shown.count(text) >= times)

    async def ends(self) -> int:
        return await asyncio.to_thread(self.process.wait, 20)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._master)
        os.close(self._master)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


async def test_on_a_terminal() -> None:
    # An answer tries to colour the terminal; it goes on until it is stopped.
    async with start_server(next_token=repeat("\x1b[31mred \x9b2J "), delay=0.02, max_model_len=4096) as server:
        terminal = Terminal(server.url)
        try:
            await terminal.shows("> ")
            terminal.type("Hi\n")
            await terminal.shows("red", 2)
            terminal.process.send_signal(signal.SIGINT)
            await terminal.shows("[stopped]")
            await server.rig.settled()
            terminal.type("Again\n")
            await terminal.shows("red", 6)
            terminal.process.send_signal(signal.SIGINT)
            await terminal.shows("[stopped]", 2)
            terminal.type("\x04")
            assert await terminal.ends() == 0
        finally:
            terminal.close()
        await server.rig.settled()
    assert "\x1b[31m" not in terminal.shown
    assert "\x9b" not in terminal.shown
    assert "Traceback" not in terminal.shown
    assert prompt_lengths(server)[1] > prompt_lengths(server)[0] + len("Again"), "what was said is remembered"
