"""What the owner's numbers mean and what to do about them, as sentences; each shows the number that it rests on.

Every function returns sentences for one page, the most pressing first. The thresholds stand here, each with where it comes from.
"""

from __future__ import annotations

import math

from preftune.data.agreement import Agreement
from preftune.data.habits import GOLD_SURE, GOLD_WANTED
from preftune.data.intervals import Share
from preftune.progress import counted
from preftune.web.figures import Figures
from preftune.web.forecast import FEWEST_DAYS, WINDOW_DAYS, Forecast
from preftune.web.progress import Overview

FEW_PAIRS = 30  # below so many doubly judged answers an interval is wider than the differences one looks for
USUAL = (0.63, 0.78)  # what labs report: 63 % (Bai 2022) to 77 % (InstructGPT's held-out raters; Stiennon 2020)
LOW_ALPHA = 0.4  # "moderate" begins here (Landis and Koch 1977); taste rarely reaches the 0.8 asked of facts
CYCLES = 0.1  # coin flips give a quarter
STEADY = 0.8  # one who says the same in fewer cases hardly agrees with themselves
FEW_TIMES = 20
MANY_SKIPS = 0.1
ENOUGH_GOLD = 20  # at one task in twenty they last for 400


def percent(share: float) -> str:
    """Return a share as people read it: 61.2 %."""
    return f"{100 * share:.1f} %"


def told(share: Share) -> str:
    """Return a share with its interval and count: 61.2 % (55.0 to 67.1, n = 240)."""
    return f"{percent(share.value)} ({100 * share.low:.1f} to {100 * share.high:.1f}, n = {share.n:,})"


def days_in_words(days: float) -> str:
    """Return a number of days as people say it: "less than a day", "about 3 days", "about 5 weeks", "over a year"."""
    if days < 1:
        return "less than a day"
    if days > 365:
        return "over a year"
    number, unit = (days, "day") if days < 21 else (days / 7, "week")
    rounded = math.floor(number + 0.5)
    return f"about {rounded} {unit}{'' if rounded == 1 else 's'}"


def progress_words(seen: Overview) -> list[str]:
    """Return what the overview's numbers mean."""
    items = seen.items
    if not items.total:
        return [
            "There is nothing to judge yet. Bring prompts with answers by preftune import or preftune sample; "
            "they appear here while preftune label runs."
        ]
    if not items.remaining:
        done = f"All {items.wanted:,} judgements that were wanted are there."
        return [f"{done} Freeze them with preftune snapshot, or bring more prompts."]
    found = [f"{items.done:,} of {items.wanted:,} judgements are there, {items.remaining:,} are to come."]
    if seen.forecast is not None:
        found.append(_forecast_words(seen.forecast))
    elif len(seen.days) < FEWEST_DAYS:
        found.append(f"It is too early for a forecast: that needs {FEWEST_DAYS} whole days of work.")
    else:
        found.append(f"Nothing was judged in the last {WINDOW_DAYS} days, so there is no forecast. Ask your raters what holds them up.")
    if items.out_of_reach:
        found.append(
            f"{items.out_of_reach:,} of these are wanted of more raters than can log in here, so they cannot come. "
            "Invite more people, or ask for less overlap."
        )
    return found + _skip_words(seen)


def _forecast_words(ahead: Forecast) -> str:
    days = counted(len(ahead.days), "days")
    pace = f"{ahead.per_day:.1f} judgements a day ({ahead.per_day_low:.1f} to {ahead.per_day_high:.1f}, over {days})"
    latest = "no end can be named at worst" if ahead.latest is None else f"{days_in_words(ahead.latest)} at worst"
    return f"At the present pace, {pace}, that takes {days_in_words(ahead.days_left)}: {days_in_words(ahead.earliest)} at best, {latest}."


def _skip_words(seen: Overview) -> list[str]:
    skips = sum(seen.skips.values())
    tasks = skips + sum(pace.judged for pace in seen.paces)
    if skips < FEW_TIMES or skips <= MANY_SKIPS * tasks:
        return []
    why, count = next(iter(seen.skips.items()))
    return [f"{skips:,} of {tasks:,} tasks were skipped, mostly for “{why}” ({count:,}). Look whether these items can be mended."]


def agreement_words(figures: Figures) -> list[str]:
    """Return what the agreement page's numbers mean."""
    seen = figures.people
    strict = seen.pairwise.strict
    if strict is None:
        return [
            "No two raters have preferred one of the same answers yet, so agreement cannot be told. "
            "Let a share of the items be judged by three (label.overlap_share and label.overlap_extra in preftune.yaml)."
        ]
    found = [_pairwise_words(strict)]
    if seen.noise is not None and strict.n >= FEW_PAIRS:
        between = f"{percent(1 - seen.noise.high)} to {percent(1 - seen.noise.low)}"
        found.append(
            f"If all err alike, a perfect reward model would reach {percent(seen.noise.ceiling)} ({between}) against one rater's "
            "words: compare a reward model's accuracy with this, not with 100 %."
        )
    if seen.coefficients.alpha and seen.coefficients.alpha.high < LOW_ALPHA:
        alpha = seen.coefficients.alpha
        value, low, high = (f"{number:.2f}".replace("-", "−") for number in (alpha.value, alpha.low, alpha.high))  # as the tables have it
        found.append(
            f"Krippendorff's α is {value} ({low} to {high}, n = {alpha.n:,}), which is low. "
            "Settle ten disagreements together, and write what you decide into the guidelines."
        )
    return found + _rater_words(seen, strict) + _kind_words(seen, strict) + _cycle_words(seen)


