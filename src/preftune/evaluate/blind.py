"""Answers of the two that people are to compare blind: from a model, or from a file of answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from preftune.errors import DataError
from preftune.evaluate.json_lines import numbered_lines
from preftune.progress import Progress
from preftune.records import Prompt


def held_out_prompts(snapshot: Path, limit: int | None = None) -> list[Prompt]:
    """Return a snapshot's held-out prompts, each once."""
    from preftune.data.snapshot import load_snapshot

    found = load_snapshot(snapshot).held_out_prompts
    return list({prompt.id: prompt for prompt in found}.values())[:limit]


def answers_of(path: Path, prompts: Sequence[Prompt], *, max_new_tokens: int, progress: Progress) -> list[str]:
    """Return one answer to each prompt: read from a .jsonl file of answers, else written greedily by the model at `path`."""
    if path.suffix == ".jsonl":
        return read_answers(path, prompts)
    from preftune.evaluate.subject import Subject  # loads torch, which a file of answers does not need

    subject = Subject(path)
    with progress.stage(f"answers of {path.name}", len(prompts), "answers") as task:
        samples = subject.sample(
            [prompt.messages for prompt in prompts], max_new_tokens=max_new_tokens, temperature=0.0, seed=0, on_done=task.advance
        )
    return [subject.renderer.decode(sample.ids) for sample in samples]


def read_answers(path: Path, prompts: Sequence[Prompt]) -> list[str]:
    """Return a file's answer to each prompt. A line: {"prompt": the last user turn, or its prompt id, "answer": text}.

    Raises DataError where a line cannot be read, a prompt has two answers, or one has none.
    """
    found: dict[str, str] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the answers cannot be read ({error})", str(path), "Give a JSON Lines file in UTF-8.") from error
    for number, line in numbered_lines(text):
        try:
            row = json.loads(line)
            prompt, answer = row["prompt"], row["answer"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError("this is no answer", f"{path} line {number}", 'Write {"prompt": …, "answer": …}.') from error
        if not isinstance(prompt, str) or not isinstance(answer, str):
            raise DataError("prompt and answer must be texts", f"{path} line {number}", 'Write {"prompt": "…", "answer": "…"}.')
        if found.setdefault(prompt, answer) != answer:
            raise DataError(f"a second answer to {prompt[:60]!r}", f"{path} line {number}", "Keep one of them.")
    missing = [prompt for prompt in prompts if prompt.id not in found and prompt.text not in found]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(prompts)} prompts have no answer, first: {missing[0].text[:60]!r}",
            str(path),
            "Answer them, or give the prompts that the file does answer by --prompts.",
        )
    return [found.get(prompt.id, found.get(prompt.text, "")) for prompt in prompts]
