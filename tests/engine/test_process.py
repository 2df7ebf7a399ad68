"""The engine at the far end of a real socketpair: in a thread to look inside, in a process to kill it."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from app.contract.config import EngineConfig
from app.contract.frames import (
    AbortRequests,
    EncodeOutput,
    EngineFatal,
    EngineFrame,
    EngineOutput,
    EngineReady,
    LoadProgress,
    OutputFrame,
    Shutdown,
)
from app.contract.request import FinishReason, Pooling
from app.contract.step import StepPlan
from app.engine import process
from app.engine.constraints.base import ConstraintError
from app.engine.constraints.guidance import GuidanceCompiler
from app.engine.process import frozen, run_engine
from app.ipc import (
    ChannelClosedError,
    FrameAssembler,
    FrameChannel,
    ProgressStamp,
    decode_engine_frame,
    encode,
    frame_bytes,
)
from tests.engine.constraints.rig import EOS, byte_runner, byte_vocabulary, constrained
from tests.engine.harness import wait_until
from tests.fake_encoder import encode_request, expected_vector, floats
from tests.fakes import FakeRunner, expected_tokens, fake_config, fake_request, make_fake_runner

SECONDS = 20


class Client:
    """A blocking API process."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(SECONDS)
        self._assembler = FrameAssembler()
        self._frames: list[bytes] = []
        self.sizes: list[int] = []

    def send(self, *frames: object) -> None:
        """At once: an engine that ends over the first of them has got the others, too."""
        payloads = (frame if isinstance(frame, bytes) else encode(frame) for frame in frames)
        self.sock.sendall(b"".join(map(frame_bytes, payloads)))

    def receive(self) -> EngineFrame:
        while not self._frames:
            data = self.sock.recv(1 << 20)
            if not data:
                raise self._assembler.end()
            self._frames += self._assembler.feed(data)
        self.sizes.append(len(self._frames[0]))
        return decode_engine_frame(self._frames.pop(0))

    def read_to_the_end(self) -> None:
        while True:
            self.receive()

    def ready(self) -> EngineReady:
        frames = [self.receive(), self.receive()]
        assert isinstance(frames[0], LoadProgress)
        assert isinstance(frames[1], EngineReady)
        return frames[1]

    def until_finished(self, *request_ids: str) -> dict[str, list[EngineOutput]]:
        outputs: dict[str, list[EngineOutput]] = {}
        pending = set(request_ids)
        while pending:
            frame = self.receive()
            assert isinstance(frame, OutputFrame)
            for output in frame.outputs:
                outputs.setdefault(output.request_id, []).append(output)
                if output.finish_reason is not None:
                    pending.discard(output.request_id)
        return outputs


def tokens(outputs: list[EngineOutput]) -> list[int]:
    return [token for output in outputs for token in output.new_token_ids]


class EngineThread:
    """``run_engine`` over one end of a socketpair."""

    def __init__(self, runner: FakeRunner | None = None, **config: object) -> None:
        near, far = socket.socketpair()
        self.runner = runner or FakeRunner()
        self.client = Client(near)
        self.stamp = ProgressStamp.create()
        self.exit_code: int | None = None
        self._thread = threading.Thread(target=self._run, args=(far,), daemon=True)
        self._thread.start()
        self.client.send(fake_config(**config))

    def _run(self, sock: socket.socket) -> None:
        def make_runner(config: EngineConfig, progress: Callable[[LoadProgress], None]) -> FakeRunner:
            progress(LoadProgress(phase="weights"))
            return self.runner

        self.exit_code = run_engine(sock, make_runner, self.stamp)

    def join(self) -> int | None:
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()
        return self.exit_code


@contextmanager
def engine_thread(runner: FakeRunner | None = None, **config: object) -> Iterator[EngineThread]:
    engine = EngineThread(runner, **config)
    with engine.client.sock:
        yield engine
    engine.join()
    engine.stamp.close()


