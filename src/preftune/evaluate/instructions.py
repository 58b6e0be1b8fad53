"""Does an answer do what was asked of its form? Instructions that a program can check: lengths, formats, words that must (not) be there.

Prompts come in the file format of IFEval (Zhou et al. 2311.07911): {"prompt", "instruction_id_list", "kwargs"}. What is checked is written
anew from the descriptions, so rates differ from the paper's in edge cases: sentences are split by a rule, words by white space. Of its 25
kinds one is not checked, since it takes a language detector (language:response_language); it is counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from preftune.data.intervals import clustered_share
from preftune.errors import DataError
from preftune.evaluate.json_lines import numbered_lines
from preftune.records import Message, Prompt

RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "at least": lambda found, asked: found >= asked,
    "less than": lambda found, asked: found < asked,
    "at most": lambda found, asked: found <= asked,
    "exactly": lambda found, asked: found == asked,
}
Given = Mapping[str, Any]


@dataclass(frozen=True)
class Asked:
    """A prompt and the instructions in it, each an id with its arguments."""

    prompt: Prompt
    instructions: tuple[tuple[str, dict[str, Any]], ...]


def read_asked(path: Path) -> list[Asked]:
    """Return the prompts of a file in IFEval's format. Raises DataError with the line where one cannot be read."""
    found = []
    for number, line in numbered_lines(path.read_text(encoding="utf-8")):
        try:
            row = json.loads(line)
            given = [{key: value for key, value in own.items() if value is not None} for own in row["kwargs"]]
            pairs = tuple(zip(row["instruction_id_list"], given, strict=True))
            found.append(Asked(Prompt(messages=(Message(role="user", content=row["prompt"]),)), pairs))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            fix = 'Write {"prompt": …, "instruction_id_list": […], "kwargs": [{…}, …]}.'
            raise DataError(f"this is no prompt with instructions ({error})", f"{path} line {number}", fix) from error
    return found


def is_asked(path: Path) -> bool:
    """Return whether a file's first line is in IFEval's format."""
    if path.suffix != ".jsonl":
        return False
    with path.open(encoding="utf-8", errors="replace") as lines:
        return '"instruction_id_list"' in next(iter(lines), "")


def follows(answer: str, instruction: str, given: Given) -> bool | None:
    """Return whether an answer follows one instruction, or None where this kind is not checked. An empty answer follows nothing."""
    check = CHECKS.get(instruction)
    if check is None:
        return None
    try:
        return bool(answer.strip()) and check(answer.strip(), given)
    except KeyError as error:
        raise DataError(f"the argument {error} is missing", instruction, "Look at its kwargs.") from error


def following(answers: Sequence[str], asked: Sequence[Asked]) -> dict[str, Any]:
    """Return the share of instructions followed, the share of prompts with all of them followed, how many were not checked, and by kind.

    Intervals take the instructions of one prompt as one cluster. A prompt counts where at least one of its instructions is checked.
    """
    words = [[(name, follows(answer, name, given)) for name, given in one.instructions] for answer, one in zip(answers, asked, strict=True)]
    checked = [(place, name, hit) for place, own in enumerate(words) for name, hit in own if hit is not None]
    prompts = [[hit for _, hit in own if hit is not None] for own in words]
    whole = [all(own) for own in prompts if own]
    kinds: dict[str, list[bool]] = {}
    for _, name, hit in checked:
        kinds.setdefault(name, []).append(hit)
    share = clustered_share([hit for *_, hit in checked], [place for place, *_ in checked]) if checked else None
    prompt_share = clustered_share(whole, range(len(whole))) if whole else None
    return {
        "instructions": asdict(share) if share else None,
        "prompts": asdict(prompt_share) if prompt_share else None,
        "not_checked": sum(hit is None for own in words for _, hit in own),
        "kinds": {name: {"followed": sum(hits), "of": len(hits)} for name, hits in sorted(kinds.items())},
    }


def _related(found: int, given: Given, key: str) -> bool:
    relation = str(given.get("relation", "at least"))
    if relation not in RELATIONS:
        raise DataError(f'"{relation}" is no relation', key, f"Use one of: {', '.join(RELATIONS)}.")
    return RELATIONS[relation](found, int(given[key]))


def _words(answer: str, given: Given) -> bool:
    return _related(len(answer.split()), given, "num_words")


def _sentences(answer: str, given: Given) -> bool:
    flat = re.sub(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|e\.g|i\.e|etc|vs)\.", lambda m: m.group().replace(".", ""), answer)
    return _related(len([s for s in re.split(r"[.!?]+(?:[\"'”’)]*)(?:\s+|$)", flat) if re.search(r"\w", s)]), given, "num_sentences")


