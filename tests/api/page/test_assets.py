"""The pages' files: types, caching, the policy that they come under, who may have them."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from app.api.page import assets
from app.api.service import ApiSettings
from app.keys import parse_keys
from tests.api.conftest import Server, start_server

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
KEY = "some-key-0123456789"
STATIC = Path(assets.__file__).parent / "static"


async def get(server: Server, path: str, **headers: str) -> httpx.Response:
    return await server.http.get(path, headers={**HTML, **headers})


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_a_page_is_html_under_a_strict_policy(shared_server: Server, path: str) -> None:
    page = await get(shared_server, path)
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"


async def test_programs_that_ask_the_root_still_get_what_they_look_for(shared_server: Server) -> None:
    for accept in ("*/*", "application/json"):
        answer = await shared_server.http.get("/", headers={"Accept": accept})
        assert answer.text == "Ollama is running"
    assert (await get(shared_server, "/")).headers["vary"] == "accept"
    assert (await shared_server.http.post("/", headers=HTML, json={"inputs": "a"})).status_code == 200


@pytest.mark.parametrize(
    ("suffix", "content_type"),
    [
        (".js", "text/javascript; charset=utf-8"),
        (".css", "text/css; charset=utf-8"),
        (".svg", "image/svg+xml"),
        (".txt", "text/plain; charset=utf-8"),
    ],
)
async def test_every_file_is_served_as_what_it_is(shared_server: Server, suffix: str, content_type: str) -> None:
    names = [name for name in assets.names() if name.endswith(suffix)]
    assert names
    for name in names:
        answer = await get(shared_server, f"/page/{name}")
        assert answer.content == (STATIC / name).read_bytes()
        assert answer.headers["content-type"] == content_type


async def test_a_browser_that_has_a_file_is_told_so(shared_server: Server) -> None:
    for path in ("/", "/docs", "/page/js/main.js"):
        first = await get(shared_server, path)
        assert first.headers["cache-control"] == "no-cache"
        again = await get(shared_server, path, **{"If-None-Match": f'"other", W/{first.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
        assert (await get(shared_server, path, **{"If-None-Match": '"other"'})).status_code == 200


async def test_head_answers_as_get_does_without_the_body(shared_server: Server) -> None:
    for path in ("/", "/docs", "/page/js/main.js"):
        whole = await get(shared_server, path)
        head = await shared_server.http.head(path, headers=HTML)
        assert (head.status_code, head.content) == (200, b"")
        for name in ("content-type", "content-length", "etag"):
            assert head.headers[name] == whole.headers[name]


@pytest.mark.parametrize("name", ["no.js", "", "js", "js/", "../routes.py", "..%2froutes.py", "%2e%2e/routes.py"])
async def test_what_is_no_file_is_not_found(shared_server: Server, name: str) -> None:
    answer = await get(shared_server, f"/page/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unknown_url"


async def test_the_pages_may_be_turned_off() -> None:
    async with start_server(ApiSettings(page=False)) as server:
        assert (await get(server, "/")).text == "Ollama is running"
        for path in ("/docs", "/page/js/main.js"):
            assert (await get(server, path)).status_code == 404
        assert (await server.http.get("/openapi.json")).status_code == 200


async def test_a_server_with_keys_shows_its_pages_and_nothing_else() -> None:
    async with start_server(ApiSettings(api_keys=parse_keys([KEY]))) as server:
        for path in ("/", "/docs", "/page/js/main.js"):
            assert (await get(server, path)).status_code == 200
        for path in ("/page/no.js", "/openapi.json", "/v1/models"):
            assert (await get(server, path)).status_code == 401
        assert (await server.http.get("/")).status_code == 401
        assert (await server.http.post("/", headers=HTML, json={"inputs": "a"})).status_code == 401
    async with start_server(ApiSettings(api_keys=parse_keys([KEY]), page=False)) as server:
        for path in ("/", "/docs", "/page/js/main.js"):
            assert (await get(server, path)).status_code == 401


def test_the_files_ask_for_nothing_from_elsewhere() -> None:
    """The policy would refuse it; a file that needs it is wrong all the same."""
    for name in assets.names():
        text = (STATIC / name).read_text("utf-8")
        if name.startswith("vendor/"):
            continue
        assert not re.search(r"""(src|href|url|import)\s*[=(]?\s*["'(]\s*(https?:)?//""", text), name
        assert "innerHTML" not in text, name


def test_every_module_that_is_imported_is_there() -> None:
    for name in assets.names():
        path = STATIC / name
        for target in re.findall(r'from "(\.[^"]+)"', path.read_text("utf-8")):
            assert (path.parent / target).resolve().is_file(), (name, target)
    for page in ("index.html", "docs.html"):
        for target in re.findall(r'(?:src|href)="page/([^"]+)"', (STATIC / page).read_text("utf-8")):
            assert target in assets.names(), (page, target)


def test_the_languages_have_the_same_words() -> None:
    tables = {}
    for language in ("en", "zh"):
        text = (STATIC / f"js/i18n/{language}.js").read_text("utf-8")
        tables[language] = dict(re.findall(r'^  "([\w.]+)": "(.*)",$', text, re.MULTILINE))
    assert tables["en"].keys() == tables["zh"].keys()
    for key, text in tables["en"].items():
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", tables["zh"][key])), key
    used = set()
    for name in assets.names():
        if name.endswith(".js") and "i18n/" not in name:
            used |= set(re.findall(r'\bt\("([\w.]+)"', (STATIC / name).read_text("utf-8")))
    assert used <= tables["en"].keys()
