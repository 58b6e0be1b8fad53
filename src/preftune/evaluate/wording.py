"""Numbers as people read them: with unit and spread, a true minus, and a dash where nothing was measured. Never "nan"."""

from __future__ import annotations

from typing import Literal

from preftune.evaluate.story import Measured

Unit = Literal["share", "points", "percent", "nats", "tokens", "score", "gain", "bits", "elo"]

NONE = "–"  # not measured
SPACE = "\u00a0"  # keeps a number and its unit on one line
_SUFFIX: dict[str, str] = {
    "share": "%",
    "points": "points",
    "percent": "%",
    "nats": "nats",
    "tokens": "tokens",
    "score": "",
    "elo": "",
    "gain": "standard deviations",
    "bits": "bits a byte",
}
_DIGITS: dict[str, int] = {"share": 1, "points": 1, "percent": 2, "nats": 1, "tokens": 1, "score": 2, "gain": 2, "bits": 4, "elo": 0}
_SCALE: dict[str, float] = {"share": 100.0, "points": 100.0, "percent": 100.0}
_SIGNED = ("points", "percent", "gain")


def plain(value: float | None, unit: Unit, *, suffix: bool = True) -> str:
    """Return one number with its unit: shares as percent, differences of shares as signed points."""
    if value is None:
        return NONE
    scaled = value * _SCALE.get(unit, 1.0)
    digits = _DIGITS[unit]
    text = f"{scaled:+,.{digits}f}" if unit in _SIGNED else f"{scaled:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = f"{0:.{digits}f}"  # neither +0.0 nor −0.0
    return text.replace("-", "−") + (SPACE + _SUFFIX[unit] if suffix and _SUFFIX[unit] else "")


def interval(estimate: Measured | None, unit: Unit) -> str:
    """Return the interval alone, such as "58.0–66.0" or "+2.0 to +9.1", or "" where there is none."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    low, high = plain(estimate.low, unit, suffix=False), plain(estimate.high, unit, suffix=False)
    return f"{low} to {high}" if unit in _SIGNED or "−" in low + high else f"{low}–{high}"


def spread(estimate: Measured | None, unit: Unit, *, count: bool = True) -> str:
    """Return what stands in brackets behind a number: its 95 % interval and, with count, n."""
    if estimate is None:
        return ""
    between = interval(estimate, unit)
    parts = [f"95{SPACE}%{SPACE}CI {between}"] if between else []
    if count and estimate.n is not None:
        parts.append(f"n{SPACE}={SPACE}{estimate.n:,}")
    return ", ".join(parts)


def full(estimate: Measured | None, unit: Unit, *, count: bool = True) -> str:
    """Return a number with unit and spread: "62.0 % (95 % CI 58.0–66.0, n = 100)"."""
    if estimate is None:
        return NONE
    between = spread(estimate, unit, count=count)
    return plain(estimate.value, unit) + (f" ({between})" if between else "")


def duration(seconds: float | None) -> str:
    """Return a time in the unit that fits: 42 s, 12 min, 2 h 05 min."""
    if seconds is None:
        return NONE
    if seconds < 9.95:
        return f"{seconds:.1f}{SPACE}s"
    if seconds < 120:
        return f"{seconds:.0f}{SPACE}s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes}{SPACE}min"
    return f"{minutes // 60}{SPACE}h {minutes % 60:02}{SPACE}min"


def gib(value: float | None) -> str:
    """Return a size of memory in GiB."""
    return NONE if value is None else f"{value:.1f}{SPACE}GiB"


def listed(words: list[str]) -> str:
    """Return words as a person lists them: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
