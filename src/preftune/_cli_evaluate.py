"""The command `preftune evaluate`."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from preftune._cli_output import Json, print_json, print_result
from preftune._cli_retention import RetentionOption, chosen_tasks, tell_retention

if TYPE_CHECKING:
    from preftune.evaluate.contenders import Contender
    from preftune.evaluate.instructions import Asked
    from preftune.evaluate.judging import Judge
    from preftune.progress import Progress
    from preftune.records import Prompt


def evaluate(
    model: Annotated[str, typer.Argument(metavar="A", help="A run, model folder, GGUF file, URL, or .jsonl file of answers.")],
    against: Annotated[
        list[str] | None, typer.Option("--against", metavar="B", help="What A is compared with; may be given again.", show_default=False)
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(metavar="JUDGE", help="reward:RUN, a URL or .yaml, file.py:function, or people.", show_default=False),
    ] = None,
    prompts: Annotated[Path | None, typer.Option(metavar="FILE", help="The prompts that are answered.", show_default=False)] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many prompts alone.", show_default=False)] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
    drift: Annotated[bool, typer.Option("--drift/--no-drift", help="Also tell KL, length and so on.")] = True,
    pairs: Annotated[
        list[Path] | None, typer.Option("--pairs", metavar="FILE", help="Pairs on which A, a reward run, is tested.", show_default=False)
    ] = None,
    store: Annotated[str | None, typer.Option("--store", help="Where people's judgements are.")] = None,
    data: Annotated[Path | None, typer.Option(help="The snapshot; by default the one that the run learned from.")] = None,
    base: Annotated[Path | None, typer.Option(help="The model before any tuning.", show_default=False)] = None,
    reward_model: Annotated[Path | None, typer.Option(help="A reward run, for scores and the win rate.", show_default=False)] = None,
    out: Annotated[Path, typer.Option(help="Where they are kept.")] = Path("reports"),
    full: Annotated[bool, typer.Option("--full", help="Measure all, instead of a part.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    retention: RetentionOption = None,
    as_json: Json = False,
) -> None:
    """Measure what was won and what was kept.

    A run alone: style, win rate, distance from the base, and retention, with a verdict. With --against: which is better.
    With --pairs: how often a reward run is right. More: docs/evaluate.md

    Example: preftune evaluate runs/ID --against models/base --judge reward:runs/OTHER
    """
    from preftune.progress import for_terminal

    progress = for_terminal()
    if pairs:
        _insist_on_run(model)
        _bench(Path(model), pairs, out, seed, progress, as_json=as_json)
    elif against or prompts or judge or not Path(model).exists() or model.endswith(".jsonl"):
        _compare(
            [model, *(against or [])], judge or (f"reward:{reward_model}" if reward_model else None), data, prompts, store,
            as_json=as_json, limit=limit, max_new_tokens=max_new_tokens, drift=drift, out=out, seed=seed, progress=progress,
        )  # fmt: skip
    else:
        _measure(Path(model), data, base, reward_model, out, seed, retention, progress, full=full, as_json=as_json)


def _measure(
    model: Path,
    data: Path | None,
    base: Path | None,
    reward_model: Path | None,
    out: Path,
    seed: int,
    retention: list[str] | None,
    progress: Progress,
    *,
    full: bool,
    as_json: bool,
) -> None:
    from preftune.evaluate.run import evaluate as measure
    from preftune.stages.kinds import base_under, input_of

    started = time.time()
    folder = measure(
        model,
        data or input_of(model, "data", "--data"),
        base=base or base_under(model),
        reward_model=reward_model,
        out=out,
        size="full" if full else "small",
        seed=seed,
        tasks=chosen_tasks(retention),
        progress=progress,
    )
    tell_retention(folder)
    print_result(folder, started, f"preftune release {model}", as_json=as_json)


def _bench(run: Path, files: list[Path], out: Path, seed: int, progress: Progress, *, as_json: bool) -> None:
    from preftune.evaluate.bench_run import bench, bench_lines, read_bench

    started = time.time()
    folder = bench(run, files, out=out, seed=seed, progress=progress)
    if as_json:
        print_json({"path": str(folder), **read_bench(folder)})
        return
    print("\n".join(bench_lines(read_bench(folder))))
    print_result(folder, started, f"preftune probe {run}", as_json=False)


def _compare(
    words: list[str],
    judge: str | None,
    data: Path | None,
    prompts: Path | None,
    store: str | None,
    *,
    as_json: bool,
    limit: int | None,
    progress: Progress,
    out: Path,
    **settings: Any,
) -> None:
    from preftune.data.remote import read_endpoints
    from preftune.evaluate.compared import compare_models, read_comparison
    from preftune.evaluate.contenders import contender
    from preftune.evaluate.versus_words import lines
    from preftune.project import PROJECT_FILE

    started = time.time()
    endpoints = read_endpoints(Path(PROJECT_FILE)) if Path(PROJECT_FILE).exists() else []
    who = [contender(word, endpoints) for word in words]
    asked_prompts, asked = _prompts(who, data, prompts, limit)
    with ExitStack() as stack:
        judging = _judge(judge, endpoints, store, out, progress)
        if judging is not None:
            stack.callback(judging.close)
        people = _people(store)
        if people is not None:
            stack.callback(people.close)
        folder = compare_models(who, asked_prompts, judge=judging, people=people, asked=asked, out=out, progress=progress, **settings)
    result = read_comparison(folder)
    if as_json:
        print_json({"path": str(folder), **result})
        return
    print("\n".join(lines(result)))
    print_result(folder, started, _next(words, judge), as_json=False)


def _next(words: list[str], judge: str | None) -> str:
    if len(words) > 1 and judge != "people":
        return f"preftune compare {words[0]} {words[1]}, to ask people"
    return f"preftune release {words[0]}"


def _prompts(who: list[Contender], data: Path | None, prompts: Path | None, limit: int | None) -> tuple[list[Prompt], list[Asked]]:
    """Return the prompts, and the instructions in them where there are such: of a file, a snapshot, or of A's file of answers."""
    from preftune.errors import ConfigError
    from preftune.evaluate.contenders import held_out_prompts, prompts_of, read_prompts
    from preftune.evaluate.instructions import is_asked, read_asked
    from preftune.stages.kinds import input_of

    if prompts is not None and data is not None:
        raise ConfigError("both --prompts and --data are given", "the command line", "Give one of them.")
    if prompts is not None:
        found = read_prompts(prompts)[:limit]
        by_id = {one.prompt.id: one for one in read_asked(prompts)} if is_asked(prompts) else {}
        return found, [by_id[prompt.id] for prompt in found] if by_id else []
    first = who[0]
    if data is None and (files := [one.path for one in who if one.is_file and one.path is not None]):
        return prompts_of(files[0])[:limit], []
    if data is None and not first.is_model:
        raise ConfigError("which prompts to ask is not clear", "the command line", "Give --prompts FILE or --data SNAPSHOT.")
    assert data is not None or first.path is not None
    found = held_out_prompts(data or input_of(first.path, "data", "--prompts or --data"), limit)  # type: ignore[arg-type]
    if not found:
        raise ConfigError("the snapshot holds no prompt out", str(data), "Give --prompts FILE.")
    return found, []


