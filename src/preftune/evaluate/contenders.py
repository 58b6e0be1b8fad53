"""Who is compared: anything that answers prompts, or has answered them. A run, release, model folder, GGUF file, URL, or file of answers.

What a model here writes is kept in a folder of its own (`answers.jsonl`, which is itself a file of answers), so that no two comparisons
draw the same answers twice; what a server writes is kept in the project's cache.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preftune.data.endpoints import Endpoint
from preftune.data.remote import Ask, RemoteError, Reply, complete_all
from preftune.errors import ConfigError, DataError, ModelError
from preftune.evaluate.json_lines import numbered_lines
from preftune.manifest import begin, content_seed, hash_file, hash_folder
from preftune.progress import Progress
from preftune.records import Message, Prompt
from preftune.rollout.rewards.judge_cache import JudgeCache, key_of

ANSWERS, SAMPLED = "answers.jsonl", "sampled.jsonl"


@dataclass(frozen=True)
class Contender:
    """One of those compared. name: as it was given. path: a model or a file of answers. endpoint: a served model. One of the two is set.

    chat_template: as in a config, for a model that has none of its own.
    """

    name: str
    path: Path | None = None
    endpoint: Endpoint | None = None
    chat_template: str | None = None

    @property
    def short(self) -> str:
        """Its name where there is little room."""
        return self.path.name if self.path is not None else self.name

    @property
    def is_file(self) -> bool:
        """Whether its answers are there already."""
        return self.path is not None and self.path.suffix == ".jsonl"

    @property
    def is_model(self) -> bool:
        """Whether it can be loaded here, so that its log-probs can be read."""
        return self.path is not None and not self.is_file

    @property
    def identity(self) -> str:
        """What makes two the same."""
        if self.endpoint is not None:
            return f"{self.endpoint.url} {self.endpoint.model}"
        assert self.path is not None
        return hash_file(self.path) if self.is_file else hash_folder(self.path)


@dataclass(frozen=True)
class Sampled:
    """One answer drawn at temperature 1. prompt: its prompt's tokens; ids: its own; logprobs: of each, nats."""

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class Answers:
    """What one contender answered, a text a prompt. finished: whether it ended by itself (a file is taken at its word).

    sampled: of a model here, its answers at temperature 1, from which KL and entropy come; empty where they were not drawn.
    """

    name: str
    texts: list[str]
    finished: list[bool]
    sampled: list[Sampled] = field(default_factory=list)


def contender(word: str, endpoints: Sequence[Endpoint] = ()) -> Contender:
    """Return whom a word of the command line names. endpoints: those of the project, named "endpoint:NAME".

    Raises ConfigError or ModelError where there is no such one.
    """
    if word.startswith(("http://", "https://")):
        from preftune.config import check_config

        url, _, model = word.partition("#")
        values = {"name": url[:100], "url": url, "model": model or "default", "allow_private": True}
        return Contender(word, endpoint=check_config(Endpoint, values, where=word))
    if word.startswith("endpoint:"):
        return Contender(word, endpoint=named_endpoint(word.removeprefix("endpoint:"), endpoints))
    path = Path(word)
    if not path.exists():
        what = "there is no such file" if path.suffix in (".jsonl", ".gguf") else "there is no such model"
        raise ModelError(what, word, "Give a run, a release, a model folder, a GGUF file, a URL, or a .jsonl file of answers.")
    return Contender(word, path=path)


def named_endpoint(name: str, endpoints: Sequence[Endpoint]) -> Endpoint:
    """Return the endpoint of this name. Raises ConfigError where there is none."""
    known = {one.name: one for one in endpoints}
    if name not in known:
        there = f"Known are {', '.join(known)}." if known else "Write it below label: endpoints:, or give the URL."
        raise ConfigError(f'there is no endpoint "{name}"', "preftune.yaml", there)
    return known[name]


