"""What a comparison came to, in lines for a person: one block for each two, the order of many, and how far they moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from preftune.evaluate.wording import NONE
from preftune.progress import counted

MINUS = "−"
LETTERS = [chr(ord("A") + place) for place in range(26)]


def said_beforehand(told: Mapping[str, Any]) -> str:
    """Return what so many prompts can tell, said before anything is judged."""
    prompts, found = told["prompts"], told["finds"]
    start = f"{counted(prompts, 'prompts')}: "
    start += f"a true win rate of {100 * found:.1f} % or more is found four times of five" if found else "too few to find any difference"
    return f"{start}. (55 % takes {told['for_55']:,}, 60 % takes {told['for_60']:,}; ties save some.)"


def lines(result: Mapping[str, Any]) -> list[str]:
    """Return what `compare_models` found, as lines."""
    letters = dict(zip(result["contenders"], LETTERS, strict=False))
    found = [f"{letter} = {name}" for name, letter in letters.items()]
    if result["judge"] is not None:
        found += [f"Judged by {result['judge']}. {said_beforehand(result['beforehand'])}"]
        for pair in result["pairs"]:
            found += ["", *_pair(pair, letters[pair["a"]], letters[pair["b"]], many=len(result["pairs"]) > 1)]
        if result["leaderboard"]:
            found += ["", *_board(result["leaderboard"], letters)]
        found += [f"Note: {note}." for note in result["notes"]]
    elif len(letters) > 1:
        found += [f"{counted(result['prompts'], 'prompts')}. No judge was named, so there is no win rate: give --judge."]
    if result["drift"]:
        found += ["", *_drift(result["drift"], letters)]
    return found


def _pair(pair: Mapping[str, Any], a: str, b: str, *, many: bool) -> list[str]:
    counts = f"{pair['wins']:,} won, {pair['ties']:,} tied, {pair['losses']:,} lost"
    if pair["verdicts"] != pair["prompts"]:
        counts += f" ({counted(pair['verdicts'], 'verdicts')})"
    paired = f"exact paired test p = {_p(pair['p_value'])}" + (f", corrected {_p(pair['p_adjusted'])}" if many else "")
    rows = [
        f"{a} against {b}",
        f"  win rate of {a}    {_share(pair['rate'])}  {counts}; {paired}",
        _equal_length(pair["length_controlled"], a),
    ]
    if pair["alike"]:
        rows.append(f"  alike            {counted(pair['alike'], 'prompts are')} answered with the same text, and count as ties")
    if pair["unread"]:
        rows.append(f"  no verdict       {pair['unread']:,} of {pair['prompts'] + pair['unread']:,}, left out above")
    if pair["orders"]:
        rows += _orders(pair["orders"])
    if pair.get("people"):
        rows.append(_people(pair["people"]))
    return [*rows, f"  {_verdict(pair, a, b)}"]


def _equal_length(found: Mapping[str, Any], a: str) -> str:
    ratio = found["ratio"]
    row = f"  at equal length  {_share(found['rate'])}  {a}'s answers are {ratio:.2f} times as long"
    return row + ("; more than 10 points from the plain rate, so length decides much, or the fit fails" if found["far"] else "")


def _orders(found: Mapping[str, Any]) -> list[str]:
    rows = []
    if found["consistency"]:
        loose = "; below 80 %: its verdicts hang much on which answer is shown first" if found["loose"] else ""
        rows.append(f"  same both ways   {_share(found['consistency'])}  where it differs, a tie is counted{loose}")
    if found["first"]:
        rows.append(f"  first shown wins {_share(found['first'])}  50 % where the place does not matter")
    rows.append(f"  not readable     {found['unread']:,} of {found['asked']:,} verdicts")
    return rows


def _people(found: Mapping[str, Any]) -> str:
    kappa = found["kappa"]
    row = f"  as people say    {_share(found['agreement'])}  on {counted(kappa['n'], 'prompts')}"
    if not found["told"]:
        return f"{row}; too few, or too much alike, for a coefficient"
    return f"{row}; Cohen's kappa {kappa['value']:.2f} ({kappa['low']:.2f} to {kappa['high']:.2f})"


def _verdict(pair: Mapping[str, Any], a: str, b: str) -> str:
    if pair["said"] != "cannot tell":
        return f"{a if pair['said'] == 'A' else b} is better."
    more = f" If it goes on so, {counted(pair['would_take'], 'prompts')} would tell." if pair["would_take"] else ""
    return f"Cannot tell which is better.{more}"


def _board(standings: Sequence[Mapping[str, Any]], letters: Mapping[str, str]) -> list[str]:
    rows = ["place   model  Elo (95 % interval)"]
    for one in standings:
        elo, low, high = one["elo"], one["rank_low"], one["rank_high"]
        place = f"{low}" if low == high else f"{low} to {high}"
        rows.append(f"{place:<8}{letters[one['name']]:<7}{elo['value']:.0f} ({elo['low']:.0f} to {elo['high']:.0f})")
    return rows


LOOKS = {
    "characters": ("length, characters", 0, 1.0), "words": ("length, words", 1, 1.0), "repetition": ("said again, %", 1, 100.0),
    "empty": ("empty, %", 1, 100.0), "refuses": ("refuses, %", 1, 100.0), "code": ("with code, %", 1, 100.0),
    "lists": ("with lists, %", 1, 100.0), "heading": ("with headings, %", 1, 100.0), "bold": ("with bold, %", 1, 100.0),
}  # fmt: skip


def _drift(models: Sequence[Mapping[str, Any]], letters: Mapping[str, str]) -> list[str]:
    table = [["what the answers look like", *(letters[one["name"]] for one in models)]]
    for key, (label, digits, scale) in LOOKS.items():
        table.append([label, *(_changed(one["looks"][key], digits, scale) for one in models)])
    table.append(["different runs of 3 words, %", *(f"{100 * one['looks']['diversity']['distinct'][2]:.1f}" for one in models)])
    alike = [one["looks"]["diversity"]["similarity"] for one in models]
    table.append(["alike to each other, %", *(NONE if value is None else f"{100 * value:.2f}" for value in alike)])
    if any(one.get("following") for one in models):
        table += _following([one["following"] for one in models])
    for key, label in (("entropy", "entropy, nats a token"), ("kl", "KL, nats an answer")):
        if any(one.get(key) for one in models):
            table.append([label, *(_between(one.get(key)) for one in models)])
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    if len(models) > 1:
        rows.append("In brackets: the change from B, with its 95 % interval (entropy, KL: its own interval).")
    return [*rows, *(f"{why}." for why in dict.fromkeys(one["kl_why"] for one in models if one.get("kl_why")))]


def _following(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the rows on instructions: the share of them that is followed, and of prompts with all of theirs followed."""
    cells = [{**(one["instructions"] or {}), **({"change": one["change"]} if "change" in one else {})} for one in found]
    return [
        ["instructions followed, %", *(_changed(cell, 1, 100.0) if "value" in cell else NONE for cell in cells)],
        ["prompts followed whole, %", *(_changed(one["prompts"], 1, 100.0) if one["prompts"] else NONE for one in found)],
    ]


def _between(found: Mapping[str, Any] | None) -> str:
    return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})".replace("-", MINUS) if found else NONE


def _changed(found: Mapping[str, Any], digits: int, scale: float) -> str:
    value = f"{scale * found['value']:.{digits}f}"
    if "change" not in found:
        return value
    change = found["change"]
    parts = [f"{scale * change[key]:+.{digits}f}".replace("-", MINUS) for key in ("value", "low", "high")]
    return f"{value} ({parts[0]}: {parts[1]} to {parts[2]})"


def _share(found: Mapping[str, Any]) -> str:
    return f"{100 * found['value']:5.1f} % ({100 * found['low']:.1f} to {100 * found['high']:.1f})"


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 0.001 else f"{value:.0e}"