def test_requests_are_served_and_shutdown_ends_with_zero(depth: int) -> None:
    with engine_thread(pipeline_depth=depth) as engine:
        ready = engine.client.ready()
        info = ready.info
        assert (info.vocab_size, info.kv_cache.block_size, info.max_model_len) == (1000, 16, 512)
        assert ready.max_kv_tokens == 64 * 16
        assert ready.pid == os.getpid()
        engine.client.send(fake_request("a", [1, 2, 3], 10), fake_request("b", [4], 20))
        outputs = engine.client.until_finished("a", "b")
        assert tokens(outputs["a"]) == expected_tokens([1, 2, 3], 10)
        assert tokens(outputs["b"]) == expected_tokens([4], 20)
        engine.client.send(Shutdown())
        assert engine.join() == 0
        with pytest.raises(ChannelClosedError):
            engine.client.read_to_the_end()


def test_frames_that_come_along_with_the_configuration_are_not_lost() -> None:
    near, far = socket.socketpair()
    frames = [fake_config(), fake_request("a", [1, 2], 1)]
    near.sendall(b"".join(frame_bytes(encode(frame)) for frame in frames))
    thread = threading.Thread(target=run_engine, args=(far, make_fake_runner), daemon=True)
    thread.start()
    with near:
        client = Client(near)
        client.ready()
        answer = client.receive()
        assert isinstance(answer, OutputFrame)
        assert answer.outputs[0].new_token_ids == expected_tokens([1, 2], 1)
    thread.join(SECONDS)
    assert not thread.is_alive()


def test_one_frame_a_client_and_step() -> None:
    with engine_thread() as engine:
        engine.client.ready()
        engine.client.send(*(fake_request(f"a{i}", [i], 5, client_index=i % 2) for i in range(4)))
        frames: list[OutputFrame] = []
        finished = 0
        while finished < 4:
            frame = engine.client.receive()
            assert isinstance(frame, OutputFrame)
            frames.append(frame)
            finished += sum(output.finish_reason is not None for output in frame.outputs)
        seen = [(frame.client_index, frame.stats.steps_total) for frame in frames]
        assert len(set(seen)) == len(seen)
        for frame in frames:
            assert {int(output.request_id[1:]) % 2 for output in frame.outputs} == {frame.client_index}


def test_an_idle_engine_waits_without_spinning_and_wakes_at_once() -> None:
    with engine_thread() as engine:
        engine.client.ready()
        for i in range(3):
            engine.client.send(fake_request(str(i), [i], 3))
            engine.client.until_finished(str(i))
            wait_until(lambda: not engine.stamp.read().has_work)
            before = engine.stamp.read()
            time.sleep(0.05)
            assert engine.stamp.read() == before, "no turn of the loop without a reason"


def test_the_state_is_reported_while_prompts_are_read() -> None:
    """Each step of a long prompt, and before a step that may take long: not with the first output alone."""
    gate = threading.Event()

    def wait(step: StepPlan) -> bool:
        return not gate.wait(SECONDS)

    with engine_thread(FakeRunner(fail_submit=wait), max_num_batched_tokens=16, max_num_seqs=1) as engine:
        engine.client.ready()
        time.sleep(1.1)  # for longer than a client's view may be old
        engine.client.send(fake_request("a", [1] * 60, 1), fake_request("b", [2] * 60, 1))
        first = engine.client.receive()
        assert isinstance(first, OutputFrame)
        assert (first.outputs, first.stats.steps_total, first.stats.num_running) == ([], 0, 1)
        assert first.stats.blocks_used > 0
        gate.set()
        seen = [engine.client.receive() for _ in range(4)]
        frames = [frame for frame in seen if isinstance(frame, OutputFrame)]
        assert [frame.stats.steps_total for frame in frames] == [1, 2, 3, 4]
        assert [len(frame.outputs) for frame in frames] == [0, 0, 0, 1]
        assert frames[0].stats.num_waiting == 1
        assert [len(frame.steps) for frame in frames] == [1, 1, 1, 1]


def test_the_state_after_the_last_step_is_reported() -> None:
    with engine_thread(pipeline_depth=2, eos_token_ids=(expected_tokens([1], 3)[-1],)) as engine:
        engine.client.ready()
        engine.client.send(fake_request("a", [1], 50))
        engine.client.until_finished("a")
        frame = engine.client.receive()
        assert isinstance(frame, OutputFrame)
        assert frame.outputs == []
        assert (frame.stats.num_running, frame.stats.blocks_used) == (0, 0)