def prompts_of(path: Path) -> list[Prompt]:
    """Return the prompts that a file of answers answers, each once."""
    found = []
    for number, line in numbered_lines(path.read_text(encoding="utf-8")):
        try:
            row = json.loads(line)
            messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
            found.append(Prompt(messages=tuple(Message(**message) for message in messages)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError("this is no answer", f"{path} line {number}", 'Write {"prompt": …, "answer": …}.') from error
    if not found:
        raise DataError("there are no answers in it", str(path), 'Write a line of {"prompt": …, "answer": …} for each.')
    return list({prompt.id: prompt for prompt in found}.values())


def read_prompts(path: Path) -> list[Prompt]:
    """Return the prompts of a file, each once: IFEval's, questions with "turns" (of which the first is asked), or any format known."""
    from preftune.data.checks import prompts_in
    from preftune.evaluate.instructions import is_asked, read_asked

    if not path.exists():
        raise DataError("there is no such file", str(path), "Give a file of prompts.")
    if is_asked(path):
        found = [asked.prompt for asked in read_asked(path)]
    elif path.suffix == ".jsonl" and (turns := _questions(path)):
        found = turns
    else:
        found = list(prompts_in(path))
    return list({prompt.id: prompt for prompt in found}.values())


def _questions(path: Path) -> list[Prompt]:
    """Return the first turns of a file of questions as MT-Bench, Vicuna-Bench and Arena-Hard have them, or nothing where it is none."""
    found = []
    for _, line in numbered_lines(path.read_text(encoding="utf-8")):
        try:
            first = json.loads(line)["turns"][0]
        except (ValueError, KeyError, IndexError, TypeError):
            return []
        if first is not None:
            text = first["content"] if isinstance(first, dict) else first
            found.append(Prompt(messages=(Message(role="user", content=text),)))
    return found


def held_out_prompts(snapshot: Path, limit: int | None = None) -> list[Prompt]:
    """Return a snapshot's held-out prompts, each once."""
    from preftune.data.snapshot import load_snapshot

    found = load_snapshot(snapshot).held_out_prompts
    return list({prompt.id: prompt for prompt in found}.values())[:limit]


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


def answers_of(
    who: Contender,
    prompts: Sequence[Prompt],
    *,
    out: Path,
    max_new_tokens: int,
    seed: int = 0,
    sampled: bool = False,
    progress: Progress,
) -> Answers:
    """Return one answer to each prompt, greedily (temperature 0) where it has yet to be written. out: where answers are kept.

    sampled: also draw one at temperature 1, of a model here. Raises DataError where a file lacks an answer, PreftuneError where a server
    fails (what it has answered is kept).
    """
    if who.is_file:
        assert who.path is not None
        texts = read_answers(who.path, prompts)
        return Answers(who.name, texts, [True] * len(texts))
    if who.endpoint is not None:
        return _asked(who, who.endpoint, prompts, out, max_new_tokens, seed, progress)
    return _written(who, prompts, out, max_new_tokens, seed, progress, sampled=sampled)


def _asked(
    who: Contender, endpoint: Endpoint, prompts: Sequence[Prompt], out: Path, max_new_tokens: int, seed: int, progress: Progress
) -> Answers:
    asks = [Ask(prompt.messages, 0.0, max_new_tokens, seed) for prompt in prompts]
    keys = [key_of(endpoint, ask) for ask in asks]
    cache = JudgeCache(out.resolve().parent / "cache" / "answers.db", who.name)
    try:
        known = {key: json.loads(said) for key, said in cache.find(keys).items()}
        left = [place for place, key in enumerate(keys) if key not in known]
        with progress.stage(f"answers of {who.short}", len(prompts), "answers", done=len(prompts) - len(left)) as task:
            for number, reply in complete_all(endpoint, [asks[place] for place in left]):
                place = left[number]
                if isinstance(reply, RemoteError):
                    kept = f"{len(known)} of {len(prompts)} answers are kept"
                    raise RemoteError(f"{reply.what}; {kept}", who.name, f"{reply.fix} The same command again goes on from there.".strip())
                known[keys[place]] = {"text": reply.text, "finished": reply.finished}
                cache.keep(keys[place], asks[place], Reply(json.dumps(known[keys[place]]), reply.finished, reply.tokens))
                task.advance()
    finally:
        cache.close()
    rows = [known[key] for key in keys]
    return Answers(who.name, [row["text"] for row in rows], [row["finished"] for row in rows])


def _written(
    who: Contender, prompts: Sequence[Prompt], out: Path, max_new_tokens: int, seed: int, progress: Progress, *, sampled: bool
) -> Answers:
    assert who.path is not None
    config: dict[str, Any] = {"max_new_tokens": max_new_tokens, "sampled": sampled, "seed": seed}
    if who.chat_template is not None:
        from preftune.data.template import read_template  # loads transformers, which files of answers do not need

        config["chat_template"] = read_template(who.chat_template)
    asked = f"{content_seed(*[prompt.id for prompt in prompts]):016x}"
    final, work = begin(out, "answers", {"model": who.identity, "prompts": asked}, config)
    if work is not None:
        _write(work.path, who, prompts, config, progress)
        work.finish(final, paths={"model": who.name})
    rows, drawn = ([json.loads(line) for _, line in numbered_lines((final / n).read_text(encoding="utf-8"))] for n in (ANSWERS, SAMPLED))
    kept = [Sampled(tuple(row["prompt"]), tuple(row["ids"]), tuple(row["logprobs"])) for row in drawn]
    return Answers(who.name, [row["answer"] for row in rows], [row["finished"] for row in rows], kept)


def _write(folder: Path, who: Contender, prompts: Sequence[Prompt], config: dict[str, Any], progress: Progress) -> None:
    from preftune.evaluate.subject import Subject  # loads torch, which files of answers do not need

    assert who.path is not None
    subject = Subject(who.path, chat_template=who.chat_template)
    messages = [prompt.messages for prompt in prompts]
    limit = min(config["max_new_tokens"], subject.max_tokens - 1)
    settings: dict[str, Any] = {"max_new_tokens": limit, "seed": config["seed"]}
    _insist_on_room(subject, prompts, limit)
    with progress.stage(f"answers of {who.short}", len(prompts) * (1 + config["sampled"]), "answers") as task:
        greedy = subject.sample(messages, temperature=0.0, on_done=task.advance, **settings)
        drawn = subject.sample(messages, temperature=1.0, on_done=task.advance, **settings) if config["sampled"] else []
    with (folder / ANSWERS).open("w", encoding="utf-8") as file:
        for prompt, sample in zip(prompts, greedy, strict=True):
            turns = [message.model_dump() for message in prompt.messages]
            row = {"prompt": prompt.id, "messages": turns, "answer": subject.renderer.decode(sample.ids), "finished": sample.finished}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    with (folder / SAMPLED).open("w", encoding="utf-8") as file:
        for prompt, sample in zip(prompts, drawn, strict=False):
            ids = subject.renderer.prompt_ids(prompt.messages)
            file.write(json.dumps({"prompt": ids, "ids": sample.ids, "logprobs": sample.logprobs}) + "\n")


def _insist_on_room(subject: Any, prompts: Sequence[Prompt], limit: int) -> None:
    for prompt in prompts:
        length = len(subject.renderer.prompt_ids(prompt.messages))
        if length + limit > subject.max_tokens:
            what = f"a prompt of {length:,} tokens and an answer of {limit:,} do not fit into {subject.max_tokens:,} ({prompt.text[:60]!r})"
            raise DataError(what, str(subject.path), "Lower --max-new-tokens, or leave that prompt out.")
