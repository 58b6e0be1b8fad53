"""What a report says in sentences: the verdict, and warnings where a method shows one of its known failures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from preftune.evaluate.sources import Sources
from preftune.evaluate.statistics import paired_difference
from preftune.evaluate.story import RL, Measured, RetentionTask, Story, measured, number, retention_tasks, verdict_of
from preftune.evaluate.wording import Unit, listed, plain

DOUBLED = 2.0  # answers that long are a known sign of a gamed reward
NO_END = 0.1  # fall of the share of answers that end by themselves
FAR = 15.0  # nats an answer
FALL_SEEN = 10  # steps; the mean over so many is what a DPO run looks at before it warns that both answers fall
LENGTH_TELLS = 0.1  # how far from one half "the longer answer wins" may lie


@dataclass(frozen=True)
class Warned:
    """One warning: a heading, and a sentence in plain words."""

    title: str
    text: Markup


def verdict(story: Story, sources: Sources) -> Markup:
    """Return the whole report in one paragraph: style before and after, knowledge, what was released."""
    name = story.headline
    if name is None and story.results:
        return _compared(story, sources)
    if name is None:
        if story.runs and not story.summarised and not story.release:
            return Markup(
                "Nothing was evaluated here, so the curves say how training went, not whether the model is better or what it forgot. "
                "preftune evaluate tells that."
            )
        return Markup("No tuned model was evaluated, so there is nothing to judge yet. {}").format(_release(story, sources))
    parts = [_style(story, sources, name), _knowledge(story, sources, name), _release(story, sources)]
    return Markup(" ").join(parts)


def _compared(story: Story, sources: Sources) -> Markup:
    """Say who won each pair of a comparison, and where that cannot be told; of other reports that their figures stand below."""
    said = []
    for file, result in story.results.items():
        for pair in result.get("pairs") or []:
            rate = measured(pair.get("rate"))
            a, b = (Path(str(pair.get(side))).name for side in ("a", "b"))
            shown = sources.whole(rate, "share", f"result-{file}", "pairs")
            better = {"A": f"{a} is better", "B": f"{b} is better"}.get(str(pair.get("said")), "it cannot be told which is better")
            text = "{} against {}: it wins {} of {} prompts, ties counted half: {}."
            said.append(Markup(text).format(a, b, shown, pair.get("prompts"), better))
    return Markup(" ").join(said) if said else Markup("The figures of this report stand below, each with its interval.")


def _wins(story: Story, sources: Sources, name: str) -> Markup:
    """Say how often the reward model prefers a method's answers, where no style of code can tell what was won."""
    label, rate = story.labels[name], measured(story.evaluations[name].get("win_rate"))
    if rate is None:
        return Markup(
            "What {} won was not measured: neither style, as the data ask for no code, nor a win rate, for want of a judge."
        ).format(label)
    shown = sources.whole(rate, "share", f"evaluation-{name}", "win_rate")
    on = f" on {rate.n:,} held-out requests" if rate.n else ""
    text = Markup("By the reward model, the answers of {} win {} against the base model{}").format(label, shown, on)
    if rate.low is not None and rate.high is not None and rate.low <= 0.5 <= rate.high:
        return Markup("{}. As this interval includes one half, it cannot be told which is better.").format(text)
    return Markup("{}: it is {}.").format(text, "better" if rate.value > 0.5 else "worse")


def _style(story: Story, sources: Sources, name: str) -> Markup:
    evaluation = story.evaluations[name]
    before = measured(story.evaluations.get("before", {}).get("style"))
    after, gain = measured(evaluation.get("style")), measured(evaluation.get("style_gain"))
    if after is None:
        return _wins(story, sources, name)
    asked = f"{after.n:,} held-out requests" if after.n else "held-out requests"
    now = sources.whole(after, "share", f"evaluation-{name}", "style")
    if before is None:
        return Markup("On {}, the model after {} follows {} of the house conventions that apply.").format(asked, story.labels[name], now)
    was = sources.whole(before, "share", "evaluation-before", "style")
    text = Markup("On {}, the base model follows {} of the house conventions that apply, and after {} it follows {}").format(
        asked, was, story.labels[name], now
    )
    if gain is None:
        return text + "."
    change = sources.whole(gain, "points", f"evaluation-{name}", "style_gain")
    if gain.low is not None and gain.high is not None and gain.low <= 0 <= gain.high:
        return Markup("{}: {}. As this interval includes 0, it cannot be told whether style was won.").format(text, change)
    return Markup("{}: {} of style {}.").format(text, change, "won" if gain.value > 0 else "lost")


