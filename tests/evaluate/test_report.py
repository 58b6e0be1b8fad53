"""The report on small stories made here: its structure, its sentences, and text that would like to be HTML."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from preftune.errors import DataError, PreftuneError
from preftune.evaluate import comparison, findings, reward_panels
from preftune.evaluate.report import RunView, Story, story_of, write_report
from preftune.evaluate.sources import Sources

HOSTILE = "</style></script><script>alert('x')</script><img src=//evil.example/x onerror=alert(1)> \"' & \ud800"
VERDICTS = {"kept": -0.01, "not proved": -0.04, "lost": -0.09}  # the lower bound of each, against a margin of 0.03


def estimate(value: float, half: float = 0.04, n: int = 20) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def answer(number: int, adherence: float, **changes: Any) -> dict[str, Any]:
    text = f"```python\ndef f{number}(x):\n    return {adherence}\n```"
    row = {
        "id": f"strings-{number:03}", "kind": "strings", "new_kind": False, "prompt": f"Write a function f{number}(x).", "answer": text,
        "finished": True, "tokens": 20, "reward": adherence, "kl": 1.0, "passes": True, "adherence": adherence,
        "verdicts": {"type-hints": adherence > 0.5, "docstring": adherence > 0.7, "pathlib": None},
    }  # fmt: skip
    return row | changes


def evaluation(name: str, style: float, /, *, verdict: str = "kept", **changes: Any) -> dict[str, Any]:
    base, lower = name == "before", VERDICTS[verdict]
    right = [True, not base, True, False, True, False]
    facts = [{"id": f"fact-{i}", "kind": "sorting", "cluster": "sorting: [1, 2]", "correct": correct} for i, correct in enumerate(right)]
    tasks = [
        {"name": "facts", "before": 0.5, "after": 0.5 + lower, "difference": lower + 0.005, "lower": lower, "margin": 0.03, "n": 1000,
         "unit": "share of right answers", "verdict": verdict, "gated": True},
        {"name": "prose", "before": 1.02, "after": 1.021, "difference": -0.001, "low": -0.002, "high": 0.0, "lower": -0.0018,
         "margin": 0.01, "n": 60, "unit": "relative change of bits per byte", "verdict": "kept", "gated": True},
        {"name": "functions", "before": 0.4, "after": 0.4, "difference": 0.0, "lower": None, "margin": None, "n": 40,
         "unit": "share of functions that pass", "verdict": None, "gated": False},
    ]  # fmt: skip
    compared = {"overall": verdict, "tasks": tasks, "flipped": [], "facts_by_kind": {"sorting": [6, 0.5, 0.6667]}}
    row = {
        "name": name, "model": name, "base": "base", "reward_model": "runs/cd", "size": "small", "seed": 0, "style": estimate(style),
        "fully_adherent": estimate(0.1), "parses": estimate(1.0, 0.0), "passes_check": estimate(0.7), "ends_by_itself": estimate(0.95),
        "mean_tokens": estimate(40, 2), "seconds": 60.0, "peak_memory_gib": 1.5, "reward": estimate(0.0 if base else 1.0) | {"sd": 1.0},
        "conventions": {"type-hints": {"followed": 7, "applies": 10}, "pathlib": {"followed": 0, "applies": 0}},
        "style_gain": None if base else estimate(style - 0.3), "win_rate": None if base else estimate(0.7),
        "kl": None if base else estimate(7.0, 0.5), "answers": [answer(i, style + (i % 5) * 0.01) for i in range(20)],
        "retention": {"measure": {"facts": facts, "functions": []}, "verdict": None if base else compared},
    }  # fmt: skip
    return row | changes


def run(kind: str, name: str, needs: str = "", seconds: float = 60.0, rows: list[dict[str, Any]] | None = None) -> RunView:
    manifest = {
        "id": name, "kind": kind, "inputs": {"data": "snap", "model": needs or "base"}, "config": {"seed": 0, "lr": 5e-5},
        "versions": {"python": "3.11", "torch": "2.13"}, "hardware": {"cpus": 2, "memory_gib": 24.0}, "seconds": seconds,
        "peak_memory_gib": 2.0, "data": {"groups": 500, "left_out": {"longer than 2,048 tokens": 3}, "turns_dropped": 0},
    }  # fmt: skip
    return RunView(manifest, rows if rows is not None else [{"step": s, "loss/train": 1.0 / s} for s in range(1, 8)])


def rows(**slopes: float) -> list[dict[str, Any]]:
    """Return seven steps of metrics that rise by these slopes; "__" stands for the slash of a metric's name."""
    return [{"step": s} | {name.replace("__", "/"): slope * s for name, slope in slopes.items()} for s in range(1, 8)]


