"""The client for models behind a URL, against a real HTTP server that behaves well and badly."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import threading
import time
from email.utils import formatdate
from pathlib import Path
from shutil import which

import pytest
from tests.remote_server import choices, delta, fails, says, send, serving, streams

from preftune.data import remote
from preftune.data.remote import Ask, Endpoint, RemoteError, Reply, chat, complete, complete_all, read_endpoints, stream_chat
from preftune.errors import ConfigError, PreftuneError
from preftune.records import Message

ASKED = [Message(role="system", content="Be short."), Message(role="user", content="Say hello.")]
SETTINGS = {"temperature": 0.7, "max_tokens": 9}
SECRET = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch):
    monkeypatch.setattr(remote, "BACK_OFF_SECONDS", 0.01)


def error_of(endpoint: Endpoint, kind: type[PreftuneError] = RemoteError) -> str:
    with pytest.raises(kind) as raised:
        chat(endpoint, ASKED, **SETTINGS)
    return str(raised.value)


def test_a_request_says_what_was_asked_and_the_answer_comes_back():
    with serving(says("Hello.")) as server:
        assert chat(server.endpoint(), ASKED, temperature=0.7, max_tokens=9, seed=3) == ["Hello."]
    assert server.seen[0].path == "/v1/chat/completions"
    assert server.seen[0].body == {
        "model": "tiny",
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Say hello."}],
        "temperature": 0.7,
        "max_tokens": 9,
        "seed": 3,
    }
    assert server.seen[0].headers["host"] == f"127.0.0.1:{server.port}"
    assert "authorization" not in server.seen[0].headers


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/", "/v1/chat/completions"),
        ("", "/chat/completions"),
        ("/openai/x/chat/completions?api-version=2024-06-01", "/openai/x/chat/completions?api-version=2024-06-01"),
        ("/v1?key=a%2Fb", "/v1/chat/completions?key=a%2Fb"),
    ],
)
def test_the_base_url_may_be_written_in_any_usual_way(path, asked):
    with serving(says("Hello.")) as server:
        chat(server.endpoint(url=f"http://127.0.0.1:{server.port}{path}"), ASKED, **SETTINGS)
    assert server.seen[0].path == asked


def test_a_server_may_want_the_limit_under_its_newer_name():
    with serving(says("Hello.")) as server:
        chat(server.endpoint(limit_key="max_completion_tokens"), ASKED, **SETTINGS)
    assert server.seen[0].body["max_completion_tokens"] == 9
    assert "max_tokens" not in server.seen[0].body


def test_several_answers_are_asked_for_at_once_and_again_where_the_server_gives_fewer():
    with serving(says("one", "two"), lambda h, r: send(h, choices("three"))) as server:
        assert chat(server.endpoint(), ASKED, **SETTINGS, seed=10, n=3) == ["one", "two", "three"]
    assert [(r.body.get("n"), r.body["seed"]) for r in server.seen] == [(3, 10), (None, 12)]


def test_an_answer_that_was_cut_is_told_and_what_no_database_takes_is_replaced():
    with serving(says("half a \ud83d and a \0 an", finish_reason="length")) as server:
        assert complete(server.endpoint(), ASKED, **SETTINGS) == [Reply("half a \ufffd and a \ufffd an", finished=False)]


def test_an_answer_without_text_is_an_empty_text():
    with serving(lambda h, r: send(h, choices(None))) as server:
        assert chat(server.endpoint(), ASKED, **SETTINGS) == [""]


# Keys


def test_the_key_goes_into_the_header_and_into_no_error(monkeypatch):
    monkeypatch.setenv("A_KEY", SECRET)
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {SECRET}."}}).encode()
    with serving(fails(401, body)) as server:
        said = error_of(server.endpoint(api_key_env="A_KEY"))
    assert server.seen[0].headers["authorization"] == f"Bearer {SECRET}"
    assert said == 'endpoint "here": the server answers 401: Incorrect API key provided: [key]. Look at the key.'
    assert len(server.seen) == 1


@pytest.mark.parametrize("answer", [b"<html>%s</html>", b'{"choices": "%s"}', b'["%s"]'])
def test_a_server_that_repeats_the_key_in_nonsense_does_not_get_it_shown(monkeypatch, answer):
    monkeypatch.setenv("A_KEY", SECRET)
    with serving(lambda h, r: send(h, answer % SECRET.encode())) as server:
        assert SECRET not in error_of(server.endpoint(api_key_env="A_KEY"))


@pytest.mark.parametrize(("value", "said"), [("", "holds no key"), ("a\nb", "holds a character that no key has"), ("é", "no key has")])
def test_a_key_that_is_none_is_refused_without_being_shown(monkeypatch, value, said):
    monkeypatch.setenv("A_KEY", value)
    with serving(says("Hello.")) as server:
        error = error_of(server.endpoint(api_key_env="A_KEY"), ConfigError)
    assert said in error
    assert "A_KEY" in error
    assert not server.seen


def test_a_key_never_travels_unencrypted_to_a_public_address(monkeypatch):
    monkeypatch.setenv("A_KEY", SECRET)
    assert "the key would travel unencrypted" in error_of(
        Endpoint(name="x", url="http://8.8.8.8/v1", model="m", api_key_env="A_KEY"), ConfigError
    )


# Busy and broken servers


@pytest.mark.parametrize("status", [429, 500, 502, 503, 529])
def test_a_busy_server_is_asked_again(status):
    with serving(fails(status), fails(status), says("Hello.")) as server:
        assert chat(server.endpoint(), ASKED, **SETTINGS) == ["Hello."]
    assert len(server.seen) == 3


def test_the_pause_is_the_one_that_the_server_asks_for(monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", pauses.append)
    with serving(fails(429, Retry_After="0.3"), says("Hello.")) as server:
        chat(server.endpoint(), ASKED, **SETTINGS)
    assert pauses == [0.3]


def test_a_date_to_wait_for_is_understood_and_one_far_away_is_not_waited_for():
    with serving(fails(503, Retry_After=formatdate(time.time() + 7200, usegmt=True))) as server:
        said = error_of(server.endpoint())
    assert "It asks to wait 7,1" in said or "It asks to wait 7,2" in said
    assert len(server.seen) == 1
    assert remote._retry_after("soon") is None


def test_a_server_that_stays_busy_is_given_up_after_five_attempts():
    with serving(fails(503, b"no capacity")) as server:
        assert error_of(server.endpoint()) == 'endpoint "here": the server answers 503: no capacity.'
    assert len(server.seen) == 5


@pytest.mark.parametrize("status", [400, 404, 422])
def test_what_will_not_get_better_is_not_asked_again(status):
    body = b'{"detail": "no model\\u0007\\nof that name  \\u202eevil"}'
    with serving(fails(status, body)) as server:
        assert f"the server answers {status}: no model of that name evil" in error_of(server.endpoint())
    assert len(server.seen) == 1


def test_a_connection_that_breaks_in_the_middle_of_an_answer_is_tried_again():
    def breaks(handler, request):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"choices": [')

    with serving(breaks, says("Hello.")) as server:
        assert chat(server.endpoint(), ASKED, **SETTINGS) == ["Hello."]


def test_a_silent_server_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(remote, "ATTEMPTS", 1)
    hold = threading.Event()
    with serving(lambda h, r: hold.wait(60)) as server:
        started = time.monotonic()
        assert "the server was silent for 0.2 s. Raise timeout_seconds" in error_of(server.endpoint(timeout_seconds=0.2))
        assert time.monotonic() - started < 20
        hold.set()


def drips(handler, request):
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def test_a_server_that_drips_bytes_holds_nobody_for_ever(monkeypatch):
    monkeypatch.setattr(remote, "ATTEMPTS", 1)
    monkeypatch.setattr(remote, "WHOLE_SECONDS", 0.3)
    with serving(drips) as server:
        assert "the answer took over 0.3 s" in error_of(server.endpoint())


def endless(handler, request):
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.end_headers()
    for _ in range(400):  # 25 MiB
        handler.wfile.write(b"x" * 65_536)


def test_an_endless_answer_is_cut_off_at_the_limit():
    with serving(endless) as server:
        assert "the answer is longer than 8 MiB" in error_of(server.endpoint())
    assert len(server.seen) == 1


def test_an_endless_error_is_read_no_further_than_needed():
    with serving(lambda h, r: send(h, b"sorry " * 4_000_000, 400)) as server:
        said = error_of(server.endpoint())
    assert said.startswith('endpoint "here": the server answers 400: sorry sorry')
    assert len(said) < 300


def test_a_compressed_answer_is_refused_so_that_few_bytes_cannot_become_many():
    with serving(lambda h, r: send(h, b"\x1f\x8b", Content_Encoding="gzip")) as server:
        assert "compressed, unasked" in error_of(server.endpoint())
    assert server.seen[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<html>Welcome</html>", "is not JSON (<html>Welcome</html>)"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "is no JSON object"),
        (b'{"choices": []}', "holds no choices"),
        (b'{"error": {"message": "no such model"}}', "holds no choices (no such model)"),
        (b'{"choices": [{"text": "a completion"}]}', "holds no text"),
        (b'{"choices": [{"message": {"content": [1]}}]}', "holds no text"),
        (b'{"choices": [7]}', "holds no text"),
    ],
)
def test_an_answer_of_another_shape_is_a_sentence(body, said):
    with serving(lambda h, r: send(h, body)) as server:
        assert said in error_of(server.endpoint())


# Where a request may go


@pytest.mark.parametrize("target", ["http://169.254.169.254/latest/meta-data/", "http://127.0.0.1:1/", "https://example.com/"])
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirect_is_followed(target, status):
    with serving(fails(status, Location=target)) as server:
        said = error_of(server.endpoint())
    assert f"the server redirects (status {status}) to {target}. Write the final URL" in said
    assert len(server.seen) == 1


PRIVATE = ["127.0.0.1", "localhost", "10.1.2.3", "192.168.0.1", "172.16.0.9", "100.64.0.1", "[::1]", "[fd00::1]", "[::ffff:127.0.0.1]"]
OTHER_SPELLINGS = ["2130706433", "0x7f000001", "127.1", "[64:ff9b::7f00:1]", "[2002:7f00:1::1]"]


@pytest.mark.parametrize("host", PRIVATE + OTHER_SPELLINGS)
def test_this_machine_and_private_networks_are_refused_unless_the_owner_allows_them(host):
    said = error_of(Endpoint(name="x", url=f"http://{host}/v1", model="m"), ConfigError)
    assert "allow_private: true" in said


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "[fe80::1]", "[fd00:ec2::254]", "100.100.100.200", "[::ffff:169.254.169.254]", "0.0.0.0", "224.0.0.1"]
)
def test_what_serves_no_model_is_refused_whatever_the_owner_says(host):
    said = error_of(Endpoint(name="x", url=f"http://{host}/v1", model="m", allow_private=True), ConfigError)
    assert "credentials" in said or "no address of one server" in said


def resolving(monkeypatch, **names):
    """Let these names mean these lists of addresses, one list a look-up; all else is looked up as usual."""
    real, asked = socket.getaddrinfo, []

    def look_up(host, port, *args, **kwargs):
        if host not in names:
            return real(host, port, *args, **kwargs)
        asked.append(host)
        found = names[host][min(len(asked), len(names[host])) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


def test_a_name_that_means_a_public_and_a_private_address_is_refused(monkeypatch):
    resolving(monkeypatch, **{"two.test": [["8.8.8.8", "10.0.0.1"]]})
    assert '"two.test" is 10.0.0.1' in error_of(Endpoint(name="x", url="http://two.test/v1", model="m"), ConfigError)


def test_the_address_that_was_looked_at_is_the_one_asked_even_if_the_name_means_another_a_moment_later(monkeypatch):
    asked = resolving(monkeypatch, **{"rebinding.test": [["127.0.0.1"], ["169.254.169.254"]]})
    with serving(says("Hello.")) as server:
        endpoint = server.endpoint(url=f"http://rebinding.test:{server.port}/v1")
        assert chat(endpoint, ASKED, **SETTINGS) == ["Hello."]
        assert asked == ["rebinding.test"]
        assert server.seen[0].headers["host"] == f"rebinding.test:{server.port}"
        assert "credentials" in error_of(endpoint, ConfigError)


def test_the_next_address_is_tried_where_nothing_listens_at_the_first(monkeypatch):
    resolving(monkeypatch, **{"two.test": [["127.0.0.2", "127.0.0.1"]]})
    with serving(says("Hello.")) as server:
        assert chat(server.endpoint(url=f"http://two.test:{server.port}/v1"), ASKED, **SETTINGS) == ["Hello."]


def test_proxies_of_the_environment_are_not_used(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with serving(says("Hello.")) as server:
        assert chat(server.endpoint(), ASKED, **SETTINGS) == ["Hello."]


def test_an_unknown_name_is_a_sentence():
    assert 'the name "nowhere.invalid" cannot be resolved' in error_of(
        Endpoint(name="x", url="https://nowhere.invalid/v1", model="m"), PreftuneError
    )


@pytest.mark.skipif(which("openssl") is None, reason="openssl, which makes the certificate, is not on this machine")
def test_a_certificate_is_checked_against_the_name_and_not_the_address(monkeypatch, tmp_path):
    made = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=good.test"]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem"), "-addext", "subjectAltName=DNS:good.test"]
    subprocess.run(["openssl", "req", *made, *files], check=True, capture_output=True)
    resolving(monkeypatch, **{"good.test": [["127.0.0.1"]], "bad.test": [["127.0.0.1"]]})
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    remote._tls.cache_clear()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    try:
        with serving(says("Hello."), tls=context) as server:
            good = server.endpoint(url=f"https://good.test:{server.port}/v1")
            assert chat(good, ASKED, **SETTINGS) == ["Hello."]
            assert "certificate" in error_of(server.endpoint(url=f"https://bad.test:{server.port}/v1")).lower()
    finally:
        remote._tls.cache_clear()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://example.com/", "begins with http:// or https://"),
        ("file:///etc/passwd", "begins with http:// or https://"),
        ("https:///v1", "begins with http:// or https://"),
        ("https://example.com:99999/", "this is no URL"),
        ("http://0177.0.0.1/", "this is no URL"),
        ("https://example.com/v1#x", "no #fragment"),
        ("https://example.com/\r\nX: y", "no white space"),
        ("https://user:hunter2@example.com/", "holds a name or a password"),
    ],
)
def test_a_url_that_is_none_for_a_model_is_refused(url, said):
    with pytest.raises((ValueError, ConfigError), match=said) as raised:
        Endpoint(name="x", url=url, model="m")
    assert "hunter2" not in str(raised.value)


# Streams


def test_a_stream_comes_piece_by_piece_whatever_its_lines_end_in_and_wherever_it_is_cut():
    parts = b": a comment\r\n\r\n" + delta("Hé").replace(b"\n", b"\r\n") + delta("llo\n\nyou") + delta("", "stop") + b"data: [DONE]\n\n"
    cuts = [parts[i : i + 7] for i in range(0, len(parts), 7)]
    with serving(streams(*cuts)) as server:
        assert list(stream_chat(server.endpoint(), ASKED, **SETTINGS)) == ["Hé", "llo\n\nyou"]
    assert server.seen[0].body["stream"] is True


def test_the_first_piece_is_there_before_the_last_one_is_sent():
    more = threading.Event()

    def answer(handler, request):
        streams(delta("first"))(handler, request)
        assert more.wait(5)
        handler.wfile.write(delta("last", "stop"))

    with serving(answer) as server:
        stream = stream_chat(server.endpoint(), ASKED, **SETTINGS)
        assert next(stream) == "first"
        more.set()
        assert list(stream) == ["last"]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ((delta("half"),), "broke off before the answer's end"),
        ((delta("half"), b'data: {"error": {"message": "out of memory"}}\n\n'), "the server broke off: out of memory"),
        ((delta("half"), b"data: {broken\n\n"), "is not JSON"),
        ((delta("half"), b"data: [1]\n\n"), "is no JSON object"),
        ((delta("half"), b'data: {"choices": 3}\n\n'), "broke off"),
    ],
)
def test_a_broken_stream_gives_what_came_and_then_says_so(parts, said):
    with serving(streams(*parts)) as server:
        got = []
        with pytest.raises(RemoteError, match=said):
            for piece in stream_chat(server.endpoint(), ASKED, **SETTINGS):
                got.append(piece)
    assert got == ["half"]
    assert len(server.seen) == 1


def test_a_busy_server_is_asked_again_before_a_stream_begins():
    with serving(fails(429, Retry_After="0"), streams(delta("Hello.", "stop"))) as server:
        assert list(stream_chat(server.endpoint(), ASKED, **SETTINGS)) == ["Hello."]


def test_a_server_that_does_not_stream_gives_its_answer_in_one_piece():
    with serving(says("Hello.")) as server:
        assert list(stream_chat(server.endpoint(), ASKED, **SETTINGS)) == ["Hello."]


def test_hanging_up_in_the_middle_of_a_stream_closes_the_connection():
    broken = threading.Event()

    def answer(handler, request):
        streams(delta("first"))(handler, request)
        try:
            for _ in range(10_000):
                handler.wfile.write(delta("more") * 100)
        except OSError:
            broken.set()

    with serving(answer) as server:
        stream = stream_chat(server.endpoint(), ASKED, **SETTINGS)
        next(stream)
        stream.close()
        assert broken.wait(5)


# Many at once


def test_no_more_requests_are_under_way_than_allowed_and_each_answer_knows_its_place():
    under_way, most, lock = [0], [0], threading.Lock()

    def answer(handler, request):
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        time.sleep(0.02)
        with lock:
            under_way[0] -= 1
        send(handler, choices(f"{request.body['seed']}"))

    with serving(answer) as server:
        asks = [Ask(ASKED, 0.5, 9, seed) for seed in range(20)]
        got = dict(complete_all(server.endpoint(concurrency=3), asks))
    assert got == {seed: Reply(str(seed), True) for seed in range(20)}
    assert most[0] == 3


def test_one_that_fails_does_not_stop_the_others():
    def answer(handler, request):
        send(handler, choices("ok")) if request.body["seed"] else send(handler, b"bad prompt", 400)

    with serving(answer) as server:
        got = dict(complete_all(server.endpoint(), [Ask(ASKED, 0.5, 9, seed) for seed in (0, 1)]))
    assert got[1] == Reply("ok", True)
    assert isinstance(got[0], RemoteError)
    assert got[0].status == 400


def test_an_endpoint_that_may_not_be_asked_raises_at_once(monkeypatch):
    with pytest.raises(ConfigError, match="allow_private"):
        list(complete_all(Endpoint(name="x", url="http://127.0.0.1:1", model="m"), [Ask(ASKED, 0.5, 9)] * 3))
    monkeypatch.delenv("A_KEY", raising=False)
    with pytest.raises(ConfigError, match="A_KEY"):
        list(complete_all(Endpoint(name="x", url="https://example.com", model="m", api_key_env="A_KEY"), [Ask(ASKED, 0.5, 9)]))


# The owner's file


def test_endpoints_are_read_from_the_project_file(tmp_path: Path):
    file = tmp_path / "preftune.yaml"
    file.write_text("store: s.db\nlabel:\n  endpoints:\n  - {name: a, url: 'http://127.0.0.1:8080/v1', model: m, allow_private: true}\n")
    assert read_endpoints(file) == [Endpoint(name="a", url="http://127.0.0.1:8080/v1", model="m", allow_private=True)]
    assert read_endpoints(tmp_path / "none.yaml") == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "endpoints: [{name: a, url: 'http://x', model: m, api_key: sk}]",
            'endpoint 1: key "api_key" is unknown. Did you mean "api_key_env"',
        ),
        ("endpoints: [{name: a, url: 'http://x'}]", 'key "model" is needed'),
        ("endpoints: {name: a}", "is no list of endpoints"),
        ("endpoints: [", "this is not YAML"),
    ],
)
def test_a_wrong_project_file_is_a_sentence(tmp_path, text, said):
    file = tmp_path / "preftune.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_endpoints(file)