def _knowledge(story: Story, sources: Sources, name: str) -> Markup:
    evaluation, file = story.evaluations[name], f"evaluation-{name}"
    said = verdict_of(evaluation)
    gated = [task for task in retention_tasks(evaluation) if task.gated]
    key = "retention.overall"
    if said == "kept":
        each = f"{listed([task.name for task in gated])} each lost less" if gated else "each task lost less"
        return Markup("What the base model knew was {}: at one-sided 95 % it is proved that {} than the margin set beforehand.").format(
            sources.cite("kept", file, key), each
        )
    if said == "lost":
        fell = listed([_fell(task) for task in gated if task.verdict == "lost"]) or "see the table below"
        return Markup("Knowledge was {}: {}.").format(sources.cite("lost", file, key), fell)
    if said == "not proved":
        unproved = listed([_unproved(task) for task in gated if task.verdict != "kept"]) or "see the table below"
        text = "Whether the base model's knowledge was kept is {}: {}. That is no proof of a loss either; more items would tell."
        return Markup(text).format(sources.cite("not proved", file, key), unproved)
    return Markup("What the base model knew was not measured before and after.")


def change(task: RetentionTask, value: float | None) -> str:
    """Return a change of a task in its own unit: percentage points of right answers, or per cent of bits per byte."""
    return plain(value, "percent" if task.bits else "points")


def _fell(task: RetentionTask) -> str:
    return f"{task.name} got worse by {size(task, task.difference)}, beyond the margin of {size(task, task.margin)}"


def _unproved(task: RetentionTask) -> str:
    shift = f"the change is {change(task, task.difference)}" if task.difference is not None else "nothing was measured"
    return f"for {task.name} {shift}, and a loss beyond the margin of {size(task, task.margin)} cannot be ruled out"


def size(task: RetentionTask, value: float | None) -> str:
    """Return how large a change or margin is, without its sign."""
    return change(task, abs(value) if value is not None else None).lstrip("+")


def _release(story: Story, sources: Sources) -> Markup:
    path, refused = story.summary.get("release"), refusals(story)
    if path:
        what = f"{story.labels[story.released]} was released" if story.released else "A model was released"
        text = Markup("{} as {}.").format(
            what, sources.cite(str(path), *(("summary", "release") if story.summarised else ("release", "id")))
        )
        reason = story.release.get("config", {}).get("override")
        if reason:
            text += Markup(" The gate had refused it; it was released all the same, for this reason: “{}”.").format(reason)
        others = [story.labels.get(name, name) for name in refused if name != story.released]
        return Markup("{} The gate refused {}.").format(text, listed(others)) if others else text
    if story.headline in refused:
        verb = sources.cite("refused", "summary", f"refusals.{story.headline}")
        return Markup("Nothing was released, as the gate {} {}: {}").format(verb, story.labels[story.headline], refused[story.headline])
    return Markup("Nothing was released.")


def refusals(story: Story) -> dict[str, str]:
    """Return why the gate refused each method that it refused, in sentences."""
    reasons = story.summary.get("refusals") or {}
    return {name: " ".join(map(str, why)) for name, why in reasons.items() if why}


