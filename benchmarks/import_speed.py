"""How fast `preftune import` reads HH-like transcripts, and `preftune check` looks at them: real commands, each in a process of its own.

python benchmarks/import_speed.py            160,000 rows
python benchmarks/import_speed.py --quick    8,000 rows

The rows are the HH sample's with the words of each turn permuted, so that all are different and as long as real ones; without the sample
they are made of drawn words. The last line is one JSON object: rows, seconds and peak_memory_gib of the import, again_seconds (importing
the same file once more, which adds nothing), check_seconds and check_peak_memory_gib; the cpu_seconds say what a machine without
other work would take. There is no peer: nobody else stores what they read.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SAMPLE = Path(__file__).resolve().parents[2] / "shared" / "data" / "hh_harmless_test.jsonl.gz"
ROWS, QUICK_ROWS = 160_000, 8_000
TURN = {"Human": "\n\nHuman: ", "Assistant": "\n\nAssistant: "}


def sample() -> list[tuple[str, str]]:
    """Return (chosen, rejected) transcripts: real ones, or drawn ones of about the same length."""
    if SAMPLE.exists():
        with gzip.open(SAMPLE, "rt", encoding="utf-8") as file:
            return [(row["chosen"], row["rejected"]) for row in map(json.loads, file)]
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 10))) for _ in range(20_000)]

    def turns(count: int) -> str:
        return "".join(TURN[("Human", "Assistant")[n % 2]] + " ".join(chance.choices(words, k=chance.randint(3, 60))) for n in range(count))

    prompts = [turns(chance.choice((1, 3, 5))) for _ in range(2_000)]
    return [(p + TURN["Assistant"] + " ".join(words[:20]), p + TURN["Assistant"] + " ".join(words[20:60])) for p in prompts]


def permuted(rows: list[tuple[str, str]], count: int) -> Iterator[dict[str, str]]:
    """Yield rows whose words are those of the sample's turns in another order; the prompt stays common to both answers."""
    for number in range(count):
        chosen, rejected = rows[number % len(rows)]
        chance = random.Random(number)
        shared = next((n for n, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), 0)
        cut = max(chosen.rfind(TURN["Assistant"], 0, shared + len(TURN["Assistant"])), 0)
        prompt = mixed(chosen[:cut], chance)
        yield {"chosen": prompt + mixed(chosen[cut:], chance), "rejected": prompt + mixed(rejected[cut:], chance)}


def mixed(text: str, chance: random.Random) -> str:
    """Return a transcript with the words of each turn in another order."""
    paragraphs = text.split("\n\n")
    for n, paragraph in enumerate(paragraphs):
        words = paragraph.split(" ")
        kept = 1 if words[0] in ("Human:", "Assistant:") else 0
        rest = words[kept:]
        chance.shuffle(rest)
        paragraphs[n] = " ".join([*words[:kept], *rest])
    return "\n\n".join(paragraphs)


def timed(*words: str) -> tuple[float, float, float]:
    """Run a preftune command and return its seconds, those that it computed, and its peak memory in GiB."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "preftune", *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 2):  # 2: rows were set aside
        raise SystemExit(f"preftune {words[0]} failed with {process.returncode}")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="8,000 rows instead of 160,000")
    count = QUICK_ROWS if parser.parse_args().quick else ROWS
    with tempfile.TemporaryDirectory() as folder:
        source, store = Path(folder) / "rows.jsonl", f"{folder}/store.db"
        with source.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in permuted(sample(), count))
        print(f"{count:,} rows, {source.stat().st_size / 2**20:.0f} MiB", file=sys.stderr)
        seconds, cpu_seconds, memory = timed("import", str(source), "--store", store)
        again_seconds, _, _ = timed("import", str(source), "--store", store)
        check_seconds, check_cpu_seconds, check_memory = timed("check", "--store", store)
    found = {
        "rows": count,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "peak_memory_gib": round(memory, 3),
        "rows_per_second": round(count / seconds),
        "again_seconds": round(again_seconds, 1),
        "check_seconds": round(check_seconds, 1),
        "check_cpu_seconds": round(check_cpu_seconds, 1),
        "check_peak_memory_gib": round(check_memory, 3),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
