"""People, invitations, sessions: who gets in, who does not, and what is left of those who go."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from argon2 import PasswordHasher
from sqlalchemy import select, update

from preftune.data import tables
from preftune.data.store import Store
from preftune.errors import PreftuneError
from preftune.web import assign, attempts, auth, passwords
from preftune.web.auth import AuthError, Person

PASSWORD = "a few words in a row"
HERE = "192.0.2.7"
WRONG = "the name or the password is wrong. Try again, or ask an owner for a new link."
METACHARACTERS = ["'; DROP TABLE people; --", '" OR "1"="1', "%", "_", "\\", "Robert'); DELETE FROM sessions;--", "$1", ":name", "{{7*7}}"]


@pytest.fixture
def owner(store: Store, rater: Callable[..., Person]) -> Person:
    return rater(store, "Olga", "owner")


def age(store: Store, table: Any, **ago: timedelta) -> None:
    """Let all rows of a table be older than they are."""
    with store.writer() as writer:
        for row in writer.connection.execute(select(table)).all():
            times = {name: getattr(row, name) - by for name, by in ago.items()}
            key = next(iter(table.primary_key.columns))
            writer.connection.execute(update(table).where(key == getattr(row, key.name)).values(**times))


def rows(store: Store, table: Any) -> list[Any]:
    with store.reading() as connection:
        return list(connection.execute(select(table)))


# Names and passwords


def test_a_person_has_a_pseudonym_that_says_nothing_and_a_hash_that_is_argon2id(any_store: Store, rater: Callable[..., Person]) -> None:
    ann, bob = rater(any_store, "Ann"), rater(any_store, "Bob", "owner")
    assert auth.people(any_store) == [ann, bob]
    assert (ann.name, ann.role, ann.disabled, bob.role) == ("Ann", "rater", False, "owner")
    assert re.fullmatch(r"r_[0-9a-f]{8}", ann.pseudonym)
    assert ann.pseudonym != bob.pseudonym
    assert all(row.password_hash.startswith("$argon2id$v=19$") for row in rows(any_store, tables.people))
    assert PASSWORD not in str(rows(any_store, tables.people))


def test_a_password_costs_what_rfc_9106_asks_for() -> None:
    found = re.search(r"m=(\d+),t=(\d+),p=(\d+)", PasswordHasher().hash(PASSWORD))
    assert found
    memory, passes, lanes = map(int, found.groups())
    assert memory >= 64 * 1024  # KiB; the second recommended option
    assert passes >= 3
    assert lanes >= 1


@pytest.mark.parametrize("other", ["ann", "ANN", " Ann ", "\uff21nn"])  # the last: a full-width A
def test_a_name_that_looks_the_same_is_taken(store: Store, rater: Callable[..., Person], other: str) -> None:
    rater(store, "Ann")
    with pytest.raises(AuthError, match=r'the name ".+" is taken\. Take another\.'):
        auth.add_person(store, other, PASSWORD, "rater")
    assert len(auth.people(store)) == 1


@pytest.mark.parametrize(
    ("name", "password", "sentence"),
    [
        ("", PASSWORD, "the name has 0 characters. Use 1 to 60."),
        ("   ", PASSWORD, "the name has 0 characters. Use 1 to 60."),
        ("x" * 61, PASSWORD, "the name has 61 characters. Use 1 to 60."),
        ("x" * 10_000_000, PASSWORD, "the name has 10000000 characters. Use 1 to 60."),
        ("a\u202eb", PASSWORD, "the name holds the invisible character U+202E. Type it anew."),
        ("a\0b", PASSWORD, "the name holds the invisible character U+0000. Type it anew."),
        ("a\ud800b", PASSWORD, "the name holds the invisible character U+D800. Type it anew."),
        ("Ann", "short", "the password has 5 characters. Use at least 12; a few words will do."),
        ("Ann", "x" * 257, "the password has 257 characters. Use at most 256."),
        ("Ann", "abababababab", "the password has only 2 different characters. Use a few words."),
        ("Anneliese Maier", "anneliese maier", "the password is the name. Use a few words that others do not think of."),
    ],
)
def test_a_name_or_password_that_cannot_be_used_is_refused(store: Store, name: str, password: str, sentence: str) -> None:
    with pytest.raises(AuthError) as refused:
        auth.add_person(store, name, password, "rater")
    assert str(refused.value) == sentence
    assert auth.people(store) == []


@pytest.mark.parametrize("name", METACHARACTERS)
def test_what_means_something_to_sql_is_a_name_like_any_other(any_store: Store, rater: Callable[..., Person], name: str) -> None:
    person = rater(any_store, name)
    assert auth.people(any_store) == [person]
    session = auth.session_of(any_store, auth.log_in(any_store, name, PASSWORD, address=HERE))
    assert session
    assert session.person == person
    for other in METACHARACTERS:
        if other != name:
            with pytest.raises(AuthError, match="wrong"):
                auth.log_in(any_store, other, PASSWORD, address=f"192.0.2.{METACHARACTERS.index(other)}")
    assert auth.session_of(any_store, name) is None


def test_an_accent_is_the_same_password_however_the_keyboard_writes_it(store: Store) -> None:
    auth.add_person(store, "Zoé", "caf\u00e9 au lait le matin", "rater")
    assert auth.log_in(store, "Zoe\u0301", "cafe\u0301 au lait le matin", address=HERE)


# Invitations


def test_an_invitation_lets_one_person_in_once_in_the_role_that_it_says(any_store: Store, rater: Callable[..., Person]) -> None:
    boss = rater(any_store, "Olga", "owner")
    token = auth.invite(any_store, boss, "rater")
    assert [(i.role, i.created_by) for i in auth.open_invitations(any_store)] == [("rater", boss.id)]
    ann = auth.accept_invitation(any_store, token, "Ann", PASSWORD)
    assert ann.role == "rater"
    assert auth.open_invitations(any_store) == []
    with pytest.raises(AuthError, match=r"this link is unknown, was used, or is too old\. Ask an owner for a new one\."):
        auth.accept_invitation(any_store, token, "Eve", PASSWORD)
    assert [p.name for p in auth.people(any_store)] == ["Olga", "Ann"]


def test_two_at_once_with_one_invitation_are_one(any_store: Store, rater: Callable[..., Person]) -> None:
    token = auth.invite(any_store, rater(any_store, "Olga", "owner"), "rater")

    def come(number: int) -> str:
        try:
            return auth.accept_invitation(any_store, token, f"guest {number}", PASSWORD).name
        except AuthError:
            return ""

    with ThreadPoolExecutor(8) as pool:
        came = [name for name in pool.map(come, range(8)) if name]
    assert [p.name for p in auth.people(any_store)] == ["Olga", *came]
    assert len(came) == 1


def test_an_invitation_cannot_be_guessed(store: Store, owner: Person) -> None:
    tokens = [auth.invite(store, owner, "rater") for _ in range(50)]
    assert len(set(tokens)) == 50
    assert all(len(token) >= 43 for token in tokens)  # 256 bits in base64
    kept = str(rows(store, tables.invitations))
    assert not any(token in kept for token in tokens)  # whoever reads the database cannot use them
    for guess in (
        "",
        "0",
        tokens[0][:-1],
        tokens[0] + "A",
        tokens[0].swapcase(),
        passwords.token_hash(tokens[0]),
        "%",
        "' OR 1=1 --",
        "x" * 10**6,
    ):
        with pytest.raises(AuthError, match="unknown, was used, or is too old"):
            auth.accept_invitation(store, guess, "Eve", PASSWORD)


def test_an_old_a_withdrawn_and_a_wrongly_filled_invitation(store: Store, owner: Person) -> None:
    old, withdrawn = auth.invite(store, owner, "rater"), auth.invite(store, owner, "owner")
    age(store, tables.invitations, expires=timedelta(hours=72, seconds=1))
    assert auth.open_invitations(store) == []
    auth.withdraw_invitation(store, owner, passwords.token_hash(withdrawn))
    for token in (old, withdrawn):
        with pytest.raises(AuthError, match="unknown, was used, or is too old"):
            auth.accept_invitation(store, token, "Eve", PASSWORD)
    good = auth.invite(store, owner, "rater")
    with pytest.raises(AuthError, match="at least 12"):
        auth.accept_invitation(store, good, "Ann", "short")
    with pytest.raises(AuthError, match="is taken"):
        auth.accept_invitation(store, good, "olga", PASSWORD)
    assert auth.accept_invitation(store, good, "Ann", PASSWORD).name == "Ann"


def test_the_first_owner_comes_by_the_program_and_no_second_one(store: Store) -> None:
    assert not auth.has_owner(store)
    first = auth.accept_invitation(store, auth.first_invitation(store), "Olga", PASSWORD)
    assert first.role == "owner"
    assert auth.has_owner(store)
    with pytest.raises(AuthError, match=r"there is an owner already\. Let them invite others\."):
        auth.first_invitation(store)


def test_who_forgot_the_password_gets_a_link_that_sets_it_anew(store: Store, owner: Person, rater: Callable[..., Person]) -> None:
    ann = rater(store, "Ann")
    session = auth.log_in(store, "Ann", PASSWORD, address=HERE)
    token = auth.password_link(store, owner, ann.id)
    assert [i.for_person for i in auth.open_invitations(store)] == [ann.id]
    assert auth.accept_invitation(store, token, "whatever the form says", "another few words") == ann
    assert auth.session_of(store, session) is None
    with pytest.raises(AuthError, match="wrong"):
        auth.log_in(store, "Ann", PASSWORD, address=HERE)
    assert auth.log_in(store, "Ann", "another few words", address=HERE)
    assert len(auth.people(store)) == 2


# Sessions


def test_a_session_is_its_persons_until_it_is_ended(any_store: Store, rater: Callable[..., Person]) -> None:
    ann = rater(any_store, "Ann")
    one, two = (auth.log_in(any_store, "ann ", PASSWORD, address=HERE) for _ in range(2))
    first, second = auth.session_of(any_store, one), auth.session_of(any_store, two)
    assert first
    assert second
    assert first.person == second.person == ann
    assert first.csrf != second.csrf
    assert {one, two}.isdisjoint({row.token_hash for row in rows(any_store, tables.sessions)})
    auth.log_out(any_store, first)
    assert auth.session_of(any_store, one) is None
    assert auth.revoke_sessions(any_store, ann.id) == 1
    assert auth.session_of(any_store, two) is None


@pytest.mark.parametrize("token", [None, "", "x", "' OR '1'='1", "x" * 10**7, "\0", "\ud800", "é"])
def test_what_is_no_token_is_nobody(store: Store, owner: Person, token: str | None) -> None:
    auth.log_in(store, "Olga", PASSWORD, address=HERE)
    assert auth.session_of(store, token) is None


def test_a_session_ends_after_12_idle_hours_and_after_7_days_whatever(store: Store, owner: Person) -> None:
    token = auth.log_in(store, "Olga", PASSWORD, address=HERE)
    age(store, tables.sessions, last_seen=timedelta(hours=11, minutes=59))
    assert auth.session_of(store, token)
    assert datetime.now(UTC) - rows(store, tables.sessions)[0].last_seen < timedelta(minutes=1)  # it was used just now
    age(store, tables.sessions, last_seen=timedelta(hours=12, seconds=1))
    assert auth.session_of(store, token) is None
    token = auth.log_in(store, "Olga", PASSWORD, address=HERE)
    assert len(rows(store, tables.sessions)) == 1  # the old one was swept away
    age(store, tables.sessions, created=timedelta(days=7, seconds=1))
    assert auth.session_of(store, token) is None


def test_a_disabled_person_is_out_at_once_and_told_nothing(store: Store, owner: Person, rater: Callable[..., Person]) -> None:
    ann = rater(store, "Ann")
    token = auth.log_in(store, "Ann", PASSWORD, address=HERE)
    auth.disable(store, owner, ann.id)
    assert auth.session_of(store, token) is None
    with pytest.raises(AuthError) as refused:
        auth.log_in(store, "Ann", PASSWORD, address=HERE)
    assert str(refused.value) == WRONG
    auth.enable(store, owner, ann.id)
    assert auth.log_in(store, "Ann", PASSWORD, address=HERE)


def test_only_the_network_of_an_address_is_kept(store: Store, owner: Person) -> None:
    for address in ("192.0.2.77", "2001:db8:1:2:3::4", "testclient"):
        auth.log_in(store, "Olga", PASSWORD, address=address)
    assert [row.address for row in rows(store, tables.sessions)] == ["192.0.2.0/24", "2001:db8:1::/48", ""]


def test_a_hash_of_another_cost_is_renewed_at_the_next_log_in(store: Store, owner: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rows(store, tables.people)[0].password_hash
    monkeypatch.setattr(passwords, "HASHER", PasswordHasher(time_cost=2, memory_cost=16, parallelism=1))
    auth.log_in(store, "Olga", PASSWORD, address=HERE)
    after = rows(store, tables.people)[0].password_hash
    assert ",t=1," in before
    assert ",t=2," in after
    assert auth.log_in(store, "Olga", PASSWORD, address=HERE)


# Brute force


def test_an_unknown_name_and_a_wrong_password_get_the_same_words_and_the_same_work(
    store: Store, owner: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    hasher = passwords.HASHER

    class Counting:
        def verify(self, kept: str, password: str) -> bool:
            hashed.append(kept.rsplit("$", 2)[0])  # the algorithm and its cost, without salt and hash
            return hasher.verify(kept, password)

        hash, check_needs_rehash = hasher.hash, hasher.check_needs_rehash

    monkeypatch.setattr(passwords, "HASHER", Counting())
    for name, password in (
        ("Olga", "not her password"),
        ("Nobody", "not her password"),
        ("Olga", "x" * 10**6),
        ("", ""),
        ("x" * 10**6, "y"),
    ):
        with pytest.raises(AuthError) as refused:
            auth.log_in(store, name, password, address=HERE)
        assert str(refused.value) == WRONG
    assert len(hashed) == 5
    assert len(set(hashed)) == 1


def test_the_sixth_try_at_a_name_within_a_minute_waits_though_it_is_right(any_store: Store, rater: Callable[..., Person]) -> None:
    rater(any_store, "Ann")
    for n in range(5):
        with pytest.raises(AuthError, match="wrong"):
            auth.log_in(any_store, "Ann", "not the password", address=f"192.0.2.{n}")
    with pytest.raises(AuthError, match=r"there were too many attempts to log in\. Wait \d+ seconds and try again\."):
        auth.log_in(any_store, "ANN", PASSWORD, address="198.51.100.1")  # from anywhere, and however it is written
    age(any_store, tables.attempts, at=timedelta(seconds=61))
    assert auth.log_in(any_store, "Ann", PASSWORD, address=HERE)
    tried = [row.key for row in rows(any_store, tables.attempts)]
    assert attempts.key_of("name", "ann") not in tried  # forgotten with the right password
    assert len(tried) == 5  # at the other addresses


def test_tries_are_fewer_after_many(store: Store, owner: Person) -> None:
    for _ in range(6):
        for _ in range(5):
            with pytest.raises(AuthError, match="wrong"):
                auth.log_in(store, "Olga", "not the password", address=HERE)
        age(store, tables.attempts, at=timedelta(minutes=2))
    with pytest.raises(AuthError, match=r"Wait \d+ minutes and try again"):
        auth.log_in(store, "Olga", PASSWORD, address=HERE)


def test_an_address_that_tries_many_names_waits(store: Store, owner: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "LIMITS", {"name": attempts.LIMITS["name"], "address": ((10, timedelta(minutes=10)),)})
    for n in range(10):
        with pytest.raises(AuthError, match="wrong"):
            auth.log_in(store, f"name {n}", "Winter 2026 again", address=HERE)
    with pytest.raises(AuthError, match="too many"):
        auth.log_in(store, "Olga", PASSWORD, address=HERE)
    assert auth.log_in(store, "Olga", PASSWORD, address="198.51.100.1")


def test_a_hundred_tries_at_once_are_counted_like_a_hundred_in_a_row(any_store: Store, rater: Callable[..., Person]) -> None:
    rater(any_store, "Ann")

    def guess(n: int) -> str:
        try:
            return auth.log_in(any_store, "Ann", f"guess number {n}", address=f"192.0.2.{n}")
        except AuthError as error:
            return error.what

    with ThreadPoolExecutor(16) as pool:
        said = list(pool.map(guess, range(100)))
    looked_at = said.count("the name or the password is wrong")
    assert looked_at == 5
    assert said.count("there were too many attempts to log in") == 100 - looked_at


def test_what_is_kept_of_an_attempt_says_neither_name_nor_address(store: Store, owner: Person) -> None:
    with pytest.raises(AuthError):
        auth.log_in(store, "Olga", "not the password", address=HERE)
    kept = str(rows(store, tables.attempts))
    assert "lga" not in kept
    assert HERE not in kept
    age(store, tables.attempts, at=timedelta(hours=7))
    auth.log_in(store, "Olga", PASSWORD, address=HERE)
    assert rows(store, tables.attempts) == []


# Rights


def test_a_rater_does_none_of_what_owners_do(store: Store, owner: Person, rater: Callable[..., Person]) -> None:
    ann = rater(store, "Ann")
    token = passwords.token_hash(auth.invite(store, owner, "rater"))
    tried: list[Callable[[], object]] = [
        lambda: auth.invite(store, ann, "owner"),
        lambda: auth.password_link(store, ann, owner.id),
        lambda: auth.withdraw_invitation(store, ann, token),
        lambda: auth.revoke_sessions(store, owner.id, ann),
        lambda: auth.disable(store, ann, owner.id),
        lambda: auth.enable(store, ann, owner.id),
        lambda: auth.delete_person(store, ann, owner.id, judgements="delete"),
        lambda: assign.add_gold(store, ann, "x", ["a", "b"], [["a"], ["b"]]),
    ]
    for attempt in tried:
        with pytest.raises(AuthError, match=r"only an owner may do this\. Ask one\."):
            attempt()
    assert len(auth.open_invitations(store)) == 1
    assert [p.name for p in auth.people(store)] == ["Olga", "Ann"]


def test_the_last_owner_stays(any_store: Store, rater: Callable[..., Person]) -> None:
    one, two = rater(any_store, "Olga", "owner"), rater(any_store, "Otto", "owner")
    auth.disable(any_store, one, two.id)
    for leave in (
        lambda: auth.disable(any_store, one, one.id),
        lambda: auth.delete_person(any_store, one, one.id, judgements="keep_anonymous"),
    ):
        with pytest.raises(AuthError, match=r"this is the last owner\. Make another person an owner first\."):
            leave()
    with pytest.raises(AuthError, match="no such person"):
        auth.disable(any_store, one, "nobody")
    assert auth.has_owner(any_store)


def test_two_owners_who_put_each_other_out_at_once_are_not_both_out(any_store: Store, rater: Callable[..., Person]) -> None:
    owners = [rater(any_store, name, "owner") for name in ("Olga", "Otto")]

    def put_out(n: int) -> None:
        try:
            auth.disable(any_store, owners[n], owners[1 - n].id)
        except PreftuneError:
            return

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(put_out, range(2)))
    assert auth.has_owner(any_store)
