"""Served models: names, states, and one server in front of several engines."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest

from app.api.app import create_app
from app.api.service import Service
from app.errors import RequestError
from app.serving.served import Served, ServedModels
from app.serving.states import ModelState
from app.serving.supervisor import LONGEST_STEP
from tests.api.conftest import Server, clients, listening
from tests.serving.rig import Rig, make_rig, repeat, running


def served_as(rig: Rig, *names: str) -> Served:
    return Served(names, rig.generator, rig.client, rig.client.progress_age, lambda: LONGEST_STEP)


def test_a_name_finds_its_model_and_no_name_the_first() -> None:
    first, second = served_as(make_rig(), "a", "org/a"), served_as(make_rig(), "b")
    models = ServedModels([first, second])
    assert models.names == ["a", "org/a", "b"]
    assert [models.resolve(name) for name in (None, "a", "org/a", "b")] == [first, first, first, second]
    for unknown in ("", "c", "A", "x" * 10_000):
        with pytest.raises(RequestError) as error:
            models.resolve(unknown)
        assert (error.value.status, error.value.code, error.value.param) == (404, "model_not_found", "model")
        assert "a, org/a, b" in error.value.message
        assert len(error.value.message) < 300


def test_a_name_that_is_near_is_told() -> None:
    models = ServedModels([served_as(make_rig(), "smollm2-135m")])
    with pytest.raises(RequestError, match=r"'smolm2-135m' is not served here \(did you mean smollm2-135m\?\)"):
        models.resolve("smolm2-135m")


def test_where_any_name_will_do_known_ones_keep_their_model() -> None:
    first, second = served_as(make_rig(), "a"), served_as(make_rig(), "b")
    models = ServedModels([first, second], any_name=True)
    assert [models.resolve(name) for name in (None, "a", "b", "gpt-4o", "")] == [first, first, second, first, first]
    assert models.names == ["a", "b"]
    with pytest.raises(RequestError):  # every chunk of an answer repeats it
        models.resolve("x" * 10_000)


def test_a_name_is_of_one_model() -> None:
    with pytest.raises(ValueError, match="'b'"):
        ServedModels([served_as(make_rig(), "a", "b"), served_as(make_rig(), "b")])
    with pytest.raises(ValueError, match="no model"):
        ServedModels([])
    assert ServedModels([served_as(make_rig(), "a", "a")]).names == ["a"]


async def test_states_through_a_life() -> None:
    failing = served_as(make_rig(), "a")
    with pytest.raises(RequestError) as error:
        failing.fingerprint()
    assert error.value.status == 503
    states = [failing.state]
    failing.client.fail("the weights are broken")
    assert [*states, failing.state] == [ModelState.LOADING, ModelState.FAILED]
    async with running() as rig:
        served = served_as(rig, "b")
        assert served.fingerprint() != served_as(rig, "c").fingerprint()
        states = [served.state]
        ServedModels([served]).drain()
        assert [*states, served.state] == [ModelState.READY, ModelState.UNLOADING]
        assert served.info().max_model_len == 512, "requests under way still need to know"


@contextlib.asynccontextmanager
async def two_models() -> AsyncIterator[tuple[Server, Rig, Rig]]:
    """A server of two models: ``x`` says x, ``y`` says y."""
    async with running(repeat("x")) as first, running(repeat("y"), max_model_len=64) as second:
        service = Service(ServedModels([served_as(first, "x"), served_as(second, "y")]), first.metrics)
        async with listening(create_app(service)) as url, clients(url) as (http, sdk):
            yield Server(url, service, first, http, sdk), first, second


async def test_each_model_answers_for_itself() -> None:
    async with two_models() as (server, first, second):
        fingerprints = set()
        for model, text in (("x", "xxx"), ("y", "yyy"), (None, "xxx")):
            body = {"prompt": "p", "max_tokens": 3} | ({"model": model} if model else {})
            answer = (await server.post("/v1/completions", body)).json()
            assert (answer["choices"][0]["text"], answer["model"]) == (text, model or "x")
            fingerprints.add(answer["system_fingerprint"])
        assert len(fingerprints) == 2
        assert [len(rig.ledger.records) for rig in (first, second)] == [2, 1]
        cards = (await server.http.get("/v1/models")).json()["data"]
        assert [(card["id"], card["root"], card["max_model_len"]) for card in cards] == [
            ("x", "x", 512),
            ("y", "y", 64),
        ]
        tokenized = await server.post("/tokenize", {"prompt": "p", "model": "y"})
        assert tokenized.json()["max_model_len"] == 64
        assert (await server.post("/v1/completions", {"prompt": "p", "model": "z"})).status_code == 404


async def test_a_server_is_ready_when_all_its_models_are() -> None:
    async with two_models() as (server, first, second):
        assert (await server.http.get("/readyz")).status_code == 200
        second.client.drain()
        draining = await server.http.get("/readyz")
        assert (draining.status_code, draining.json()["state"]) == (503, "draining")
        assert (await server.post("/v1/completions", {"prompt": "p", "max_tokens": 1})).status_code == 200
        assert (await server.http.get("/livez")).status_code == 200

        gone = make_rig()
        gone.client.fail("its engine died for good")
        service = Service(ServedModels([served_as(first, "x"), served_as(gone, "z")]), first.metrics)
        async with listening(create_app(service)) as url:
            dead = await server.http.get(f"{url}/livez")
        assert (dead.status_code, dead.json()["reason"]) == (503, "its engine died for good")