def warnings(story: Story, sources: Sources) -> list[Warned]:
    """Return what looks ill: a gamed reward model, what a DPO run warned of itself, a reward model that pays for the wrong thing."""
    found: list[Warned] = []
    for name in story.methods:
        if story.kind(name) in RL:
            found += _gaming(story, sources, name)
    for name in story.methods:
        found += _broken_functions(story, name)
    for name in story.ordered_runs:
        found += _told_by_the_run(story, name)
    return [*found, *_by_length(story, sources), *_paid_for(story)]


def _gaming(story: Story, sources: Sources, name: str) -> Iterator[Warned]:
    before, after = story.evaluations.get("before", {}), story.evaluations[name]
    who = story.labels[name].removesuffix(" (RLHF)")
    rose = reward_rise(story, name)
    if rose is not None and rose > 0:
        for key, what in (
            ("style", "less of the house style is followed: {} of the conventions that apply before, {} after"),
            ("passes_check", "fewer answers pass their check: {} before, {} after"),
        ):
            if _fall(before, after, key):
                fell = Markup(what).format(*_both(story, sources, name, key, "share"))
                score = plain(rose, "gain").lstrip("+")
                told = Markup("The reward model's score rose by {}, but {}. {}").format(score, fell, _advice(who))
                yield Warned(f"{who} games the reward model", told)
    lengths = measured(before.get("mean_tokens")), measured(after.get("mean_tokens"))
    if lengths[0] and lengths[1] and lengths[0].value > 0 and lengths[1].value >= DOUBLED * lengths[0].value:
        ratio = lengths[1].value / lengths[0].value
        yield Warned(
            f"{who} writes much longer answers",
            Markup("Answers became {:.1f} times as long: {} before, {} after. Reward models often take length for quality. {}").format(
                ratio, *_both(story, sources, name, "mean_tokens", "tokens"), _advice(who)
            ),
        )
    ends = measured(before.get("ends_by_itself")), measured(after.get("ends_by_itself"))
    if ends[0] and ends[1] and ends[0].value - ends[1].value >= NO_END:
        shares = _both(story, sources, name, "ends_by_itself", "share")
        yield Warned(f"{who}'s answers do not end", Markup("Fewer answers end by themselves: {} before, {} after.").format(*shares))
    kl = measured(after.get("kl"))
    if kl and kl.value > FAR:
        far = sources.whole(kl, "nats", f"evaluation-{name}", "kl")
        text = "{} is {} an answer from the base, over {:.0f}. So far out the reward model judges answers unlike those it learned from."
        yield Warned(f"{who} went far from the base model", Markup(text).format(who, far, FAR))


def _advice(who: str) -> str:
    return f"Read the answers below before you trust the score; a higher kl_coef or fewer steps keep {who} nearer to the base."


def reward_rise(story: Story, name: str = "ppo") -> float | None:
    """Return by how many standard deviations of the base's scores the mean score of an RL run rose; None where scores are missing.

    Of sampled answers, as it is trained on them, where they were scored; else of the greedy ones.
    """
    for key in ("sampled_reward", "reward"):
        before, after = (story.evaluations.get(name, {}).get(key) or {} for name in ("before", name))
        first, second, sd = measured(before), measured(after), number(before.get("sd"))
        if first and second and sd:
            return (second.value - first.value) / sd
    return number(story.summary.get(name, {}).get("reward_gain_sd"))


def _fall(before: dict[str, object], after: dict[str, object], key: str) -> bool:
    """Say whether a share fell for sure: request by request at 95 % for style and checks, where the answers are there."""
    field = {"style": "adherence", "passes_check": "passes"}[key]
    first, second = (_by_request(evaluation, field) for evaluation in (before, after))
    both = sorted(first.keys() & second.keys())
    if len(both) >= 2:
        return paired_difference([first[i] for i in both], [second[i] for i in both]).high < 0
    one, two = measured(before.get(key)), measured(after.get(key))
    return bool(one and two and two.value < one.value and not one.overlaps(two))


def _by_request(evaluation: dict[str, object], field: str) -> dict[str, float]:
    answers = evaluation.get("answers")
    rows = answers if isinstance(answers, list) else []
    return {str(row["id"]): float(row[field]) for row in rows if isinstance(row.get(field), int | float)}