def whole_story() -> Story:
    dpo = rows(loss__train=0.1, accuracy__train=0.1, logprobs__chosen=0.1, logprobs__rejected=-1.0)
    ppo = rows(reward__score=0.1, kl__reference=0.5, length__completion=0.1, length__finished=0.1)
    samples = [
        {"step": s, "prompt": "Write f.", "completion": f"tried {s} {k}", "score": k, "kl": 1.0} for s in range(1, 8) for k in (0.5, 2.0)
    ]
    reward = run("reward", "cd34", seconds=120)
    held_out = {"n": 40, "accuracy": 0.95, "margins": [2.0] * 38 + [-0.5] * 2, "longer_wins": 0.5}
    unproved = evaluation("ppo", 0.60, verdict="not proved", kl=estimate(11.0, 0.5))
    counts = {"train": {"pairs": 500}, "dropped": {"pairs": 2, "reason": "nearly alike"}}
    return Story(
        title="What the model learned",
        folder=Path("demo"),
        summary={"size": "demo", "release": "releases/ee55", "seconds": {"total": 900.0}, "folders": {"runs": {"dpo": "runs/d0d0"}}},
        evaluations={n: evaluation(n, s) for n, s in {"before": 0.3, "sft": 0.5, "dpo": 0.8, "dpo_base": 0.81}.items()} | {"ppo": unproved},
        runs={
            "sft": run("sft", "5f70"),
            "reward": RunView(reward.manifest | {"held_out": held_out}, reward.metrics),
            "dpo": run("dpo", "d0d0", needs="5f70", rows=dpo),
            "dpo_base": run("dpo", "d0d1", rows=dpo),
            "ppo": replace(run("ppo", "9900", needs="cd34", seconds=300, rows=ppo), samples=samples),
        },
        snapshot={"id": "snap", "counts": counts, "groups": 480, "grouped_prompts": 40},
        release={"id": "ee55", "inputs": {"run": "d0d0", "evaluation": "e1"}, "config": {"override": None}},
    )


def two_models(**changes: Any) -> Story:
    """Return a story of the base model and DPO alone."""
    evaluations = {"before": evaluation("before", 0.30), "dpo": evaluation("dpo", 0.80, **changes)}
    return Story("Two", Path("demo"), {"release": None}, evaluations, {"dpo": run("dpo", "d0d0", rows=[])})


