"""RLHF or DPO? The methods beside each other on the same data, and sentences that read the table no further than it goes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal

from markupsafe import Markup

from preftune.evaluate.sources import Sources
from preftune.evaluate.statistics import paired_difference
from preftune.evaluate.story import LABELS, RL, Measured, Story, measured, number, verdict_of
from preftune.evaluate.wording import NONE, duration, full, gib, interval, listed, plain

Said = Literal["more", "less", "cannot tell"]
MOST_PAIRS = 6  # of two methods that are compared in sentences
MUCH = 1.2  # times and memories nearer than this are called alike
PAIRS = (("ppo", "dpo"), ("ppo", "dpo_base"), ("dpo_base", "dpo"), ("dpo", "sft"))


@dataclass(frozen=True)
class Row:
    """One method of the table; each cell is HTML with its number linked to where it came from."""

    name: str
    label: str
    needs: str
    style: Markup
    gain: Markup
    win_rate: Markup
    kl: Markup
    passes: Markup
    seconds: Markup
    sort_seconds: str
    memory: Markup
    retention: str


def rows(story: Story, sources: Sources) -> list[Row]:
    """Return the base model's row and one for each method that was evaluated."""
    return [_row(story, sources, name) for name in story.labels if name in story.evaluations]


def _row(story: Story, sources: Sources, name: str) -> Row:
    evaluation, file = story.evaluations[name], f"evaluation-{name}"
    chain = story.chain(name)
    return Row(
        name=name,
        label=story.labels[name],
        needs=listed([story.run_labels[run] for run in chain[:-1]]),
        style=sources.cell(measured(evaluation.get("style")), "share", file, "style"),
        gain=sources.cell(measured(evaluation.get("style_gain")), "points", file, "style_gain"),
        win_rate=sources.cell(measured(evaluation.get("win_rate")), "share", file, "win_rate"),
        kl=sources.cell(measured(evaluation.get("kl")), "nats", file, "kl"),
        passes=sources.cell(measured(evaluation.get("passes_check")), "share", file, "passes_check"),
        seconds=_seconds_cell(story, sources, chain),
        sort_seconds=NONE if (total := total_seconds(story, name)) is None else f"{total:.0f}",
        memory=_memory_cell(story, sources, chain),
        retention=verdict_of(evaluation) or NONE,
    )


def seconds_of(story: Story, run: str) -> float | None:
    """Return what a run took: by its manifest, or longer where it was resumed."""
    manifest = story.runs[run].manifest
    return max((s for s in map(number, (manifest.get("seconds"), manifest.get("training_seconds"))) if s is not None), default=None)


def total_seconds(story: Story, name: str) -> float | None:
    """Return what a method took with all that it needs first, or None where a part is unknown."""
    parts = [seconds_of(story, run) for run in story.chain(name)]
    known = [part for part in parts if part is not None]
    return sum(known) if known and len(known) == len(parts) else None


def _seconds_cell(story: Story, sources: Sources, chain: list[str]) -> Markup:
    if not chain:
        return Markup(NONE)
    cites = [sources.cite(duration(seconds_of(story, run)), f"run-{run}", "seconds") for run in chain]
    if len(chain) == 1:
        return cites[0]
    parts = Markup(" + ").join(Markup("{} {}").format(story.run_labels[run], cite) for run, cite in zip(chain, cites, strict=True))
    return Markup('{}<span class="parts">{}</span>').format(duration(total_seconds(story, chain[-1])), parts)


def _memory_cell(story: Story, sources: Sources, chain: list[str]) -> Markup:
    peaks = [(peak, run) for run in chain if (peak := number(story.runs[run].manifest.get("peak_memory_gib"))) is not None]
    if not peaks:
        return Markup(NONE)
    peak, run = max(peaks)
    return sources.cite(gib(peak), f"run-{run}", "peak_memory_gib")


@dataclass(frozen=True)
class Contrast:
    """Two methods on the same data. style: the first's gain minus the second's, by request where both answered the same ones (paired)."""

    first: str
    second: str
    style: Measured | None
    paired: bool
    said: Said
    labels: tuple[str, str]
    between: tuple[str, str]  # the stages that made them


def contrasts(story: Story) -> list[Contrast]:
    """Return RL against each DPO, the DPOs among each other, and DPO against SFT, as far as they were evaluated."""
    pairs = PAIRS if story.labels is LABELS else _pairs(story)
    return [contrast(story, first, second) for first, second in pairs if {first, second} <= story.evaluations.keys()]


def _pairs(story: Story) -> list[tuple[str, str]]:
    by = {kind: [name for name in story.methods if story.kind(name) == kind] for kind in (*RL, "dpo", "sft")}
    dpo, rl = by["dpo"], [name for kind in RL for name in by[kind]]
    return [*product(rl, dpo), *combinations(dpo, 2), *product(dpo, by["sft"])][:MOST_PAIRS]