def _pairwise_words(strict: Share) -> str:
    head = f"Two raters who both prefer one of two answers prefer the same one in {told(strict)}."
    usual = f"labs report of their raters ({100 * USUAL[0]:.0f} % to {100 * USUAL[1]:.0f} %)"
    if strict.n < FEW_PAIRS:
        return f"{head} That is too few to act on: have at least {FEW_PAIRS}, better 100, answers judged twice."
    if strict.high < USUAL[0]:
        return f"{head} That is less than {usual}: see which kinds are contested, and settle some together."
    if strict.low > USUAL[1]:
        return f"{head} That is more than {usual}: your guidelines are read alike."
    return f"{head} That is within what {usual}."


def _rater_words(seen: Agreement, strict: Share) -> list[str]:
    found = []
    for name, against in seen.per_rater.items():
        share = against.strict
        if share and share.n >= FEW_PAIRS and share.high < strict.value:
            found.append(
                f"{name} agrees with the others in {told(share)}, less than two raters usually do. Look at some of these together; "
                "they may know something that the others do not."
            )
    for name, rate in seen.ties.items():
        if rate.suspicious:
            habit = "never says “tie”" if rate.share.value == 0 else "says “tie” very often"
            found.append(f"{name} {habit}: {told(rate.share)}. Ask how they read the guidelines on ties.")
    return found


def _kind_words(seen: Agreement, strict: Share) -> list[str]:
    shares = {name: kind.strict for name, kind in seen.per_kind.items() if kind.strict}
    return [
        f"On prompts of the kind “{name or 'none'}” raters agree less: {told(share)}. Say more about it in the guidelines."
        for name, share in shares.items()
        if share.n >= FEW_PAIRS and share.high < strict.value
    ]


def _cycle_words(seen: Agreement) -> list[str]:
    share = seen.cycles.majority.share
    if share is None or share.low < CYCLES:
        return []
    return [f"In {told(share)} of the threes of answers the majority goes round in a circle, which no reward can follow. Settle these."]


def position_words(figures: Figures) -> list[str]:
    """Return what the numbers on place and on repeated items mean."""
    seen, found = figures.people.position, []
    if seen.first_wins is None and seen.earlier_wins is None:
        found.append(
            "No preference says in which order the answers were shown, so a bias by place cannot be seen. Those made in this app do."
        )
    for what, share in (
        ("The answer shown first wins", seen.first_wins),
        ("In rankings, the answer shown earlier wins", seen.earlier_wins),
    ):
        if share is not None:
            found.append(_place_words(what, share))
    for name, rater in seen.per_rater.items():
        if rater.biased:
            place = "first" if rater.share.value > 0.5 else "second"
            found.append(f"{name} leans to the {place} place: the first wins in {told(rater.share)}. Talk to them.")
    return [*found, _retest_words(figures.people.retest.same)]


def _place_words(what: str, share: Share) -> str:
    head = f"{what} in {told(share)}."
    if share.low <= 0.5 <= share.high:
        return f"{head} That is what chance may give: no bias by place is seen."
    return (
        f"{head} Your raters lean to the {'first' if share.value > 0.5 else 'last'} place. As the order is drawn anew for each rater this "
        "adds noise, and no lasting bias where several judge an item; ask them to read all answers before they choose."
    )


def _retest_words(same: Share | None) -> str:
    if same is None:
        return "Nobody has judged an item twice yet (label.retest_share), so it cannot be told how steady raters are."
    head = f"Asked again, raters say the same in {told(same)}."
    if same.n >= FEW_TIMES and same.high < STEADY:
        return f"{head} That is unsteady: more raters an item help against it, more items of one rater each do not."
    return f"{head} They cannot be expected to agree with each other more than with themselves."


def time_words(figures: Figures) -> list[str]:
    """Return what the times mean."""
    times = figures.people.times
    if times is None:
        return ["No judgement has a time. Those made in this app have one, where the browser runs its script."]
    spread = times.all
    quartiles = f"{spread.p25:.0f} to {spread.p75:.0f} seconds of active time; the median is {spread.p50:.0f} s"
    found = [f"Half of {counted(spread.n, 'judgements')} took {quartiles}."]
    fast = sum(map(len, times.too_fast.values()))
    if not fast:
        return [*found, "None was faster than one can read."]
    return [
        *found,
        f"{fast:,} took less than a fifth of the rater's own median, or less than reading takes. They are listed, not thrown away: "
        "look at some. Who knows the task may be right at a glance.",
    ]


def gold_words(figures: Figures, num_items: int) -> list[str]:
    """Return what the gold page's numbers mean. num_items: gold items that are asked now."""
    gold = figures.people.gold
    if not num_items and not gold:
        return ["There is no gold item. Settle some disagreements that leave no doubt, and make gold items of these."]
    alerted = {name: answers for name, answers in gold.items() if answers.alert}
    found = [
        f"{name} is right in {told(answers.share)} of the gold items; the probability of being below {100 * GOLD_WANTED:.0f} % is "
        f"{answers.below:.2f}. Talk to them. First look whether others miss the same items: then these are wrong."
        for name, answers in alerted.items()
    ]
    if gold and not alerted:
        found.append(
            f"No rater is below {100 * GOLD_WANTED:.0f} % with a probability over {100 * GOLD_SURE:.0f} %. A single miss says nothing."
        )
    if 0 < num_items < ENOUGH_GOLD:
        found.append(f"{num_items} gold item{' is' if num_items == 1 else 's are'} asked. Make {ENOUGH_GOLD}, or a rater soon has met all.")
    return found