def _parts(answer: str, separator: str) -> list[str]:
    return [part.strip() for part in re.split(separator, answer) if part.strip()]


def _paragraph_begins(answer: str, given: Given) -> bool:
    parts, nth = _parts(answer, r"\n\n"), int(given["nth_paragraph"])
    if len(parts) != int(given["num_paragraphs"]) or not 1 <= nth <= len(parts):
        return False
    first = re.search(r"\w+", parts[nth - 1])
    return first is not None and first.group().lower() == str(given["first_word"]).lower()


def _count(answer: str, word: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", answer, re.IGNORECASE))


def _postscript(answer: str, given: Given) -> bool:
    marker = r"\s*".join(map(re.escape, str(given["postscript_marker"]).replace(" ", "")))
    return re.search(rf"^\s*{marker}", answer, re.IGNORECASE | re.MULTILINE) is not None


def _json(answer: str, given: Given) -> bool:
    inner = re.sub(r"\A```(?:json)?\s*|\s*```\Z", "", answer, flags=re.IGNORECASE)
    try:
        json.loads(inner)
    except (ValueError, RecursionError):
        return False
    return True


def _two_responses(answer: str, given: Given) -> bool:
    parts = _parts(answer, r"\*{6}")
    return len(parts) == 2 and parts[0] != parts[1]


def _repeats(answer: str, given: Given) -> bool:
    return answer.lower().startswith(str(given["prompt_to_repeat"]).strip().lower())


def _capitals(answer: str, given: Given) -> bool:
    found = sum(word.isupper() and any(letter.isalpha() for letter in word) for word in re.findall(r"\w[\w'’-]*", answer))
    relation = {"relation": given.get("capital_relation", "at least"), "capital_frequency": given["capital_frequency"]}
    return _related(found, relation, "capital_frequency")


def _highlights(answer: str, given: Given) -> bool:
    found = re.findall(r"\*\*[^\n*]*\S[^\n*]*\*\*|\*[^\n*]*\S[^\n*]*\*", answer)
    return len(found) >= int(given["num_highlights"])


def _letters(answer: str, given: Given) -> bool:
    relation = {"relation": given.get("let_relation", "at least"), "let_frequency": given["let_frequency"]}
    return _related(answer.lower().count(str(given["letter"]).lower()), relation, "let_frequency")


CHECKS: dict[str, Callable[[str, Given], bool]] = {
    "punctuation:no_comma": lambda answer, given: "," not in answer,
    "length_constraints:number_words": _words,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_paragraphs": lambda a, g: len(_parts(a, r"\s?\*\*\*\s?")) == int(g["num_paragraphs"]),
    "length_constraints:nth_paragraph_first_word": _paragraph_begins,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:number_bullet_lists": lambda a, g: len(re.findall(r"^\s*[-*]\s+\S", a, re.MULTILINE)) == int(g["num_bullets"]),
    "detectable_format:title": lambda answer, given: re.search(r"<<[^\n>]*\S[^\n>]*>>", answer) is not None,
    "detectable_format:json_format": _json,
    "detectable_format:multiple_sections": lambda a, g: (
        len(re.findall(rf"{re.escape(str(g['section_spliter']).strip())}\s?\d+", a)) >= int(g["num_sections"])
    ),
    "detectable_format:constrained_response": lambda answer, given: any(
        text in answer for text in ("My answer is yes.", "My answer is no.", "My answer is maybe.")
    ),
    "detectable_content:number_placeholders": lambda a, g: len(re.findall(r"\[[^\]\n]+\]", a)) >= int(g["num_placeholders"]),
    "detectable_content:postscript": _postscript,
    "keywords:existence": lambda a, g: all(_count(a, word) for word in g["keywords"]),
    "keywords:forbidden_words": lambda a, g: not any(_count(a, word) for word in g["forbidden_words"]),
    "keywords:frequency": lambda a, g: _related(_count(a, str(g["keyword"])), g, "frequency"),
    "keywords:letter_frequency": _letters,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeats,
    "startend:end_checker": lambda a, g: a.strip('"').rstrip().lower().endswith(str(g["end_phrase"]).strip().lower()),
    "startend:quotation": lambda answer, given: len(answer) > 1 and answer[0] in '"“' and answer[-1] in '"”',
    "change_case:english_capital": lambda answer, given: answer.isupper(),
    "change_case:english_lowercase": lambda answer, given: answer.islower(),
    "change_case:capital_word_frequency": _capitals,
}
