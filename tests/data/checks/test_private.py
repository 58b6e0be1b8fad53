"""Private things are found with their place, and never shown."""

from __future__ import annotations

import json
import random
import re
import string

import pytest

from preftune.data.checks import check_pairs, check_store, write_page
from preftune.data.private import _detectors, _kinds_of_secret, find_personal, find_private, find_secrets
from preftune.data.store import Store
from preftune.records import Demonstration, Message, Pair, Prompt

SECRETS = {
    "AWS Access Key": "AKIAQWERTYUIOPASDFGH",
    "Basic Auth Credentials": "https://bob:pa55word@host.de/x",
    "GitHub Token": "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "Private Key": "-----BEGIN RSA PRIVATE KEY-----",
    "Secret Keyword": 'password = "hunter2xyz"',
    "Base64 High Entropy String": 'x = "c3VwZXIgc2VjcmV0IHRva2VuIHdpdGggZW50cm9weTEyMw=="',
    "Hex High Entropy String": "h = '9f86d081884c7d659a2feaa0c55ad015'",
    "JSON Web Token": "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "Slack Token": "xoxb-123456789012-abcdefABCDEF",
    "Stripe Access Key": "sk_live_abcdefghijklmnopqrstuvwx",
    "key by its prefix": "sk-ant-api03-abcdefghijklmnopqrstuvwxyz0123",
}
PERSONAL = {
    "e-mail address": ["ann.lee@firma.de", "Write to <a+b@sub.firma.co.uk>!"],
    "phone number": ["+49 170 1234567", "0221/470-1234", "(415) 555-2671", "415-555-2671", "+14155552671", "tel: +1 (415) 555-2671"],
    "bank account (IBAN)": ["DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432"],
}
HARMLESS = [
    "a plain line with nothing in it",
    "def test_that_a_long_name_is_fine_here(self): return 1",
    "secret = get_secret(name)",
    'user_id = "9f86d081884c7d659a2feaa0c55ad015"',
    'password = "<your password>"',
    "uuid 123e4567-e89b-12d3-a456-426614174000",
    "x = 10 + 20 - 30",
    "2020-10-12 10:30:00 and 12.10.2020",
    "version 1.2.3.4 of 0.123.456.789",
    "ISBN 978-3-16-148410-0",
    "1,234,567 or 1 234 567 890",
    "in 2019/2020/2021",
    "ann@example.com or git@github.com:x/y or @app.route('/')",
    "DE88 3704 0044 0532 0130 00",
    "numbers = [1001, 1002, 1003, 1004, 1005, 1006]",
]


@pytest.mark.parametrize(("kind", "line"), SECRETS.items())
def test_a_secret_is_found_in_its_line(kind: str, line: str) -> None:
    found = find_secrets(f"first\nsecond {line} more\nthird")
    assert kind in {finding.kind for finding in found}
    assert {finding.line for finding in found} == {2}


@pytest.mark.parametrize(("kind", "line"), [(kind, line) for kind, lines in PERSONAL.items() for line in lines])
def test_what_is_personal_is_found_in_its_line(kind: str, line: str) -> None:
    assert [(finding.kind, finding.line) for finding in find_personal(f"one\n\n{line}\nfour")] == [(kind, 3)]


@pytest.mark.parametrize("line", HARMLESS)
def test_harmless_lines_are_not_accused(line: str) -> None:
    assert find_private(line) == []


def test_the_quick_look_leaves_out_nothing_that_the_detectors_find() -> None:
    rng = random.Random(0)
    alphabets = (string.hexdigits.lower()[:16], string.ascii_letters + string.digits + "+/", string.ascii_uppercase + string.digits)
    missed = found = 0
    for _ in range(1500):
        key = "".join(rng.choice(rng.choice(alphabets)) for _ in range(rng.choice((12, 20, 24, 32, 40, 64))))
        name = rng.choice(("x", "token", "API_KEY", "db_password", "value"))
        line = rng.choice((f'{name} = "{key}"', f"{name}: '{key}'", f"a word {key} here", f"AKIA{key[:16].upper()}", f"https://u:{key}@h/"))
        there = set(_kinds_of_secret(line))
        found += bool(there)
        missed += bool(there) and not find_secrets(line)
    assert found > 500
    assert missed == 0