def test_an_abort_is_confirmed_and_frees() -> None:
    with engine_thread(FakeRunner(delay=0.001)) as engine:
        engine.client.ready()
        engine.client.send(fake_request("a", [1] * 40, 400))
        engine.client.receive()
        engine.client.send(AbortRequests(["a"]))
        outputs = engine.client.until_finished("a")
        assert outputs["a"][-1].finish_reason is FinishReason.ABORT
        engine.client.send(fake_request("b", [1], 1))
        frame = engine.client.receive()
        while not (isinstance(frame, OutputFrame) and frame.outputs):
            frame = engine.client.receive()
        assert frame.stats.blocks_used == 0


@pytest.mark.parametrize(
    ("payload", "answered"),
    [
        (b"\xc1garbage", False),
        (encode({"type": "nonsense"}), False),
        (encode({"type": "generate", "request_id": "bad", "prompt_token_ids": "text"}), True),
        (encode({"type": "generate", "request_id": "bad", "prompt_token_ids": [1], "sampling": {"top_p": "x"}}), True),
    ],
    ids=["garbage", "tag", "prompt", "sampling"],
)  # fmt: skip
def test_a_malformed_frame_hurts_nobody_else(payload: bytes, answered: bool, caplog: pytest.LogCaptureFixture) -> None:
    with engine_thread() as engine:
        engine.client.ready()
        engine.client.send(fake_request("good", [1], 30), payload)
        outputs = engine.client.until_finished("good", *(["bad"] if answered else []))
        assert tokens(outputs["good"]) == expected_tokens([1], 30)
        if answered:
            assert outputs["bad"][0].error is not None
            assert outputs["bad"][0].error.code == "invalid_request"
    assert "frame dropped" in caplog.text


def encoded_until(client: Client, *request_ids: str) -> dict[str, EncodeOutput]:
    """Answers to requests to encode, once all of them are there."""
    outputs: dict[str, EncodeOutput] = {}
    while not set(request_ids) <= outputs.keys():
        frame = client.receive()
        if isinstance(frame, OutputFrame):
            outputs |= {output.request_id: output for output in frame.encoded}
    return outputs


@pytest.mark.parametrize(
    "fields", [{"token_ids": "text"}, {"token_ids": [1], "pooling": "max"}], ids=["ids", "pooling"]
)
def test_a_malformed_request_to_encode_is_answered_as_one(fields: dict[str, object]) -> None:
    with engine_thread(FakeRunner(max_encode_len=100)) as engine:
        engine.client.ready()
        engine.client.send(encode({"type": "encode", "request_id": "bad", **fields}), encode_request("good", [1, 2]))
        outputs = encoded_until(engine.client, "good", "bad")
        assert floats(outputs["good"].data) == expected_vector([1, 2])
        assert outputs["bad"].error is not None
        assert outputs["bad"].error.code == "invalid_request"


def test_encoded_answers_larger_than_a_frame_are_sent_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "FrameChannel", partial(FrameChannel, max_frame_bytes=2_000))
    with engine_thread(FakeRunner(max_encode_len=600), max_num_batched_tokens=1024) as engine:
        engine.client.ready()
        long = [encode_request(f"ok{i}", [i] * 100, pooling=Pooling.NONE) for i in range(4)]
        engine.client.send(
            *long, encode_request("large", [9] * 600, pooling=Pooling.NONE), fake_request("text", [1], 5)
        )
        outputs = encoded_until(engine.client, "large", *(f"ok{i}" for i in range(4)))
        assert all(floats(outputs[f"ok{i}"].data) == (float(i),) * 100 for i in range(4))
        assert outputs["large"].error is not None
        assert max(engine.client.sizes) <= 2_000


