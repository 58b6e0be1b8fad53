"""Our own export read back: what was changed by hand is not taken for what it was."""

from __future__ import annotations

import pytest

from preftune.records import Candidate, Judgement, Message, Prompt

PROMPT = Prompt(messages=(Message(role="user", content="Ask."),))
ONE, TWO = (Candidate(prompt_id=PROMPT.id, text=text) for text in ("one", "two"))
SAID = Judgement(prompt_id=PROMPT.id, ranking=((ONE.id,), (TWO.id,)), rater="ann")


def line(said=SAID, **more):
    candidates = [{"id": c.id, "text": c.text, "source": "m", "sampling": {"seed": 1}} for c in (ONE, TWO)]
    about = {"schema": "preftune.judgement/1", "judgement_id": said.id, "prompt_id": PROMPT.id, "candidates": candidates}
    fields = said.model_dump(mode="json", exclude={"prompt_id"})
    return {**about, "prompt": [{"role": "user", "content": "Ask."}], **fields, **more}


def test_a_line_gives_back_what_it_was_written_from(taken):
    [row], [] = taken([line()])
    assert row.judgements == (SAID,)
    assert [(c.id, c.source, c.sampling) for c in row.candidates] == [(c.id, "m", {"seed": 1}) for c in (ONE, TWO)]


def test_demonstrations_and_prompts_have_lines_of_their_own(taken):
    about = {"prompt": [{"role": "user", "content": "Ask."}], "kind": "chat"}
    rows, [] = taken(
        [
            {"schema": "preftune.demonstration/1", **about, "text": "x", "author": "ann"},
            {"schema": "preftune.prompt/1", **about, "candidates": []},
        ]
    )
    assert [(wished.text, wished.author) for wished in rows[0].demonstrations] == [("x", "ann")]
    assert (rows[1].candidates, rows[1].prompt.kind) == ((), "chat")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rater": "bob"}, "the content was changed, but not its id"),
        ({"prompt": [{"role": "user", "content": "Other."}]}, "the content was changed, but not its id"),
        ({"candidates": []}, "the judgement names a candidate that the line does not have"),
        ({"schema": "preftune.judgement/2"}, "the schema is none that this version knows"),
        ({"strength": 7}, 'field "strength" is wrong'),
        ({"ranking": [[ONE.id], [ONE.id]]}, 'field "ranking" is wrong'),
        ({"supersedes": "0" * 16, "judgement_id": None}, "the judgement takes back one that is not in the file before it"),
    ],
)
def test_a_line_that_was_changed_by_hand_is_set_aside(taken, change, reason):
    [_], [aside] = taken([line(), line(**change)], "preftune")
    assert aside.reason == reason


def test_without_its_id_a_changed_line_is_taken_as_new(taken):
    rows, [] = taken([line(), line(rater="bob", judgement_id=None)])
    assert [row.judgements[0].rater for row in rows] == ["ann", "bob"]


def test_an_undo_comes_after_what_it_takes_back(taken):
    undo = Judgement(prompt_id=PROMPT.id, supersedes=SAID.id, rater="ann")
    rows, [] = taken([line(), line(undo)])
    assert rows[1].judgements[0].supersedes == SAID.id
    _, aside = taken([line(undo), line()])
    assert len(aside) == 1
