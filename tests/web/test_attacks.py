"""What was tried to get in, to get out, or to make others do what they do not want: docs/reference/security.md lists it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.web_team import DOMAIN, NOWHERE, PASSWORD, SAME, Browser, Team, make_team, question

from preftune.web import auth, live
from preftune.web.app import MAX_BODY_BYTES


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Team]:
    made = make_team(tmp_path, "Rita", "Ravi")
    yield made
    made.store.close()


# Requests that another site makes a browser send


def unsafe_requests(path: str) -> list[tuple[str, str]]:
    posted = ["/next", f"{path}/submit", f"{path}/skip", "/undo", "/logout", "/live", "/live/vote", "/live/stop", "/live/undo"]
    return [("PUT", f"{path}/draft"), *(("POST", address) for address in posted)]


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://testserver"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://testserver.evil.example"},
        {"Origin": "http://testserver:81"},
    ],
)
def test_a_request_from_another_site_does_nothing_even_with_the_right_token(team, headers):
    team.add(question("Q?"), ["one", "two"])
    browser = team.at_item()
    path, token = browser.judging(), browser.csrf
    for method, address in unsafe_requests(path):
        body = (
            {"json": {"version": 0, "fields": {}}}
            if method == "PUT"
            else {"data": {"csrf": token, "choice": "1", "submission_id": "12345678"}}
        )
        response = browser.client.request(method, address, headers={"X-CSRF": token, **headers}, **body)
        assert response.status_code == 403, address
    assert team.judgements() == []
    assert auth.session_of(team.store, browser.client.cookies["preftune"]) is not None


@pytest.mark.parametrize("token", ["", "x", "another's"])
def test_a_form_without_the_sessions_own_token_does_nothing(team, token):
    team.add(question("Q?"), ["one", "two"])
    browser = team.at_item()
    path = browser.judging()
    if token == "another's":
        other = team.browser("Ravi")
        other.get("/")
        token = other.csrf
    for method, address in unsafe_requests(path):
        sent = (
            {"json": {"version": 0, "fields": {}}, "headers": {**SAME, "X-CSRF": token}}
            if method == "PUT"
            else {"data": {"csrf": token}, "headers": SAME}
        )
        assert browser.client.request(method, address, **sent).status_code == 403, address
    assert team.judgements() == []


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "application/xml", "application/octet-stream"])
def test_a_body_of_another_kind_is_not_read(team, kind):
    browser = team.browser("Rita")
    browser.get("/")
    response = browser.client.post("/next", content=f"csrf={browser.csrf}", headers={**SAME, "Content-Type": kind})
    assert response.status_code == 415


def test_logging_in_needs_the_token_of_its_own_form(team):
    browser = team.browser()
    browser.get("/login")
    assert browser.client.post("/login", data={"name": "Rita", "password": PASSWORD}, headers=SAME).status_code == 403
    other = team.browser()
    other.get("/login")
    sent = {"name": "Rita", "password": PASSWORD, "csrf": other.csrf}
    assert browser.client.post("/login", data=sent, headers=SAME).status_code == 403
    assert "preftune" not in browser.client.cookies


def test_reading_changes_nothing(team):
    team.add(question("Q?"), ["one", "two"])
    browser = team.at_item()
    before = [row.id for row in team.judgements()], auth.session_of(team.store, browser.client.cookies["preftune"])
    for address in ("/logout", "/undo", "/next", f"{browser.judging()}/submit", f"{browser.judging()}/skip", "/live/vote"):
        assert browser.client.get(address, headers=SAME).status_code == 405
    assert before == ([row.id for row in team.judgements()], auth.session_of(team.store, browser.client.cookies["preftune"]))


# Sessions


def test_the_cookie_is_out_of_reach_for_scripts_and_other_sites(team):
    browser = team.browser()
    browser.get("/login")
    form = browser.page.forms["/login"].fields() | {"name": "Rita", "password": PASSWORD}
    cookies = browser.client.post("/login", data=form, headers=SAME, follow_redirects=False).headers.get_list("set-cookie")
    (cookie,) = [cookie for cookie in cookies if cookie.startswith("preftune=")]
    assert {"httponly", "samesite=lax", "path=/"} <= {part.strip().lower() for part in cookie.split(";")}
    assert "domain" not in cookie.lower()


def test_over_tls_the_cookie_is_bound_to_this_host_and_the_browser_told_to_stay_with_tls(team):
    browser = Browser(team.app, base_url="https://testserver")
    browser.get("/login")
    form = browser.page.forms["/login"].fields() | {"name": "Rita", "password": PASSWORD}
    response = browser.client.post("/login", data=form, headers=SAME, follow_redirects=False)
    (cookie,) = [cookie for cookie in response.headers.get_list("set-cookie") if cookie.startswith("__Host-preftune=")]
    assert "; Secure" in cookie
    assert response.headers["strict-transport-security"] == "max-age=31536000"
    assert browser.get("/").words.count("Rita") == 1


def test_a_session_from_before_logging_in_is_not_the_one_after(team):
    browser = team.browser("Rita")
    old = browser.client.cookies["preftune"]
    browser.get("/")
    browser.send("/logout")
    browser.send("/login", name="Rita", password=PASSWORD)
    assert browser.client.cookies["preftune"] != old
    browser.client.cookies.set("preftune", old, domain=DOMAIN)
    browser.get("/")
    assert browser.here.startswith("/login")


@pytest.mark.parametrize("token", ["x", "", "' OR 1=1 --", "a" * 5000, "\u00e9"])
def test_a_made_up_session_is_none(team, token):
    browser = team.browser()
    response = browser.client.get("/", headers={**SAME, "Cookie": f"preftune={token}".encode()}, follow_redirects=False)
    assert (response.status_code, response.headers["location"]) == (303, "/login")


def test_ended_revoked_and_disabled_sessions_are_none(team):
    browser = team.browser("Rita")
    assert browser.get("/").words
    auth.revoke_sessions(team.store, team.people["Rita"].id)
    assert browser.get("/").forms.keys() == {"/login"}
    browser = team.browser("Rita")
    auth.disable(team.store, team.people["Olga"], team.people["Rita"].id)
    assert browser.get("/").forms.keys() == {"/login"}


def test_who_was_logged_out_gets_a_plain_word_and_the_script_a_401(team):
    team.add(question("Q?"), ["one", "two"])
    browser = team.at_item()
    path, token = browser.judging(), browser.csrf
    auth.revoke_sessions(team.store, team.people["Rita"].id)
    response = browser.client.post(f"{path}/submit", data={"csrf": token}, headers={**SAME, "Accept": "application/json"})
    assert (response.status_code, response.json()["error"][:21]) == (401, "You are not logged in")
    assert browser.client.post(f"{path}/submit", data={"csrf": token}, headers=SAME).status_code == 401


# Owners' routes


def test_no_route_of_the_owner_answers_a_rater_or_nobody(team):
    addresses = {(m, p) for m, p in routes_of(team) if p.startswith("/owner")}
    assert addresses
    rater, nobody = team.browser("Rita"), team.browser()
    rater.get("/")
    for method, address in addresses:
        path = re.sub(r"\{[^}]+\}", "x", address)
        sent = {"headers": {**SAME, "X-CSRF": rater.csrf}, **({} if method == "GET" else {"data": {"csrf": rater.csrf}})}
        assert rater.client.request(method, path, **sent).status_code == 403, path
        response = nobody.client.request(method, path, headers=SAME, follow_redirects=False)
        assert response.status_code in (303, 401), path


def routes_of(team: Team) -> list[tuple[str, str]]:
    """Return (method, path) of every route."""
    return [(method.upper(), path) for path, methods in team.app.openapi()["paths"].items() for method in methods]


def test_the_list_of_routes_is_whole(team):
    found = set(routes_of(team))
    assert {("POST", "/next"), ("PUT", "/a/{assignment_id}/draft"), ("GET", "/owner"), ("POST", "/live/vote")} <= found


# Paths, headers, events


@pytest.mark.parametrize(
    "path",
    [
        "../app.py",
        "..%2fapp.py",
        "%2e%2e/app.py",
        "..%5capp.py",
        "....//app.py",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "app.css%00.py",
        "../pages/base.html",
        "",
    ],
)
def test_nothing_but_our_static_files_is_served_as_static(team, path):
    browser = team.browser("Rita")
    browser.get("/")
    folder = browser.stylesheet.rsplit("/", 1)[0]
    response = browser.client.get(f"{folder}/{path}", headers=SAME)
    assert response.status_code in (400, 404)
    assert "import" not in response.text
    assert "root:" not in response.text


@pytest.mark.parametrize(
    "onward",
    [
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "/a\r\nSet-Cookie: x=1",
        "/a%0d%0aX: y",
        "javascript:alert(1)",
        "/?a=b",
        "/a b",
        "",
    ],
)
def test_logging_in_leads_nowhere_else(team, onward):
    browser = team.browser()
    browser.get("/login")
    form = browser.page.forms["/login"].fields() | {"name": "Rita", "password": PASSWORD, "next": onward}
    response = browser.client.post("/login", data=form, headers=SAME, follow_redirects=False)
    assert response.headers["location"] == "/"
    assert "x" not in response.cookies


def test_a_name_with_a_line_break_ends_no_header(team):
    browser = team.browser()
    browser.get("/login")
    page = browser.send("/login", name="Rita\r\nSet-Cookie: evil=1", password="x")
    assert browser.status == 401
    assert "evil" not in browser.client.cookies
    assert "evil" in page.source


def test_text_of_a_model_cannot_end_an_event_or_begin_another():
    nasty = 'one\n\nevent: done\ndata: {"x": 1}\r\n\r\ndata: two\u2028three\u2029\x00</script>'
    run = live.Run("r", "p", question("Q?"), (None, None), (1, 2), texts=[nasty, "b"], done=[True, True], seen=10_000)  # type: ignore[arg-type]

    async def gather() -> str:
        return "".join([event async for event in live.events(run)])

    stream = asyncio.run(gather())
    events = [event for event in stream.split("\n\n") if event]
    assert len(events) == 3
    assert stream.isascii()
    assert json.loads(events[0].removeprefix("data: ")) == {"side": 0, "text": nasty}
    assert json.loads(events[1].removeprefix("data: ")) == {"side": 1, "text": "b"}
    assert events[2] == "event: done\ndata: {}"


# Too much


def test_fifty_megabytes_are_refused_before_they_are_read(team):
    browser = team.browser("Rita")
    browser.get("/")
    read = 0

    def body() -> Iterator[bytes]:
        nonlocal read
        for _ in range(50):
            read += 2**20
            yield b"x" * 2**20

    headers = {**SAME, "X-CSRF": browser.csrf, "Content-Type": "application/x-www-form-urlencoded"}
    said = browser.client.post("/next", content=b"", headers={**headers, "Content-Length": str(50 * 2**20)})
    assert (said.status_code, said.headers["connection"]) == (413, "close")
    # Without a length it is counted as it comes.
    counted = browser.client.post("/next", content=body(), headers=headers)
    assert counted.status_code == 413
    assert MAX_BODY_BYTES < 50 * 2**20


def test_who_hangs_up_in_the_middle_of_a_form_writes_no_trace_into_the_log(team, caplog):
    sent = []

    async def hung_up() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    headers = [(b"host", b"testserver"), (b"content-length", b"9"), (b"content-type", b"application/x-www-form-urlencoded")]
    scope = {"type": "http", "method": "POST", "path": "/login", "query_string": b"", "scheme": "http", "headers": headers}
    asyncio.run(team.app({**scope, "http_version": "1.1", "server": ("testserver", 80), "client": ("192.0.2.1", 1)}, hung_up, send))
    assert sent[0]["status"] == 400
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("&".join(f"a{i}=1" for i in range(600)), "application/x-www-form-urlencoded"),
        ("a=%ff%fe", "application/x-www-form-urlencoded"),
        ("a=%00", "application/x-www-form-urlencoded"),
        ("[" * 100_000, "application/json"),
        ('{"a": "\\ud800"}', "application/json"),
        ('{"a": "\\u0000"}', "application/json"),
        ('{"a": ' + "9" * 5000 + "}", "application/json"),
        ("not json", "application/json"),
    ],
)
def test_a_body_that_cannot_be_read_is_a_sentence(team, body, kind):
    browser = team.browser("Rita")
    browser.get("/")
    response = browser.client.post(
        "/next", content=body, headers={**SAME, "X-CSRF": browser.csrf, "Content-Type": kind, "Accept": "application/json"}
    )
    assert response.status_code == 400
    assert response.json()["error"].startswith("What was sent cannot be read")


def test_a_huge_answer_is_shown_whole_and_soon(team):
    text = "```python\n" + "x = [1, 2, 3]  # a line\n" * 5_000 + "```\nThe end."
    team.add(question("Q?"), [text, "short"])
    page = team.at_item().page
    assert "The end." in page.words
    assert page.words.count("x = [1, 2, 3]") >= 5_000


# Blindness


def test_no_page_and_no_header_tells_where_an_answer_comes_from(team):
    candidates = team.add(question("Which?"), ["one\n\nline", "two\n\nline", "three"])
    browser = team.at_item()
    path = browser.judging()
    seen = []
    for address in (path, "/", f"{path}/diff", f"{path}/text/0", "/history"):
        response = browser.client.get(address, headers=SAME)
        seen.append(response.text + str(response.headers))
    page = browser.get(path)
    browser.send(f"{path}/submit", **{"place-0": "1", "place-1": "2"})
    seen += [browser.page.source + str(browser.headers), browser.get("/history").source, browser.get(path).source]
    hidden = ["secret-model", *(candidate.id for candidate in candidates), candidates[0].prompt_id, "normal", "gold", "retest", "random"]
    for text in seen:
        without_names = text.replace("font-weight: normal", "")
        assert [word for word in hidden if word in without_names] == []
    assert page.source


# Live comparison: a rater cannot choose what is asked where


def test_a_question_cannot_name_another_server(tmp_path):
    team = make_team(tmp_path, "Rita", endpoints=[NOWHERE])
    browser = team.browser("Rita")
    browser.get("/live")
    browser.send("/live", prompt="hello", url="http://169.254.169.254/", endpoint="x", model="y")
    (run,) = team.app.state.live._runs.values()
    assert {endpoint.url for endpoint in run.endpoints} == {"http://127.0.0.1:9/v1"}
    run.stop()
    team.store.close()


def test_a_run_is_its_askers_alone(tmp_path):
    team = make_team(
        tmp_path, "Rita", "Ravi", endpoints=[{"name": "here", "url": "http://127.0.0.1:9/v1", "model": "m", "allow_private": True}]
    )
    browser, other = team.browser("Rita"), team.browser("Ravi")
    browser.get("/live")
    browser.send("/live", prompt="hello")
    run = browser.here.removeprefix("/live?run=")
    other.get("/live")
    for address in (f"/live?run={run}", f"/live/stream?run={run}"):
        assert other.client.get(address, headers=SAME).status_code == 404
    assert other.post("/live/vote", {"csrf": other.csrf, "run": run, "choice": "1"}) is not None
    assert other.status == 404
    team.store.close()