def test_a_client_that_does_not_read_stops_the_steps_but_not_its_aborts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "OUTBOX_BYTES", 1000)
    with engine_thread(FakeRunner(max_model_len=100_000, num_blocks=7000)) as engine:
        engine.client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        engine.client.ready()
        engine.client.send(*(fake_request(str(i), [i], 10_000, logprobs=20) for i in range(8)))
        wait_until(lambda: bool(engine.runner.steps) and not engine.stamp.read().has_work)
        stopped = len(engine.runner.steps)
        time.sleep(0.05)
        assert len(engine.runner.steps) == stopped < 9000
        engine.client.send(AbortRequests([str(i) for i in range(8)]))
        outputs = engine.client.until_finished(*(str(i) for i in range(8)))
        assert all(answers[-1].finish_reason is FinishReason.ABORT for answers in outputs.values())
        assert len(engine.runner.steps) == stopped


def test_answers_larger_than_a_frame_are_sent_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "FrameChannel", partial(FrameChannel, max_frame_bytes=20_000))
    runner = FakeRunner(num_blocks=256)
    with engine_thread(runner, max_num_batched_tokens=1024, max_logit_rows=1024) as engine:
        engine.client.ready()
        engine.client.send(
            *(fake_request(f"ok{i}", [i] * 100, 1, prompt_logprobs=5) for i in range(4)),
            fake_request("large", [9] * 400, 1, prompt_logprobs=5),
        )
        outputs = engine.client.until_finished("large", *(f"ok{i}" for i in range(4)))
        assert [len(outputs[f"ok{i}"][0].prompt_logprobs or []) for i in range(4)] == [99] * 4
        assert outputs["large"][0].error is not None
        assert max(engine.client.sizes) <= 20_000


def test_a_client_that_leaves_ends_the_engine_quietly(capfd: pytest.CaptureFixture[str]) -> None:
    for with_work in (False, True):
        with engine_thread() as engine:
            engine.client.ready()
            if with_work:
                engine.client.send(fake_request("a", [1], 400))
                engine.client.receive()
        assert engine.exit_code == 0
    assert capfd.readouterr().err == ""


def test_steps_that_keep_failing_end_the_engine_with_a_reason(caplog: pytest.LogCaptureFixture) -> None:
    def broken(step: StepPlan) -> bool:
        raise MemoryError("out of memory")

    with engine_thread(FakeRunner(fail_submit=broken), max_num_seqs=1) as engine:
        engine.client.ready()
        engine.client.send(*(fake_request(str(i), [i], 3) for i in range(4)))
        answered: list[str] = []
        frame = engine.client.receive()
        while isinstance(frame, OutputFrame):
            answered += [output.request_id for output in frame.outputs if output.error is not None]
            frame = engine.client.receive()
        assert frame == EngineFatal("3 steps failed in a row, the last with MemoryError: out of memory")
        assert answered == ["0", "1", "2"]
        assert engine.join() == 1
    assert caplog.text.count("Traceback") == 3


def test_a_bug_shows_its_traceback_and_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    runner = FakeRunner()
    del runner.info
    with engine_thread(runner) as engine:
        assert isinstance(engine.client.receive(), LoadProgress)
        frame = engine.client.receive()
        assert isinstance(frame, EngineFatal)
        assert frame.message.startswith("engine bug: AttributeError")
        assert engine.join() == 1
    assert "Traceback" in capfd.readouterr().err


# -- a process of its own ---------------------------------------------------------------------------------------


@contextmanager
def engine_process(config: EngineConfig) -> Iterator[tuple[subprocess.Popen[str], Client, ProgressStamp]]:
    near, far = socket.socketpair()
    stamp = ProgressStamp.create()
    with near, far:
        command = [sys.executable, "-m", "tests.engine.fake_worker", str(far.fileno()), str(stamp.fd)]
        child = subprocess.Popen(command, pass_fds=[far.fileno(), stamp.fd], stderr=subprocess.PIPE, text=True)
        far.close()
        client = Client(near)
        client.send(config)
        try:
            yield child, client, stamp
        finally:
            child.kill()
            child.communicate()
            stamp.close()


def test_a_process_serves_ignores_ctrl_c_and_leaves_with_its_parent() -> None:
    with engine_process(fake_config()) as (child, client, stamp):
        assert client.ready().pid == child.pid
        child.send_signal(signal.SIGINT)
        client.send(fake_request("a", [1, 2], 10))
        assert tokens(client.until_finished("a")["a"]) == expected_tokens([1, 2], 10)
        wait_until(lambda: stamp.read().steps == 10)
        client.sock.close()
        _, stderr = child.communicate(timeout=SECONDS)
        assert (child.returncode, stderr) == (0, "")