def contrast(story: Story, first: str, second: str) -> Contrast:
    """Compare the style of two methods: request by request where that is possible, else by whether their intervals overlap."""
    a, b = (_adherence(story, name) for name in (first, second))
    who = {"labels": (story.labels[first], story.labels[second]), "between": (story.kind(first), story.kind(second))}
    both = sorted(a.keys() & b.keys())
    if len(both) >= 2:
        difference = paired_difference([b[i] for i in both], [a[i] for i in both])
        style = Measured(difference.value, difference.low, difference.high, difference.n)
        said: Said = "more" if difference.low > 0 else "less" if difference.high < 0 else "cannot tell"
        return Contrast(first, second, style, True, said, **who)
    one, two = (measured(story.evaluations[name].get("style_gain")) for name in (first, second))
    if one is None or two is None or one.overlaps(two):
        gap = Measured(one.value - two.value) if one and two else None
        return Contrast(first, second, gap, False, "cannot tell", **who)
    return Contrast(first, second, Measured(one.value - two.value), False, "more" if one.value > two.value else "less", **who)


def _adherence(story: Story, name: str) -> dict[str, float]:
    answers = story.evaluations[name].get("answers", [])
    return {str(answer.get("id")): value for answer in answers if (value := number(answer.get("adherence"))) is not None}


def style_sentence(made: Contrast) -> Markup:
    """Say what the held-out style tells about two methods."""
    first, second = made.labels
    if made.paired and made.style:
        on = f"on the same {made.style.n:,} requests"
        if made.said == "cannot tell":
            between = full(made.style, "points", count=False)
            text = f"{first} and {second} cannot be told apart: the difference {on} is {between}, which includes 0."
        else:
            size = plain(abs(made.style.value), "points").lstrip("+")
            between = f"95 % CI of the difference {interval(made.style, 'points')}"
            text = f"{first} won {size} {made.said} style than {second} {on} ({between})."
    elif made.said == "cannot tell":
        text = f"{first} and {second} cannot be told apart: their 95 % intervals overlap, or one is unknown."
    else:
        text = f"{first} won {made.said} style than {second}: their 95 % intervals do not overlap."
    return Markup("<strong>Style.</strong> {}").format(text)


def cost_sentences(story: Story, sources: Sources, made: Contrast) -> list[Markup]:
    """Say what two methods spent: distance from the base, time, and what was kept."""
    names = (made.first, made.second)
    first, second = made.labels
    sentences = []
    kl = [measured(story.evaluations[name].get("kl")) for name in names]
    if kl[0] and kl[1]:
        shown = [sources.whole(value, "nats", f"evaluation-{name}", "kl") for value, name in zip(kl, names, strict=True)]
        said = _spent(story, made)
        verb = {"more": f"{first} went further from the base", "less": f"{first} stayed nearer to the base"}.get(
            said, "Which went further from the base cannot be told: the intervals overlap"
        )
        sentences.append(Markup("<strong>KL spent.</strong> {}: {} an answer against {}.").format(verb, *shown))
    times = [total_seconds(story, name) for name in names]
    if times[0] and times[1]:
        ratio = times[0] / times[1]
        how = "about as long as" if 1 / MUCH < ratio < MUCH else f"{ratio:.1f} times as long as"
        text = f"{first} took {how} {second}: {duration(times[0])} against {duration(times[1])}, each with what it needs first."
        sentences.append(Markup("<strong>Time.</strong> {}").format(text))
    kept = [verdict_of(story.evaluations[name]) or "not measured" for name in names]
    text = f"Both: {kept[0]}." if kept[0] == kept[1] else f"{first}: {kept[0]}. {second}: {kept[1]}."
    sentences.append(Markup("<strong>Knowledge.</strong> {}").format(text))
    return sentences


def _spent(story: Story, made: Contrast) -> Said:
    one, two = (measured(story.evaluations[name].get("kl")) for name in (made.first, made.second))
    if one is None or two is None or one.overlaps(two):
        return "cannot tell"
    return "more" if one.value > two.value else "less"


def conclusion(story: Story) -> str:
    """Say what the comparison of RLHF and DPO comes to on these data, and no more."""
    made = next((c for c in contrasts(story) if c.between[0] in RL and c.between[1] == "dpo"), None)
    if made is None:
        has = listed([story.labels[name] for name in story.methods]) or "No method"
        return f"{has} alone was evaluated, so these data do not say whether RLHF or DPO serves better."
    rlhf, dpo = made.labels
    times = [total_seconds(story, name) for name in (made.first, made.second)]
    ratio = times[0] / times[1] if times[0] and times[1] else 1.0
    cheaper = dpo if ratio >= MUCH else rlhf if ratio <= 1 / MUCH else None
    nearer = {"more": dpo, "less": rlhf}.get(_spent(story, made))
    if made.said == "cannot tell":
        text = f"Which of {rlhf} and {dpo} wins more style cannot be told from these data"
        text += f"; {cheaper} took less time" if cheaper else "; they took about the same time"
        text += f", and {nearer} stayed nearer to the base model." if nearer else "."
    else:
        winner, other = (rlhf, dpo) if made.said == "more" else (dpo, rlhf)
        text = f"On these data {winner} won more style than {other}"
        also = ["in less time"] * (cheaper == winner) + ["nearer to the base model"] * (nearer == winner)
        but = ["took less time"] * (cheaper == other) + ["stayed nearer to the base model"] * (nearer == other)
        text += (f", {listed(also)}" if also else "") + (f"; {other} {listed(but)}" if but else "") + "."
    unkept = [story.labels[name] for name in (made.first, made.second) if verdict_of(story.evaluations[name]) != "kept"]
    if unkept:
        text += f" Of {listed(unkept)} it is not shown that knowledge was kept, so its gain in style is not enough."
    return f"{text} This compares one run of each, with one seed and these settings; it is no ranking of methods."
