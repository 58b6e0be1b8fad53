"""Passwords (argon2id), the names that go with them, and secrets that are shown once and kept as a hash."""

from __future__ import annotations

import hashlib
import secrets
import unicodedata
from functools import cache
from threading import BoundedSemaphore

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from preftune.web.persons import AuthError

# The library's defaults are RFC 9106's second recommendation: argon2id, 3 passes over 64 MiB.
HASHER = PasswordHasher()
# Each hash takes 64 MiB and a core for some 50 ms: many log-ins at once wait here and neither fill the memory nor starve the raters.
_AT_ONCE = BoundedSemaphore(2)
MIN_PASSWORD, MAX_PASSWORD, MIN_DIFFERENT = 12, 256, 5
MAX_NAME = 60


def new_token() -> str:
    """Return 256 random bits as text for a URL or a cookie."""
    return secrets.token_urlsafe(32)


def token_hash(token: str) -> str:
    """Return what is kept of a token. A plain sha256 is enough, as a token is random and long."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def checked_name(name: str) -> str:
    """Return a name as it is kept: one form of each letter, single spaces. Raises AuthError where it is none."""
    kept = " ".join(unicodedata.normalize("NFC", name).split())
    if not 1 <= len(kept) <= MAX_NAME:
        raise AuthError(f"the name has {len(kept)} characters", fix=f"Use 1 to {MAX_NAME}.")
    for character in kept:
        if not character.isprintable():
            raise AuthError(f"the name holds the invisible character U+{ord(character):04X}", fix="Type it anew.")
    return kept


def name_key(name: str) -> str:
    """Return a name as it is compared: without capitals, one form of each letter, so that "Ann" and "ann" are one."""
    return unicodedata.normalize("NFKC", " ".join(unicodedata.normalize("NFKC", name).casefold().split()))


def check_password(password: str, name: str) -> None:
    """Raise AuthError where a new password is too short, too long, or too easily guessed."""
    if len(password) < MIN_PASSWORD:
        raise AuthError(f"the password has {len(password)} characters", fix=f"Use at least {MIN_PASSWORD}; a few words will do.")
    if len(password) > MAX_PASSWORD:
        raise AuthError(f"the password has {len(password):,} characters", fix=f"Use at most {MAX_PASSWORD}.")
    if len(set(password)) < MIN_DIFFERENT:
        raise AuthError(f"the password has only {len(set(password))} different characters", fix="Use a few words.")
    if name_key(password) in (name_key(name), name_key(name) * 2):
        raise AuthError("the password is the name", fix="Use a few words that others do not think of.")


def hash_password(password: str) -> str:
    """Return the hash of a password, its salt and cost inside."""
    with _AT_ONCE:
        return HASHER.hash(_normal(password))


def is_password(kept: str, password: str) -> bool:
    """Return whether this is the password of a hash; it takes the same time whether or not."""
    if len(password) > MAX_PASSWORD:
        password = ""
    try:
        with _AT_ONCE:
            return HASHER.verify(kept, _normal(password))
    except (VerificationError, InvalidHashError):
        return False


def needs_new_hash(kept: str) -> bool:
    """Return whether a hash was made at another cost than today's."""
    return HASHER.check_needs_rehash(kept)


@cache
def hash_of_nobody() -> str:
    """Return a hash that no password fits: trying it makes an unknown name as slow as a known one."""
    return hash_password(new_token())


def _normal(password: str) -> str:
    # One keyboard writes é as one character and another as two.
    return unicodedata.normalize("NFKC", password).encode("utf-8", "replace").decode("utf-8")