def test_a_killed_process_is_seen_as_the_end_of_the_stream() -> None:
    with engine_process(fake_config()) as (child, client, _):
        client.ready()
        client.send(fake_request("a", [1, 2], 400))
        client.receive()
        child.kill()
        with pytest.raises(ConnectionError):
            client.read_to_the_end()


@pytest.mark.parametrize(
    ("failure", "message", "traceback"),
    [
        ("value", "config.json: hidden_size is missing", False),
        ("runtime", "weights.safetensors: tensor a.b is missing", False),
        ("file", "[Errno 2] No such file or directory: 'model.gguf'", False),
        ("memory", "MemoryError", False),
        ("bug", "engine bug: KeyError: 'oops'", True),
    ],
)
def test_a_load_that_fails_is_one_line_and_exit_code_one(failure: str, message: str, traceback: bool) -> None:
    with engine_process(fake_config(model_dir=failure)) as (child, client, _):
        assert client.receive() == EngineFatal(message)
        _, stderr = child.communicate(timeout=SECONDS)
        assert child.returncode == 1
        assert ("Traceback" in stderr) == traceback
        assert traceback or stderr == ""


def test_a_configuration_that_does_not_decode_is_fatal() -> None:
    near, far = socket.socketpair()
    with near:
        client = Client(near)
        client.send({"model_dir": 5})
        assert run_engine(far, lambda *_: FakeRunner()) == 1
        frame = client.receive()
        assert isinstance(frame, EngineFatal)
        assert "model_dir" in frame.message


def test_the_engine_needs_neither_torch_nor_a_web_stack() -> None:
    rooms = ["core", "scheduler", "kv.manager", "request", "loop", "process", "inproc", "admission", "step"]
    imports = "; ".join(f"import app.engine.{room}" for room in rooms)
    check = "import sys; print(*{'torch', 'fastapi', 'pydantic', 'transformers', 'numpy'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", f"{imports}; {check}"], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_a_grammar_that_is_ready_wakes_an_idle_engine() -> None:
    with engine_thread(byte_runner(), eos_token_ids=(EOS,)) as engine:
        engine.client.ready()
        engine.client.send(byte_vocabulary(), constrained("a", "start: /[0-9]{3}/"), constrained("bad", "start: ("))
        outputs = engine.client.until_finished("a", "bad")
        assert bytes(tokens(outputs["a"])).isdigit()
        assert outputs["bad"][0].error is not None
        assert outputs["bad"][0].error.code == "invalid_constraint"
        wait_until(lambda: not engine.stamp.read().has_work)
        engine.client.send(Shutdown())
    assert engine.exit_code == 0


def test_a_deadline_ends_a_wait_for_a_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()

    def refuse_later(*_: object) -> None:
        go.wait(SECONDS)
        raise ConstraintError("too late")

    monkeypatch.setattr(GuidanceCompiler, "compile", refuse_later)
    with engine_thread(byte_runner(), eos_token_ids=(EOS,)) as engine:
        engine.client.ready()
        deadline = time.monotonic() + 0.05
        engine.client.send(byte_vocabulary(), constrained("a", "start: /[0-9]/", deadline=deadline))
        (output,) = engine.client.until_finished("a")["a"]
        assert output.error is not None
        assert output.error.code == "deadline_exceeded"
        go.set()
        engine.client.send(Shutdown())


@pytest.mark.timeout(20)
def test_a_reader_that_was_quicker_than_the_engine_is_not_waited_for() -> None:
    """What was queued fits the socket by now: there is room, whatever the engine saw before it came to wait."""
    near, far = socket.socketpair()
    with near, far:
        port = process.SocketPort(FrameChannel(near))
        assert port.poll(wait=True, for_room=True) == []
        port.close()


def test_an_engines_process_keeps_what_it_loaded_from_the_collector() -> None:
    gc.unfreeze()  # what engines in this process's threads left
    try:
        frozen(make_fake_runner)(fake_config(), lambda _: None)
        assert gc.get_freeze_count() > 1000
    finally:
        gc.unfreeze()
