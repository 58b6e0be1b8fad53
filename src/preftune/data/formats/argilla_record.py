"""What the fields and responses of one Argilla record say, whatever shape they were exported in (see `argilla`)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from preftune.data.formats.preferences import judgement, usable, weak_order
from preftune.data.formats.rows import BadRow, Row, checked_text, number_of, numbered, prompt_name, prompt_of
from preftune.records import Candidate, Demonstration, Judgement

ORDER_ALONE = "the export has the order of a ranking without its ranks (Argilla 2), so ties are unknown"
TIES = {"tie", "tied", "equal", "same", "draw", "both"}
WHY = re.compile(r"comment|rational|reason|expla|feedback|note|why|justif", re.IGNORECASE)
WISH = re.compile(r"correct|rewrit|edit|improve|demonstr|ideal|better|answer|response|completion", re.IGNORECASE)


class Said(NamedTuple):
    """One rater's response to one question."""

    question: str
    user: Any
    value: Any
    status: Any


class _Ranking(NamedTuple):
    question: str
    tiers: list[list[str]]


def record(line: int, texts: dict[str, Any], responses: Sequence[Said], *, suggestions: int, unused: Iterable[str]) -> Row:
    """Return the row of one record. texts: its fields. suggestions: how many a model made. Raises BadRow where it cannot be understood."""
    notes = ["a suggestion of a model is left out"] * suggestions
    by_user: dict[str, list[Said]] = {}
    for said in responses:
        if said.status in (None, "submitted"):
            by_user.setdefault(checked_text(str(said.user), "user_id") if said.user is not None else "unknown", []).append(said)
        else:
            notes.append(f"a {said.status} response is left out")
    rankings = {user: found for user, answered in by_user.items() if (found := _ranking_of(answered, texts, notes))}
    names = _candidate_names(texts, rankings, notes)
    others = [name for name in texts if name not in names]
    asked = prompt_name(others)
    prompt = prompt_of(texts[asked])
    answers = [checked_text(texts[name], name) for name in names]
    kept, more = usable(answers)
    candidates = {names[n]: Candidate(prompt_id=prompt.id, text=answers[n]) for n in kept}
    judgements: list[Judgement] = []
    demonstrations: list[Demonstration] = []
    for user, answered in by_user.items():
        tiers, why = _compared(answered, rankings.get(user), candidates, notes)
        demonstrations += [Demonstration(prompt_id=prompt.id, text=text, author=user) for text in _wishes(answered, names, notes)]
        order = [inside for tier in tiers if (inside := [candidates[name].id for name in tier if name in candidates])]
        if sum(map(len, order)) > 1:
            judgements.append(judgement(prompt.id, order, rater=user, rationale=why))
        elif tiers:
            notes.append("a ranking of fewer than two usable answers is left out")
    if responses and not judgements and not demonstrations:
        notes.append("a record has responses, but none that compares answers")
    left = sorted({*unused, *(name for name in others if name != asked)})
    return Row(line, prompt, tuple(candidates.values()), tuple(judgements), tuple(demonstrations), tuple(left), (*notes, *more))


def _ranking_of(said: list[Said], texts: dict[str, Any], notes: list[str]) -> _Ranking | None:
    # One rater's ranking: the first question whose value is a list of fields, with ranks or in order.
    found: _Ranking | None = None
    for question, _, value, _ in said:
        if not isinstance(value, list) or len(value) < 2:
            continue
        if all(isinstance(place, dict) for place in value):
            order = [str(place.get("value")) for place in value]
            tiers = [[order[n] for n in tier] for tier in weak_order([number_of(p.get("rank"), "rank") for p in value], best="lowest")]
        else:
            order = [str(name) for name in value]
            tiers = [[name] for name in order]
        if not any(name in texts for name in order):
            continue  # labels, not answers
        if len(set(order)) < len(order) or not all(name in texts for name in order):
            raise BadRow("a ranking names an answer twice, or one that is not among the fields", f'question "{question}": {order}'[:120])
        if found:
            notes.append(f'question "{question}" is left out: one ranking is read of each rater')
        else:
            found = _Ranking(question, tiers)
            notes += [ORDER_ALONE] if all(isinstance(place, str) for place in value) else []
    return found


def _candidate_names(texts: dict[str, Any], rankings: dict[str, _Ranking], notes: list[str]) -> list[str]:
    ranked = {name for ranking in rankings.values() for tier in ranking.tiers for name in tier}
    names = [name for name in texts if name in ranked] or numbered(name for name, text in texts.items() if isinstance(text, str))
    if len(names) < 2:
        raise BadRow("nothing says which fields are the answers", f"the fields are {', '.join(texts)}"[:120])
    return names


def _compared(
    said: list[Said], ranking: _Ranking | None, candidates: dict[str, Candidate], notes: list[str]
) -> tuple[list[list[str]], str | None]:
    # One rater's weak order by names of fields, and the rationale.
    tiers = ranking.tiers if ranking else []
    why: list[str] = []
    for question, _, value, _ in said:
        if ranking and question == ranking.question:
            continue
        is_choice = isinstance(value, str) and (value in candidates or value.strip().lower() in TIES)
        if is_choice and tiers:
            notes.append(f'question "{question}" is left out, as the same rater has ranked the answers')
        elif is_choice and len(candidates) == 2:
            two = list(candidates)
            tiers = [[value], [name for name in two if name != value]] if value in candidates else [two]
        elif is_choice:
            notes.append(f'question "{question}" is left out: a choice among more than two answers is no ranking')
        elif isinstance(value, str) and WHY.search(question):
            why.append(value)
        elif not (isinstance(value, str) and WISH.search(question)) and not isinstance(value, list):
            notes.append(f'question "{question}" is left out: it is about no single answer')
    return tiers, "\n".join(why) or None


def _wishes(said: list[Said], names: list[str], notes: list[str]) -> list[str]:
    # The texts that one rater wrote as an answer.
    found = []
    for question, _, value, _ in said:
        if isinstance(value, str) and value not in names and WISH.search(question) and not WHY.search(question):
            if value.strip() and value.strip().lower() not in TIES:
                found.append(checked_text(value, question))
        elif isinstance(value, list) and not any(isinstance(place, dict) or place in names for place in value):
            notes.append(f'question "{question}" is left out: it is about no single answer')
    return found