def _both(story: Story, sources: Sources, name: str, key: str, unit: Unit) -> list[Markup]:
    values = {name: measured(story.evaluations.get(name, {}).get(key)) for name in ("before", name)}
    return [sources.whole(value, unit, f"evaluation-{name}", key) for name, value in values.items()]


def _told_by_the_run(story: Story, name: str) -> Iterator[Warned]:
    # The run looked at every step and knows its reference; what it found stands in its manifest, each "heading: sentence".
    for said in story.runs[name].manifest.get("warnings", []) if name in story.runs else []:
        heading, _, text = said.partition(": ")
        yield Warned(f"{story.run_labels[name]}: {heading[:1].lower()}{heading[1:]}", Markup("{}{}").format(text[:1].upper(), text[1:]))


def _broken_functions(story: Story, name: str) -> Iterator[Warned]:
    task = next((t for t in retention_tasks(story.evaluations.get(name, {})) if t.name == "functions"), None)
    if task and task.high is not None and task.high < 0:
        text = "Of {} small functions {} pass their tests before and {} after (difference {}, at best {}). Read what it writes for them."
        shares = [plain(value, "share") for value in (task.before, task.after)]
        changes = [change(task, value) for value in (task.difference, task.high)]
        yield Warned(f"{story.labels[name]} breaks functions that worked", Markup(text).format(task.n, *shares, *changes))


def _by_length(story: Story, sources: Sources) -> Iterator[Warned]:
    longer, file, key = longer_wins(story, next((name for name in story.ordered_runs if story.kind(name) == "reward"), "reward"))
    if longer and abs(longer.value - 0.5) > LENGTH_TELLS and not (longer.low is not None and longer.low <= 0.5 <= (longer.high or 1)):
        share = sources.whole(longer, "share", file, key)
        text = "In {} of the held-out pairs the longer answer is the chosen one, so the reward model may have learned length, not style."
        yield Warned("Length alone tells chosen from rejected", Markup(text).format(share))


def _paid_for(story: Story) -> Iterator[Warned]:
    # The run probed its reward model (rollout/reward_probes.py); each finding is "what: the figure".
    runs = [story.runs[name] for name in story.ordered_runs if story.kind(name) == "reward"]
    for finding in (said for run in runs for said in run.manifest.get("probes", {}).get("findings", [])):
        what, _, figure = finding.partition(": ")
        text = "Answers were changed in a way that makes none better, and scored again: {}. PPO finds what its reward model pays for."
        yield Warned(f"The reward model {what}", Markup(text).format(figure))


def longer_wins(story: Story, name: str = "reward") -> tuple[Measured | None, str, str]:
    """Return in which share of the held-out pairs the longer answer is the chosen one, and the file and key that say so."""
    in_summary = measured(story.summary.get("reward_model", {}).get("longer_wins"))
    if in_summary or name not in story.runs:
        return in_summary, "summary", "reward_model.longer_wins"
    held_out = story.runs[name].manifest.get("held_out", {})
    share, ends = number(held_out.get("longer_wins")), held_out.get("longer_wins_interval") or (None, None)
    return Measured(share, *ends) if share is not None else None, f"run-{name}", "held_out.longer_wins"


def healthy(story: Story) -> str:
    """Say what was looked for where no warning fired."""
    looked = []
    if any(story.kind(name) in RL for name in story.methods):
        looked.append(
            "reward up while style or checks fall, answers that double in length, answers without an end, KL over 15 nats an answer"
        )
    dpo = [story.runs[name] for name in story.ordered_runs if story.kind(name) == "dpo"]
    if any("warnings" in run.manifest and len(run.metrics) >= FALL_SEEN for run in dpo):
        looked.append("chosen and rejected answers of DPO both falling")
    if any(retention_tasks(story.evaluations[name]) for name in story.methods):
        looked.append("functions that stop working")
    return f"No warning. Looked for: {'; '.join(looked)}." if looked else ""
