"""Battles of two models: Chatbot Arena (33k, 140k), the 55k Kaggle form, and MT-bench's human judgements.

    {"model_a", "model_b", "winner": "model_a", "judge", "turn", "conversation_a": [messages], "conversation_b": [messages], "anony": true}
    {"prompt": "[\\"turn 1\\", …]", "response_a": "[…]", "response_b": "[…]", "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}

`winner` is model_a, model_b, tie, or a tie that says both are bad ("tie (bothbad)", "both_bad"): that one is a tie of which neither is
acceptable. "tie (inconsistent)" (a judge that changed its mind when the two were swapped) is a tie. Model a was shown first. In the 55k
form prompt and responses are JSON lists inside texts, one entry a turn. In MT-bench `turn` says which turn was judged: what comes after is
cut off.

Direction: the winner over the other.
Left out: battles whose conversations differ before the last answer (the answers are then to different prompts), battles that were not
anonymous (the rater saw the models' names), equal or empty answers.
Source: the data set cards of lmsys/chatbot_arena_conversations, lmsys/mt_bench_human_judgments, lmarena-ai/arena-human-preference-55k and
-140k; fastchat/serve/monitor/clean_battle_data.py of github.com/lm-sys/FastChat.
"""

from __future__ import annotations

from typing import Any

from preftune.data.formats.preferences import check_answers, judgement
from preftune.data.formats.rows import BadRow, Row, checked_text, is_good, message_of, nested, prompt_from, text_of, time_of
from preftune.records import Candidate, Message

SIDES = ("a", "b")
ONE_HOT = ("winner_model_a", "winner_model_b", "winner_tie")
BOTH_BAD = {"tie (bothbad)", "both_bad", "bothbad", "bothbad_vote"}


def recognises(fields: dict[str, Any]) -> bool:
    """Return whether a row looks like this format."""
    if {"conversation_a", "conversation_b", "winner"} <= fields.keys():
        return True
    return {"prompt", "response_a", "response_b", *ONE_HOT} <= fields.keys()


def rows(line: int, fields: dict[str, Any]) -> list[Row]:
    """Return the records of one row. Raises BadRow where it is not as the module says."""
    if str(fields.get("anony", True)).lower() == "false":
        raise BadRow("the rater saw the models' names (anony is false)")
    sides = [_conversation(fields, side) for side in SIDES]
    if sides[0][:-1] != sides[1][:-1]:
        raise BadRow("the two conversations differ before the last answer", "the answers are to different prompts")
    prompt = prompt_from(sides[0][:-1])
    texts = [messages[-1].content for messages in sides]
    check_answers(*texts)
    sources = [text_of(fields, f"model_{side}", "unknown") for side in SIDES]
    one, two = (Candidate(prompt_id=prompt.id, text=text, source=source) for text, source in zip(texts, sources, strict=True))
    winner = _winner(fields)
    tiers = {"a": ((one.id,), (two.id,)), "b": ((two.id,), (one.id,))}.get(winner, ((one.id, two.id),))
    said = judgement(
        prompt.id,
        tiers,
        rater=_rater(fields.get("judge", fields.get("evaluation_session_id", "unknown"))),
        acceptable=() if winner == "both bad" else None,
        presentation=(one.id, two.id),
        created=time_of(fields.get("tstamp", fields.get("timestamp"))),
    )
    return [Row(line, prompt, (one, two), (said,))]


def _winner(fields: dict[str, Any]) -> str:
    # "a", "b", "tie" or "both bad"
    if "winner" not in fields:
        marked = [key for key in ONE_HOT if is_good(fields.get(key), key)]
        if len(marked) != 1:
            raise BadRow("the row has not one winner", f"marked are {', '.join(marked) or 'none'}")
        return {"winner_model_a": "a", "winner_model_b": "b"}.get(marked[0], "tie")
    said = text_of(fields, "winner").strip().lower()
    if said in ("model_a", "model_b"):
        return said[-1]
    if said in BOTH_BAD:
        return "both bad"
    if said.startswith("tie"):
        return "tie"
    raise BadRow('field "winner" is none that we know', f'it is "{said}"'[:90])


def _conversation(fields: dict[str, Any], side: str) -> list[Message]:
    if "conversation_a" in fields:
        value = nested(fields.get(f"conversation_{side}"))
        if not isinstance(value, list):
            raise BadRow("a conversation is no list of messages")
        messages = [message_of(message) for message in value]
        turn = fields.get("turn")
        answers = [place for place, message in enumerate(messages) if message.role == "assistant"]
        if isinstance(turn, int) and 0 < turn < len(answers):
            messages = messages[: answers[turn - 1] + 1]
    else:
        asked, answered = nested(fields.get("prompt")), nested(fields.get(f"response_{side}"))
        if not isinstance(asked, list) or not isinstance(answered, list) or len(asked) != len(answered):
            raise BadRow("prompt and responses are not lists of as many turns")
        turns = [text for both in zip(asked, answered, strict=True) for text in both]
        roles = ["user", "assistant"] * len(asked)
        messages = [message_of({"role": role, "content": checked_text(text, "prompt")}) for role, text in zip(roles, turns, strict=True)]
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise BadRow("the conversation does not end with the assistant")
    return messages


def _rater(judge: Any) -> str:
    # In MT-bench's raw files a model that judges is a list of its name and the prompt's.
    return "/".join(map(str, judge)) if isinstance(judge, list) else str(judge)
