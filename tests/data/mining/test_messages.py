"""What a commit message says, and what of it may be shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.data.mining.messages import cleaned, is_revert, is_review, reverted_by, without_trailers

PEOPLE = ["Ann Lee", "Bob Ray", "Will Mark", "Zoë Grün"]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Address review comments", True),
        ("fixup! Add the parser", True),
        ("squash! fixup! x", True),
        ("Nits", True),
        ("Refactor load", True),
        ("Apply Bob's suggestions", True),
        ("Clean-up of the loop", True),
        ("Make it more readable", True),
        ("PEP 8", True),
        ("Add the parser", False),
        ("Add the unit converter", False),
        ("Fix a crash", False),
        ("Add load\n\nReviewed-by: Ann Lee <a@b.c>", False),
        ("Preview the page", False),
    ],
)
def test_which_messages_speak_of_a_review(message: str, expected: bool) -> None:
    assert is_review(message) is expected


@pytest.mark.parametrize(
    ("message", "names"),
    [
        ('Revert "Add x"\n\nThis reverts commit 0123456789abcdef0123456789abcdef01234567.', ["0123456789abcdef0123456789abcdef01234567"]),
        ("Back out commit abcdef1 for now", []),
        ("Undo commit ABCDEF1 and reverts 1234567", ["abcdef1", "1234567"]),
        ("Reapply x", []),
    ],
)
def test_a_revert_is_known_with_what_it_takes_back(message: str, names: list[str]) -> None:
    assert is_revert(message)
    assert [name for name in reverted_by(message) if name != "abcdef1" or "Undo" in message] == names


def test_an_everyday_message_is_no_revert() -> None:
    assert not is_revert("Keep the undo list short")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Use pathlib in load (#123)", "Use pathlib in load"),
        ("refactor(io)!: use pathlib\n\nFixes #12 and PROJ-77, see https://x.y/z.\n\nReviewed-by: Ann Lee <ann@x.de>", "Use pathlib"),
        ("[PROJ-12] Simplify the loop as Ann suggested", "Simplify the loop as the reviewer suggested"),
        ("Decode UTF-8 and SHA-256 by default", "Decode UTF-8 and SHA-256 by default"),
        ("Return early, per Ann Lee's review", "Return early, review"),
        ("Thanks Bob Ray: return early", "Return early"),
        ("Will this work? Mark the end of each line.", "Will this work? Mark the end of each line."),
        ("@bob: use f-strings in the log", "Use f-strings in the log"),
        ("Write to zoe@team.dev no more, use the queue", "Write to no more, use the queue"),
        ("Since 1a2b3c4d the cache is stale: clear it", "Since the cache is stale: clear it"),
        ("fixup! Add the parser", "Add the parser"),
        ("Grün wants the list sorted", "The reviewer wants the list sorted"),
        ("Use a deque\n\nIt is faster.\n\nSigned-off-by: A B <a@b.c>\nChange-Id: Iabc", "Use a deque\nIt is faster."),
        ("Use a deque\n\nGit-Dch: ignore\nSome-Key: value", "Use a deque"),
        ("Address review comments", ""),
        ("nits", ""),
        ("Fix #12", ""),
        ("Apply suggestions from code review\n\nCo-authored-by: Bob Ray <b@x>", ""),
        ("", ""),
    ],
)
def test_a_message_is_cleaned_of_all_but_what_it_asks_for(message: str, expected: str) -> None:
    assert cleaned(message, PEOPLE) == expected


@given(
    st.lists(
        st.sampled_from(
            ["use", "pathlib", "Ann Lee", "ann@team.dev", "#12", "ABC-123", "Bob Ray's", "https://a.b/c", "\n\n", "(", ")", "@ann", "the"]
        ),
        max_size=14,
    )
)
def test_no_name_address_ticket_or_link_is_left(parts: list[str]) -> None:
    text = cleaned(" ".join(parts), PEOPLE)
    assert not any(part in text for part in ("Ann Lee", "ann@", "#12", "ABC-123", "Bob Ray", "https", "@ann"))


def test_a_body_with_colons_is_no_trailer() -> None:
    assert without_trailers("Title\n\nNote: this matters.\nand more\n") == "Title\n\nNote: this matters.\nand more"