class Page(HTMLParser):
    """A page, read: its elements in order, its headings, its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html, self.elements, self.text, self.headings = html, list[tuple[str, dict[str, str]]](), "", list[int]()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] for _, attributes in self.elements if attribute in attributes]

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(story: Story, folder: Path) -> Page:
    return Page(write_report(story, folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(whole_story(), tmp_path_factory.mktemp("report"))


def plain(text: object) -> str:
    return re.sub(r"<[^>]+>", "", str(text)).replace("\u00a0", " ")


def verdict(story: Story) -> str:
    return plain(findings.verdict(story, Sources(story)))


def check_structure(page: Page) -> None:
    """What holds for every report: it stands alone, its links lead somewhere, its headings are in order."""
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert page.values("src") == []
    assert {tag for tag, _ in page.elements} & {"link", "iframe", "img", "object", "base", "form"} == set()
    assert page.all("script") == [{}]  # our own, whose hash the policy names
    assert all(link.startswith("#") and link[1:] in ids for link in page.values("href"))
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in zip(page.headings, page.headings[1:], strict=False))
    assert not re.search(r"\bnan\b|\bNone\b|\bundefined\b|\binf\b", page.text)


def test_it_stands_alone_and_its_links_and_headings_are_sound(page):
    check_structure(page)
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    script = page.html.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]


def test_tables_have_captions_and_scopes_and_drawings_are_described(page):
    assert len(page.all("table")) == len(page.all("caption")) > 5
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    drawings = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(drawings) == len(page.all("svg")) > 8
    assert all(set(svg["aria-labelledby"].split()) <= set(page.values("id")) for svg in drawings)
    assert len(page.all("desc")) == len(drawings)


def test_drawings_take_their_colours_from_the_page_and_keep_their_text(page):
    drawings = " ".join(re.findall(r"<svg.*?</svg>", page.html, flags=re.DOTALL))
    assert "var(--plot-1)" in drawings
    assert not re.search(r"#[0-9a-f]{6}\b", re.sub(r'(?:href="|url\()#[^")]+', "", drawings))
    assert "DPO without SFT</text>" in drawings
    assert "font-family" not in drawings


def test_every_number_of_the_comparison_links_to_where_it_came_from(page):
    assert {"#from-evaluation-dpo-style-gain", "#from-evaluation-ppo-kl", "#from-run-ppo-seconds"} <= set(page.values("href"))


def test_the_same_story_gives_the_same_bytes(page, tmp_path):
    assert page_of(whole_story(), tmp_path).html == page.html


def test_all_methods_and_all_stages_are_shown(page):
    for words in ("DPO without SFT", "Reward model", "Chosen and rejected against the start", "KL from the start"):
        assert words in page.text
    for words in ("2 pairs (nearly alike)", "3 left out: longer than 2,048 tokens", "wrong before and right after"):
        assert words in page.text
    assert [step for step in range(1, 8) if f"tried {step} 2.0" in page.text] == [1, 4, 7]


def test_base_and_dpo_alone_make_a_report(tmp_path):
    page = page_of(two_models(), tmp_path)
    check_structure(page)
    assert "DPO alone was evaluated, so these data do not say whether RLHF or DPO serves better." in page.text
    assert "No metrics were logged." in page.text
    assert "No reward model was trained." in page.text


def test_a_story_without_any_evaluation_makes_a_report(tmp_path):
    page = page_of(Story("Empty", Path("demo"), {}, {}, {}), tmp_path)
    check_structure(page)
    assert "nothing to judge yet" in page.text


def test_what_was_not_finite_or_is_missing_is_a_dash(tmp_path):
    nan = float("nan")
    logged = [{"step": 1, "loss/train": nan}, {"step": 2, "loss/train": 0.5}, {"step": 3}, {"step": 4, "loss/train": float("inf")}]
    story = two_models(
        kl={"value": nan, "low": nan, "high": nan, "n": 0}, win_rate=None, passes_check={"value": 0.7, "low": nan, "high": nan}
    )
    page = page_of(replace(story, runs={"dpo": run("dpo", "d0d0", seconds=nan, rows=logged)}), tmp_path)
    check_structure(page)
    assert "–" in page.text


def test_text_of_models_and_users_cannot_leave_its_place(tmp_path):
    changes = {"prompt": HOSTILE, "answer": f"```python\nx = '{HOSTILE}'\n```{HOSTILE}", "kind": HOSTILE}
    told = {name: [answer(i, 0.4, **changes, verdicts={HOSTILE: True}) for i in range(20)] for name in ("before", "dpo")}
    told["dpo"][0]["answer"] = HOSTILE
    told["dpo"][0]["id"] = told["before"][0]["id"] = HOSTILE
    evaluations = {n: evaluation(n, 0.4, answers=told[n], conventions={HOSTILE: {"followed": 1, "applies": 2}}) for n in told}
    evaluations["dpo"]["retention"]["measure"]["facts"][1] |= {"id": "fact-1", "kind": HOSTILE, "cluster": HOSTILE}
    dpo = run("dpo", "d0d0")
    dpo.manifest["config"][HOSTILE] = HOSTILE
    story = Story(HOSTILE, Path("demo"), {"refusals": {"dpo": [HOSTILE]}, "folders": {"runs": {"dpo": HOSTILE}}}, evaluations, {"dpo": dpo})
    page = page_of(story, tmp_path)
    check_structure(page)
    assert len(page.all("style")) == 1
    assert page.html.count("</style>") == 1
    assert "alert('x')" in page.text
    assert not any(attribute.startswith("on") for _, attributes in page.elements for attribute in attributes)


def test_the_verdict_says_what_was_won_kept_and_released():
    said = verdict(whole_story())
    assert "On 20 held-out requests, the base model follows 30.0 % (95 % CI 26.0–34.0)" in said
    assert "after DPO it follows 80.0 % (95 % CI 76.0–84.0): +50.0 points (95 % CI +46.0 to +54.0) of style won." in said
    assert "What the base model knew was kept: at one-sided 95 % it is proved that facts and prose each lost less than the margin" in said
    assert said.endswith("DPO was released as releases/ee55.")


def test_the_verdict_tells_lost_and_not_proved_apart():
    lost, unproved = verdict(two_models(verdict="lost")), verdict(two_models(verdict="not proved"))
    assert "Knowledge was lost: facts got worse by 8.5 points, beyond the margin of 3.0 points." in lost
    assert "is not proved: for facts the change is −3.5 points, and a loss beyond the margin of 3.0 points cannot be ruled out." in unproved
    assert "That is no proof of a loss either" in unproved
    assert unproved.endswith("Nothing was released.")
    assert "was not measured" in verdict(two_models(retention=None))


def test_the_verdict_does_not_claim_a_gain_whose_interval_includes_zero():
    said = verdict(two_models(style_gain=estimate(0.02)))
    assert "+2.0 points (95 % CI −2.0 to +6.0). As this interval includes 0, it cannot be told whether style was won." in said
    assert "of style lost" in verdict(two_models(style_gain=estimate(-0.2)))


def test_a_refused_and_a_forced_release_are_said_with_their_reasons(tmp_path):
    refused = replace(two_models(verdict="lost"), summary={"refusals": {"dpo": ["Lost on facts.", "Too far."]}})
    assert verdict(refused).endswith("Nothing was released, as the gate refused DPO: Lost on facts. Too far.")
    check_structure(page_of(refused, tmp_path))
    others = replace(whole_story(), summary=whole_story().summary | {"refusals": {"ppo": ["Not proved."], "dpo": []}})
    assert verdict(others).endswith("DPO was released as releases/ee55. The gate refused PPO (RLHF).")
    forced = replace(whole_story(), release={"inputs": {"run": "d0d0"}, "config": {"override": "a test server needs it"}})
    assert verdict(forced).endswith("it was released all the same, for this reason: “a test server needs it”.")


def test_without_a_release_the_report_speaks_of_the_kept_model_that_won_most():
    story = replace(whole_story(), release={})
    assert story.headline == "dpo_base"
    unkept = {name: evaluation(name, 0.9, verdict="lost") for name in ("dpo", "dpo_base")}
    assert replace(story, evaluations=story.evaluations | unkept).headline == "sft"


def test_methods_are_compared_request_by_request():
    made = comparison.contrast(whole_story(), "ppo", "dpo")
    assert (made.said, made.paired) == ("less", True)
    said = plain(comparison.style_sentence(made))
    assert "PPO (RLHF) won 20.0 points less style than DPO on the same 20 requests (95 % CI of the difference −20.0 to −20.0)." in said


def test_a_difference_whose_interval_includes_zero_cannot_be_told():
    story = whole_story()
    noisy = [answer(i, 0.8 + (0.2 if i % 2 else -0.2)) for i in range(20)]
    evaluations = story.evaluations | {"ppo": evaluation("ppo", 0.8, answers=noisy)}
    evaluations["dpo"] = evaluation("dpo", 0.8, answers=[answer(i, 0.8) for i in range(20)])
    made = comparison.contrast(replace(story, evaluations=evaluations), "ppo", "dpo")
    assert made.said == "cannot tell"
    assert "cannot be told apart" in plain(comparison.style_sentence(made))
    assert "cannot be told from these data; DPO took less time" in comparison.conclusion(replace(story, evaluations=evaluations))


@pytest.mark.parametrize(("ppo", "said"), [(0.84, "cannot tell"), (0.95, "more"), (0.60, "less")])
def test_without_common_requests_overlapping_intervals_cannot_be_told(ppo, said):
    evaluations = {name: evaluation(name, style, answers=[]) for name, style in (("before", 0.3), ("dpo", 0.8), ("ppo", ppo))}
    made = comparison.contrast(replace(whole_story(), evaluations=evaluations), "ppo", "dpo")
    assert (made.said, made.paired) == (said, False)


def test_time_counts_what_a_method_needs_first():
    story = whole_story()
    assert story.chain("ppo") == ["reward", "ppo"]
    assert comparison.total_seconds(story, "ppo") == 420.0
    assert comparison.total_seconds(story, "dpo") == 120.0
    sentences = " ".join(plain(s) for s in comparison.cost_sentences(story, Sources(story), comparison.contrast(story, "ppo", "dpo")))
    assert "PPO (RLHF) took 3.5 times as long as DPO: 7 min against 2 min" in sentences
    assert "PPO (RLHF) went further from the base: 11.0 nats (95 % CI 10.5–11.5) an answer against 7.0 nats (95 % CI 6.5–7.5)" in sentences
    assert "PPO (RLHF): not proved. DPO: kept." in sentences


def warned(story: Story) -> str:
    return " ".join(f"{w.title}: {plain(w.text)}" for w in findings.warnings(story, Sources(story)))


@pytest.mark.parametrize(("high", "told"), [(-0.26, True), (0.02, False)])
def test_functions_that_stop_working_are_told_for_each_method(high, told):
    story = whole_story()
    tasks = story.evaluations["dpo"]["retention"]["verdict"]["tasks"]
    row = next(task for task in tasks if task["name"] == "functions")
    row |= {"before": 0.6, "after": 0.15, "difference": -0.45, "low": -0.6, "high": high}
    said = (
        "DPO breaks functions that worked: Of 40 small functions 60.0 % pass their tests before and 15.0 % after (difference −45.0 points"
    )
    assert (said in warned(story)) is told


def test_a_sound_story_has_no_warning_and_says_what_was_looked_for():
    assert warned(whole_story()) == ""
    assert findings.healthy(whole_story()).startswith("No warning. Looked for: reward up while style or checks fall")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"answers": [answer(i, 0.1) for i in range(20)]},
            "PPO games the reward model: The reward model's score rose by 1.00 standard deviations",
        ),
        (
            {"answers": [], "style": estimate(0.1)},
            "but less of the house style is followed: 30.0 % (95 % CI 26.0–34.0) of the conventions",
        ),
        ({"answers": [answer(i, 0.6, passes=i > 9) for i in range(20)]}, "but fewer answers pass their check: 70.0 %"),
        ({"mean_tokens": estimate(85, 2)}, "Answers became 2.1 times as long: 40.0 tokens (95 % CI 38.0–42.0) before"),
        ({"ends_by_itself": estimate(0.6)}, "PPO's answers do not end"),
        ({"kl": estimate(16.2, 0.5)}, "PPO is 16.2 nats (95 % CI 15.7–16.7) an answer from the base, over 15."),
    ],
)
def test_each_way_of_gaming_the_reward_model_has_its_warning(changes, words):
    story = whole_story()
    assert words in warned(replace(story, evaluations=story.evaluations | {"ppo": evaluation("ppo", 0.6, **changes)}))


def test_what_a_dpo_run_warned_of_itself_is_told_and_nothing_else():
    told = "Chosen and rejected both fall: over the last 10 steps the chosen answers are <3.5 nats> less likely than at the start."
    story, view = whole_story(), run("dpo", "d0d0", rows=rows(logprobs__chosen=-0.5, logprobs__rejected=-2.0))
    flagged = replace(view, manifest=view.manifest | {"warnings": [told]})
    said = warned(replace(story, runs=story.runs | {"dpo": flagged}))
    assert "DPO: chosen and rejected both fall: Over the last 10 steps the chosen answers are &lt;3.5 nats&gt; less likely" in said
    assert "both fall" not in warned(replace(story, runs=story.runs | {"dpo": view}))


def test_what_a_ppo_run_warned_of_itself_is_told_too():
    story = whole_story()
    told = "Reward rises while answers grow: the score rose from 0 to 2 sd, the answers went from 40 to 90 tokens. It is learning length."
    flagged = replace(story.runs["ppo"], manifest=story.runs["ppo"].manifest | {"warnings": [told]})
    assert "reward rises while answers grow: The score rose from 0 to 2 sd" in warned(replace(story, runs=story.runs | {"ppo": flagged}))


def test_what_the_reward_model_pays_for_is_told():
    story, view = whole_story(), run("reward", "abcd")
    found = {"probes": {}, "findings": ["pays 0.8 sd for saying thanks: +0.80 sd (95 % CI +0.61 to +0.99, n = 48)"]}
    said = warned(replace(story, runs=story.runs | {"reward": replace(view, manifest=view.manifest | {"probes": found})}))
    assert "The reward model pays 0.8 sd for saying thanks" in said
    assert "and scored again: +0.80 sd (95 % CI +0.61 to +0.99, n = 48)." in said
    assert "pays" not in warned(replace(story, runs=story.runs | {"reward": view}))


def test_the_reward_model_is_read_beside_length():
    story = whole_story()
    view = reward_panels.reward_view(story, Sources(story))
    assert view is not None
    assert "95.0 % (95 % CI 83.5–98.6, n = 40)" in plain(view.accuracy)  # Wilson, 38 of 40
    assert "knows more than length" in view.reading
    assert "would be right in 50.0 %" in view.reading.replace("\u00a0", " ")
    biased = replace(story, summary=story.summary | {"reward_model": {"accuracy": estimate(0.9), "longer_wins": 0.95}})
    view = reward_panels.reward_view(biased, Sources(biased))
    assert view is not None
    assert "it is not shown that the reward model knows more than length" in view.reading
    assert "Length alone tells chosen from rejected" in warned(biased)


def test_a_story_is_read_from_a_demo_folder(tmp_path):
    made = whole_story()
    folders: dict[str, Any] = {"evaluations": {}, "runs": {}, "snapshot": "snapshots/snap", "release": "releases/ee55"}

    def write(name: str, value: dict[str, Any]) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(value), encoding="utf-8")

    for name, content in made.evaluations.items():
        folders["evaluations"][name] = f"reports/{name}"
        write(f"reports/{name}/evaluation.json", content)
    for name, view in made.runs.items():
        folders["runs"][name] = f"runs/{name}"
        write(f"runs/{name}/manifest.json", view.manifest)
        (tmp_path / f"runs/{name}/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in view.metrics))
    write("snapshots/snap/manifest.json", made.snapshot)
    (tmp_path / "snapshots/snap/prompts.jsonl").write_text('{"kind": "strings", "text": "a\u2028b"}\n', encoding="utf-8")
    write("releases/ee55/manifest.json", made.release)
    write("summary.json", made.summary | {"folders": folders, "model": "models/tiny"})
    read = story_of(tmp_path)
    assert (read.title, read.trained_kinds) == ("What tiny learned, and what it kept", {"strings"})
    assert (read.evaluations, read.snapshot, read.release) == (made.evaluations, made.snapshot, made.release)
    assert [view.metrics for view in read.runs.values()] == [view.metrics for view in made.runs.values()]
    (tmp_path / "runs/dpo/metrics.jsonl").write_text('{"step": 1}\n{"st', encoding="utf-8")
    with pytest.raises(DataError, match=r"metrics\.jsonl line 2: the line is broken"):
        story_of(tmp_path)
    with pytest.raises(PreftuneError, match="missing"):
        story_of(tmp_path / "elsewhere")