@pytest.mark.parametrize(
    "name", ["api_key", "clientkey", "db_pass", "DatabasePass", "passwd", "PWD", "my_secret", "contraseña", "privateKey"]
)
@pytest.mark.parametrize("form", ['{} = "{}"', "{}: '{}'", '{} => "{}"', '{} "{}";', '"{1}" == {0}', "{}['x'] != '{}'", "if {} == `{}`:"])
def test_the_quick_look_lets_all_through_that_is_assigned_to_a_telling_name(name: str, form: str) -> None:
    line = form.format(name, "hunter2xyz")
    [detector] = [detector for detector in _detectors() if detector.secret_type == "Secret Keyword"]
    if list(detector.analyze_string(line)):
        assert find_secrets(line)


def test_long_odd_lines_take_no_long_time() -> None:
    runs = ("a", "a@", "+1 ", "A1B2", '"', "0-", "password", "passwordA", "secret = '", "password:", "pwd[]]", "://a:", "1 ", "DE89 ")
    for run in runs:  # 200 kB of "password" alone would keep the detector of names busy for days
        for end in ("", "='x", '" password'):
            find_private(run * (20_000 // len(run)) + end)


def test_a_password_far_in_a_long_line_is_found() -> None:
    for before in range(280, 520, 7):
        assert [finding.kind for finding in find_private("word " * 200 + "x" * before + ' db_password = "hunter2xyz" ' + "word " * 200)]


def test_the_check_tells_where_and_how_many_and_never_what(tmp_path) -> None:
    values = [*SECRETS.values(), *(line for lines in PERSONAL.values() for line in lines)]
    prompt = Prompt(
        messages=(Message(role="system", content="Be brief."), Message(role="user", content="What is my mail?\nann.lee@firma.de"))
    )
    pairs = [
        Pair(messages=prompt.messages, chosen="Fine.\n" + SECRETS["AWS Access Key"], rejected="No.\n\n+49 170 1234567"),
        *(Pair(messages=(Message(role="user", content=f"q {n}"),), chosen=value, rejected="x") for n, value in enumerate(values)),
    ]
    report = check_pairs(pairs)
    first = [str(place) for place in report.private.places[:3]]
    assert first == [
        f"e-mail address in prompt {prompt.id}, turn 2 (user), line 2",
        f"AWS Access Key in prompt {prompt.id}, chosen answer, line 2",
        f"phone number in prompt {prompt.id}, rejected answer, line 3",
    ]
    assert report.private.counts["phone number"] == 7
    assert report.private.counts["AWS Access Key"] == 2
    page = write_page(report, tmp_path / "check.html").read_text(encoding="utf-8")
    told = page + json.dumps(report.as_dict()) + "\n".join(report.lines())
    for value in values:
        assert value not in told
        assert not any(part in told for part in re.split("[\\s\"'<>]", value) if len(part) >= 8 and part not in ("password", "PRIVATE"))


def test_an_answer_that_is_in_many_pairs_is_counted_once() -> None:
    ask = (Message(role="user", content="q"),)
    report = check_pairs(Pair(messages=ask, chosen="mail ann.lee@firma.de", rejected=f"no {n}") for n in range(5))
    assert report.private.counts == {"e-mail address": 1}


def test_demonstrations_of_a_store_are_looked_at_too(tmp_path) -> None:
    prompt = Prompt(messages=(Message(role="user", content="q"),))
    with Store.create(tmp_path / "s.db") as store:
        store.add([prompt], [], [], [Demonstration(prompt_id=prompt.id, text="one\ntwo AKIAQWERTYUIOPASDFGH")])
        report = check_store(store)
    assert [str(place) for place in report.private.places] == [f"AWS Access Key in prompt {prompt.id}, demonstration, line 2"]
    assert report.demonstrations == 1
    assert any("1 line seems to hold what should not be trained on (1 × AWS Access Key)" in problem for problem in report.problems)