def _judge(word: str | None, endpoints: list[Any], store: str | None, out: Path, progress: Progress) -> Judge | None:
    """Return the judge that a word names. Raises ConfigError where it names none."""
    from preftune._cli_inputs import store_address
    from preftune.config import check_config, load_config
    from preftune.data.store import Store
    from preftune.errors import ConfigError
    from preftune.evaluate.contenders import named_endpoint
    from preftune.evaluate.judging import PeopleJudge, ProgramJudge, RewardJudge, ServedJudge
    from preftune.rollout.rewards.source import JudgeSettings

    cache = out.resolve().parent / "cache" / "judge.db"
    if word is None:
        return None
    if word == "people":
        return PeopleJudge(Store.open(store_address(store)))
    if word.startswith(("http://", "https://")):
        url, _, model = word.partition("#")
        return ServedJudge(check_config(JudgeSettings, {"url": url, "model": model or "default"}, where="--judge"), cache)
    if word.startswith("endpoint:"):
        one = named_endpoint(word.removeprefix("endpoint:"), endpoints)
        values = {"url": one.url, "model": one.model, "api_key_env": one.api_key_env, "concurrency": one.concurrency}
        return ServedJudge(check_config(JudgeSettings, values, where="--judge"), cache)
    if word.endswith((".yaml", ".yml")):
        return ServedJudge(load_config(JudgeSettings, Path(word), [], stage="judge"), cache)
    path, _, function = word.rpartition(":")
    if path.endswith(".py"):
        return ProgramJudge(Path(path.removeprefix("program:")), function)
    run = Path(word.removeprefix("reward:"))
    if word.startswith("reward:") or run.exists():
        return RewardJudge(run, progress)
    fix = "Give reward:RUN, a URL, a .yaml file with url and model, file.py:function, or people."
    raise ConfigError(f'"{word}" is no judge', "--judge", fix)


def _people(store: str | None) -> Any:
    """Return the store with people's judgements, where one was named or the project has one."""
    from preftune._cli_inputs import store_address
    from preftune.data.store import Store
    from preftune.project import PROJECT_FILE

    address = store_address(store)
    there = "://" in address or Path(address).exists()
    return Store.open(address) if store or (there and Path(PROJECT_FILE).exists()) else None


def _insist_on_run(model: str) -> None:
    from preftune.errors import ConfigError

    if not Path(model).exists():
        raise ConfigError("there is no such run", model, "Give a run of train reward or of train dpo.")
