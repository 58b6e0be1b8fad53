"""The best and the worst of each prompt's candidates, by a reward: pairs for on-line DPO, and the best of n for SFT.

    for each prompt: score its candidates by a run of train reward or train dpo
                     note the best over the worst as a judgement of the rater "reward:<run>", with the scores beside it

So what a reward says lies in the store beside what people say, and goes the same way: `snapshot --rater reward:<run>`, then `train dpo`
(the pairs), or `train sft` (their chosen sides: rejection sampling). Nothing is asked twice: a prompt whose candidates this reward has all
scored is left as it is, and where new ones have come, the new judgement takes the old one's place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.data.store import Store
from preftune.errors import DataError, ModelError
from preftune.progress import Progress, Silent, counted
from preftune.records import Candidate, Judgement, Prompt, standing

if TYPE_CHECKING:
    from preftune.rollout.score import Scorer

RATER = "reward:"  # before the name of the run that scored
ASPECT = "reward"
AT_ONCE = 16  # prompts; what a kill may lose, at most


@dataclass
class PickReport:
    """What a run of `pick` did.

    rater: whose judgements they are. prompts: looked at. picked: new judgements. known: prompts that were picked from before. few: fewer
    than two candidates that can be scored. equal: all scored the same. cut: candidates left out, since they ended by the limit.
    too_long: candidates left out, since the reward cannot read so much.
    """

    rater: str
    prompts: int = 0
    picked: int = 0
    known: int = 0
    few: int = 0
    equal: int = 0
    cut: int = 0
    too_long: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the report as lines for a person."""
        told = {
            "prompts were picked from before": self.known,
            "prompts have fewer than two candidates to choose between": self.few,
            "prompts have candidates that all score the same": self.equal,
            "candidates were cut by the limit, and left out": self.cut,
            "candidates are longer than the reward can read, and left out": self.too_long,
        }
        lines = [f"{counted(self.prompts, 'prompts')}: {self.picked:,} best and worst picked by {self.rater}"]
        return lines + [f"  {counted(count, what)}" for what, count in told.items() if count]


def pick(store: Store | Path | str, run: Path, *, sources: Sequence[str] = (), progress: Progress | None = None) -> PickReport:
    """Score the store's candidates by a run, and add its best over its worst of each prompt as a judgement; return what happened.

    run: of train reward (an ensemble: the mean of its members) or of train dpo. sources: only candidates of these (`Candidate.source`).
    Raises ModelError where the run gives no score, DataError where the store holds no candidate of these sources.
    """
    if not run.exists():
        raise ModelError("there is no such run", str(run), "Give a run of train reward or train dpo.")
    report = PickReport(rater=RATER + run.resolve().name)
    with ExitStack() as stack:
        opened = store if isinstance(store, Store) else stack.enter_context(Store.open(store))
        todo = list(_todo(opened, report, frozenset(sources)))
        if not todo and not report.known and not report.few:
            which = f" by {' or '.join(sources)}" if sources else ""
            raise DataError(f"no prompt has a candidate{which}", opened.where, "Run preftune sample first.")
        if not todo:
            return report
        from preftune.rollout.score import load_scorer

        scorer = load_scorer(run)
        with (progress or Silent()).stage("scoring", total=len(todo), unit="prompts") as task:
            for part in (todo[at : at + AT_ONCE] for at in range(0, len(todo), AT_ONCE)):
                judgements = [j for j in (_judged(scorer, one, report) for one in part) if j is not None]
                opened.add(judgements=judgements)
                report.picked += len(judgements)
                task.advance(len(part), picked=report.picked)
    return report


@dataclass(frozen=True)
class _Open:
    """A prompt to be picked from. before: this rater's judgements on it, by the candidates that were scored."""

    prompt: Prompt
    candidates: tuple[Candidate, ...]
    before: dict[frozenset[str], Judgement]


def _todo(store: Store, report: PickReport, sources: frozenset[str]) -> Iterable[_Open]:
    for prompt, candidates, judgements, _ in store.contents():
        wanted = [c for c in candidates if not sources or c.source in sources]
        if not wanted:
            continue
        report.prompts += 1
        whole = tuple(c for c in wanted if c.sampling.get("finished", True))
        report.cut += len(wanted) - len(whole)
        before = {frozenset(j.aspects.get(ASPECT, ())): j for j in standing(judgements) if j.rater == report.rater}
        if frozenset(c.id for c in whole) in before:
            report.known += 1
        elif len(whole) < 2:
            report.few += 1
        else:
            yield _Open(prompt, whole, before)


def _judged(scorer: Scorer, one: _Open, report: PickReport) -> Judgement | None:
    from preftune.data.batches import Group

    prompt = tuple(scorer.renderer.prompt_ids(one.prompt.messages))
    answers = {c.id: tuple(scorer.renderer.completion_ids(c.text)) for c in one.candidates}
    fitting = {name: ids for name, ids in answers.items() if len(prompt) + len(ids) <= scorer.max_tokens}
    report.too_long += len(answers) - len(fitting)
    if len(fitting) < 2:
        report.few += 1
        return None
    if frozenset(fitting) in one.before:
        report.known += 1
        return None
    scores = scorer.standardised([Group(prompt, tuple(fitting.values()), 0)]).reshape(len(fitting), -1).mean(1).tolist()
    scored = dict(zip(fitting, scores, strict=True))
    best, worst = max(scored, key=lambda name: scored[name]), min(scored, key=lambda name: scored[name])
    if scored[best] == scored[worst]:
        report.equal += 1
        return None
    fewer = next((j for names, j in one.before.items() if names < scored.keys()), None)  # those, and new ones since
    return Judgement(
        prompt_id=one.prompt.id,
        ranking=((best,), (worst,)),
        aspects={ASPECT: {name: round(score, 4) for name, score in scored.items()}},
        rater=report.rater,
        picked_by="reward",
        supersedes=fewer.id if fewer is not None else None,
    )
