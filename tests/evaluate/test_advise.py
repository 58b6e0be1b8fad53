"""Synthetic teams, each built so that one answer is the right one: the advice gives it, with its numbers, and says where it cannot tell."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from preftune.data.store import Store
from preftune.errors import ConfigError, ModelError
from preftune.evaluate import advise_prompting
from preftune.evaluate.advise import advice_of, advise
from preftune.evaluate.advise_measures import Imitation, Measures, Probe, Prompting, Samples, closed_share, power_of
from preftune.evaluate.advise_rules import RULES, outcomes
from preftune.evaluate.advise_team import read_team
from preftune.evaluate.language_model import Generation
from preftune.evaluate.statistics import Estimate
from preftune.records import Candidate, Demonstration, Judgement, Message, Prompt

FILLER = (
    "lantern copper meadow violin harbour pepper glacier saddle walnut marble thunder basket cobweb ladder orchid pilot quarry ribbon "
    "shadow teapot urchin velvet willow yonder anchor bishop candle dragon ember falcon gravel hollow island jigsaw kettle lemon"
).split()
LIKED, DISLIKED = ("please", "kindly", "welcome"), ("whatever", "obviously", "anyway")
MODEL = "assistant-1"


class Team:
    """A store in the making. An answer's worth is the share of its six marker words that the team likes."""

    def __init__(self, path: Path, seed: int = 0) -> None:
        self.store = Store.create(path)
        self.rng = random.Random(seed)
        self.rows: tuple[list, list, list, list] = ([], [], [], [])
        self.count = 0

    def prompt(self) -> Prompt:
        words = self.rng.sample(FILLER, 7)
        prompt = Prompt(messages=(Message(role="user", content=f"Question {self.count}: {' '.join(words)}?"),))
        self.count += 1
        self.rows[0].append(prompt)
        return prompt

    def answer(self, quality: float) -> str:
        """Return an answer whose markers are liked ones with this probability."""
        words = [self.rng.choice(FILLER) for _ in range(self.rng.randint(8, 16))]
        for _ in range(6):
            words.insert(self.rng.randrange(len(words)), self.rng.choice(LIKED if self.rng.random() < quality else DISLIKED))
        return " ".join(words)

    def own(self, prompt: Prompt, quality: float) -> Candidate:
        """Add one of the model's own samples."""
        return self._add(Candidate(prompt_id=prompt.id, text=self.answer(quality), source=MODEL, sampling={"temperature": 1.0}))

    def other(self, prompt: Prompt, quality: float) -> Candidate:
        """Add an answer that came from elsewhere."""
        return self._add(Candidate(prompt_id=prompt.id, text=self.answer(quality)))

    def _add(self, candidate: Candidate) -> Candidate:
        self.rows[1].append(candidate)
        return candidate

    def judge(self, prompt: Prompt, *candidates: Candidate, flips: float = 0.0, rater: str = "ann", good: float | None = None) -> None:
        """Rank by worth, two neighbours at a time swapped now and then; good: the worth from which an answer is acceptable."""
        ranked = sorted(candidates, key=lambda c: (worth(c.text), c.id), reverse=True)
        for place in range(len(ranked) - 1):
            if self.rng.random() < flips:
                ranked[place], ranked[place + 1] = ranked[place + 1], ranked[place]
        acceptable = None if good is None else tuple(c.id for c in candidates if worth(c.text) >= good)
        self.rows[2].append(Judgement(prompt_id=prompt.id, ranking=tuple((c.id,) for c in ranked), rater=rater, acceptable=acceptable))

    def demonstrate(self, prompt: Prompt, quality: float = 0.95) -> None:
        self.rows[3].append(Demonstration(prompt_id=prompt.id, text=self.answer(quality), author="ann"))

    def written(self) -> Store:
        self.store.add(*self.rows)
        return self.store


def worth(text: str) -> float:
    liked = sum(word in LIKED for word in text.split())
    return liked / (liked + sum(word in DISLIKED for word in text.split()))


@pytest.fixture
def team(tmp_path) -> Iterator[Team]:
    made = Team(tmp_path / "store.db")
    yield made
    made.store.close()


def own_pairs(team: Team, count: int, *, flips: float = 0.1, noise: bool = False, both: float = 0.0) -> None:
    """Add comparisons of two of the model's own samples; noise: by the toss of a coin; both: share that a second rater judges too."""
    for _ in range(count):
        prompt = team.prompt()
        two = [team.own(prompt, 0.5), team.own(prompt, 0.5)]
        for rater in ("ann", "bob")[: 1 + (team.rng.random() < both)]:
            team.judge(prompt, *two, flips=0.5 if noise else flips, rater=rater)


# The five answers


def test_a_team_with_a_few_pairs_is_told_to_collect_more(team):
    own_pairs(team, 60)
    advice = advise(team.written())
    assert advice.answer == "collect more"
    assert "There are 60 pairs (the line is at about 100)." in advice.reasons


@pytest.mark.parametrize("pairs", [160, 700])
def test_pairs_that_are_tossed_coins_do_not_count_however_many(team, pairs):
    own_pairs(team, pairs, noise=True)
    advice = advise(team.written())
    assert advice.answer == "collect more"
    assert advice.measures.probe is not None
    assert advice.measures.probe.accuracy.low < 0.5 < advice.measures.probe.accuracy.high


def test_a_team_whose_raters_disagree_is_told_so_before_anything_else(team):
    own_pairs(team, 700, noise=True, both=1.0)
    advice = advise(team.written())
    assert advice.answer == "collect more"
    assert any("Two raters agree in" in reason and "the line is at 60 %" in reason for reason in advice.reasons)


def test_a_team_with_demonstrations_and_hardly_a_pair_is_told_sft(team):
    for _ in range(150):
        team.demonstrate(team.prompt())
    own_pairs(team, 20)
    advice = advise(team.written())
    assert advice.answer == "SFT"
    assert "There are 150 demonstrations (the line is at about 50)." in advice.reasons


def test_a_team_whose_model_never_says_anything_good_is_told_sft(team):
    for _ in range(180):
        prompt = team.prompt()
        team.judge(prompt, *(team.own(prompt, 0.2) for _ in range(3)), flips=0.05, good=0.99)
        team.demonstrate(prompt)
    advice = advise(team.written())
    assert advice.answer == "SFT"
    assert any("best of 3 samples is marked as acceptable by the raters in" in reason for reason in advice.reasons)
    assert advice.measures.pairs > 500


def test_a_team_whose_chosen_answers_are_all_another_style_than_the_models_is_told_sft(team):
    for _ in range(300):
        prompt = team.prompt()
        team.judge(prompt, team.other(prompt, 0.95), team.other(prompt, 0.05))
        team.own(prompt, 0.05)
    advice = advise(team.written())
    assert advice.answer == "SFT"
    assert advice.measures.imitation is not None
    assert advice.measures.imitation.told_apart.low > 0.9
    assert any("tells chosen from rejected" in reason for reason in advice.reasons)


def test_a_team_with_seven_hundred_consistent_pairs_is_told_dpo(team):
    own_pairs(team, 700, both=0.3)
    advice = advise(team.written())
    assert advice.answer == "DPO"
    measures = advice.measures
    assert measures.probe is not None
    assert measures.agreement is not None
    assert measures.ceiling is not None
    assert measures.probe.accuracy.low > 0.65
    assert 0.75 < measures.agreement.value < 0.9  # each of two errs in a tenth, and ties are none: 0.82
    assert measures.ceiling.low < 0.9 < measures.ceiling.high
    assert any("preftune sample" in sentence for sentence in advice.missing)


def test_a_team_with_many_pairs_and_a_model_that_is_almost_right_is_told_rlhf(team):
    for _ in range(450):
        prompt = team.prompt()
        team.judge(prompt, *(team.own(prompt, 0.5) for _ in range(4)), flips=0.05, good=0.66)
    advice = advise(team.written())
    assert advice.answer == "RLHF"
    samples = advice.measures.samples
    assert samples is not None
    # Of six markers four or more are liked in 22/64 = 34 % of answers; of four answers at least one is so in 1 − 0.66⁴ = 81 %.
    assert samples.mean.low < 0.34 < samples.mean.high
    assert samples.best.low < 0.81 < samples.best.high


class Scripted:
    """A model that answers badly, and well where the system prompt tells it to be kind."""

    def __init__(self, team: Team, plain: float, guided: float) -> None:
        self.team, self.plain, self.guided = team, plain, guided

    def generate(self, prompts, *, max_new_tokens, temperature, seed) -> list[Generation]:
        told = ["Be kind." in prompt[0].content and prompt[0].role == "system" for prompt in prompts]
        return [Generation(self.team.answer(self.guided if kind else self.plain), True, 20) for kind in told]

    def score_completions(self, prompts, completions):
        raise NotImplementedError

    def bits(self, texts):
        raise NotImplementedError


def preferring_kindness(team: Team) -> Store:
    for _ in range(250):
        prompt = team.prompt()
        team.judge(prompt, team.other(prompt, 0.9), team.other(prompt, 0.1))
    return team.written()


def test_a_team_whose_guidelines_do_it_as_a_prompt_is_told_to_prompt_first(team):
    store = preferring_kindness(team)
    advice = advise(store, model=Scripted(team, plain=0.1, guided=0.9), guidelines="Be kind.")
    assert advice.answer == "prompt first"
    prompting = advice.measures.prompting
    assert prompting is not None
    assert prompting.plain.high < 0.1
    assert prompting.guided.low > 0.3
    assert any("guidelines as system prompt" in reason for reason in advice.reasons)


def test_guidelines_that_change_nothing_do_not_make_it_prompt_first(team):
    store = preferring_kindness(team)
    advice = advise(store, model=Scripted(team, plain=0.1, guided=0.1), guidelines="Be kind.")
    assert advice.answer != "prompt first"
    assert advice.measures.prompting is not None
    assert advice.measures.prompting.closed.high < 0.5


def test_a_team_whose_model_is_good_already_is_told_to_leave_it_at_the_prompt(team):
    for _ in range(200):
        prompt = team.prompt()
        team.judge(prompt, team.own(prompt, 0.9), team.own(prompt, 0.9), good=0.5)
    advice = advise(team.written())
    assert advice.answer == "prompt first"
    assert any("the line is at 80 %" in reason for reason in advice.reasons)


# What is measured


def test_samples_without_marks_are_compared_with_the_answers_to_imitate(team):
    for _ in range(150):
        prompt = team.prompt()
        team.judge(prompt, team.other(prompt, 0.9), team.other(prompt, 0.1))
        for _ in range(4):
            team.own(prompt, 0.5)
    samples = advise(team.written()).measures.samples
    assert samples is not None
    assert (samples.by, samples.k, samples.level) == ("probe", 4, 0.5)
    assert samples.mean.value < samples.best.value
    assert samples.gain.low > 0


def test_samples_with_neither_marks_nor_answers_to_imitate_are_run_against_their_checks(team):
    store = team.store
    for number in range(30):
        prompt = Prompt(
            messages=(Message(role="user", content=f"Return {number} from {FILLER[number]}."),), check=f"assert f() == {number}"
        )
        texts = [f"```python\ndef f():\n    return {n}\n```" for n in (number, 99)] if number % 2 else ["no code", "none either"]
        store.add([prompt], [Candidate(prompt_id=prompt.id, text=t, source=MODEL, sampling={"temperature": 1.0}) for t in texts])
    samples = advise(store).measures.samples
    assert samples is not None
    assert samples.by == "checks"
    assert (samples.mean.value, samples.best.value) == (0.25, 0.5)


def test_conventions_that_the_guidelines_name_are_judged_by_program(team):
    hinted = "```python\ndef f(x: int) -> int:\n    return x\n```"
    bare = "```python\ndef f(x):\n    return x == None\n```"
    for _ in range(40):
        prompt = team.prompt()
        team.rows[3].append(Demonstration(prompt_id=prompt.id, text=hinted))

    class Coder(Scripted):
        def generate(self, prompts, *, max_new_tokens, temperature, seed):
            return [Generation(hinted if prompt[0].role == "system" else bare, True, 9) for prompt in prompts]

    advice = advise(team.written(), model=Coder(team, 0, 0), guidelines="Follow `type-hints`, `direct-tests` and `pathlib`.")
    prompting = advice.measures.prompting
    assert prompting is not None
    assert (prompting.by, prompting.plain.value, prompting.guided.value, prompting.target) == ("conventions", 0.0, 1.0, 1.0)
    assert advice.answer == "prompt first"


def test_a_template_without_system_prompts_is_told_and_not_an_end(team):
    class Refuses(Scripted):
        def generate(self, prompts, **settings):
            raise ModelError("Only user and assistant roles are known", "model")

    advice = advise(preferring_kindness(team), model=Refuses(team, 0, 0), guidelines="Be kind.")
    assert any("Only user and assistant roles are known" in sentence for sentence in advice.missing)


def test_gold_and_withdrawn_judgements_do_not_count(team):
    own_pairs(team, 40)
    prompt, gold = team.prompt(), team.prompt()
    for one, picked_by in ((prompt, "random"), (gold, "gold")):
        two = [team.own(one, 0.9), team.own(one, 0.1)]
        team.rows[2].append(Judgement(prompt_id=one.id, ranking=((two[0].id,), (two[1].id,)), picked_by=picked_by))
    taken_back = team.rows[2][-2]
    team.rows[2].append(Judgement(prompt_id=prompt.id, supersedes=taken_back.id))
    assert len(read_team(team.written()).pairs) == 40


def test_pairs_that_came_from_elsewhere_get_the_advice_to_begin_with_sft(team):
    advice = advise(preferring_kindness(team))
    assert advice.answer == "DPO"  # 250 pairs, of which twice as many would tell no more
    assert advice.notes[0].startswith("Most pairs are not known to be between the model's own answers")
    assert advice.lines()[-1] == "Next: preftune snapshot, preftune train sft, then preftune train dpo model=RUN"


def test_a_source_that_has_no_samples_is_a_sentence(team):
    own_pairs(team, 5)
    with pytest.raises(ConfigError, match=f'there are no samples of "other". There are of {MODEL}.'):
        advise(team.written(), model_name="other")


def test_an_empty_store_is_told_to_collect_more(team):
    advice = advise(team.written())
    assert advice.answer == "collect more"
    assert advice.measures.power.detectable is None


def test_the_advice_is_the_same_again_and_speaks_json(team):
    own_pairs(team, 120)
    store = team.written()
    first, again = advise(store), advise(store)
    assert first.lines() == again.lines()
    told = json.loads(json.dumps(first.as_dict()))
    assert told["answer"] == first.answer
    assert told["measures"]["pairs"] == 120
    assert [rule["when"] for rule in told["rules"]] == [rule.when for rule in RULES]
    assert all(any(letter.isdigit() for letter in reason) for reason in first.reasons)


def test_a_model_gives_the_probe_its_hidden_states_and_tries_the_guidelines(team, tiny_model_folder, monkeypatch):
    monkeypatch.setattr(advise_prompting, "MAX_NEW_TOKENS", 6)
    for _ in range(40):
        prompt = team.prompt()
        team.judge(prompt, team.other(prompt, 0.9), team.other(prompt, 0.1))
    store = team.written()
    alone = advise(store, model=tiny_model_folder)
    assert alone.measures.probe is not None
    assert alone.measures.probe.features.startswith("the model's hidden states")
    assert any("--guidelines" in sentence for sentence in alone.missing)
    prompting = advise(store, model=tiny_model_folder, guidelines="Be kind.").measures.prompting
    assert prompting is not None
    assert (prompting.by, prompting.target, prompting.plain.n) == ("probe", 0.5, 40)


# Borders


def share(value: float, half: float = 0.02, n: int = 400) -> Estimate:
    return Estimate(value, value - half, value + half, n)


PROBE = Probe(2500, "words", share(0.78), share(0.55), share(0.55), share(0.2), ((500, share(0.7)),), share(0.8), share(0.01))
MEASURES = Measures(
    prompts=900,
    judgements=3000,
    raters=4,
    pairs=3000,
    demonstrations=0,
    imitable=0,
    model_name=MODEL,
    own_pairs=share(0.95),
    agreement=share(0.8),
    ceiling=share(0.9),
    probe=PROBE,
    samples=Samples("raters", 4.0, share(0.3), share(0.7), share(0.4), 1.0),
    imitation=None,
    prompting=None,
    power=power_of(90),
    missing={},
)


def answers(**changes) -> tuple[str, ...]:
    return advice_of(replace(MEASURES, missing={}, **changes)).answers


def test_the_team_of_the_border_cases_is_told_rlhf():
    assert answers() == ("RLHF",)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"pairs": 2100}, ("RLHF", "DPO")),  # within a quarter of the rule of thumb
        ({"pairs": 1500}, ("DPO",)),
        ({"pairs": 520, "probe": replace(PROBE, gain=share(0.05))}, ("DPO", "collect more")),
        ({"pairs": 300, "probe": replace(PROBE, gain=share(0.05))}, ("collect more",)),
        ({"pairs": 300, "probe": replace(PROBE, gain=share(0.005, 0.005))}, ("DPO",)),  # more pairs would add nothing
        ({"samples": Samples("raters", 4.0, share(0.3), share(0.5, 0.06), share(0.2), 1.0)}, ("RLHF", "DPO")),
        ({"samples": Samples("raters", 4.0, share(0.6), share(0.65), share(0.05), 1.0)}, ("DPO",)),  # best of k adds little
        ({"samples": Samples("raters", 4.0, share(0.8, 0.03), share(0.95), share(0.15), 1.0)}, ("prompt first", "RLHF")),
        ({"samples": Samples("checks", 4.0, share(0.9), share(0.95), share(0.05), 1.0)}, ("DPO",)),  # right is not liked
        ({"samples": None}, ("DPO",)),
        ({"samples": Samples("raters", 4.0, share(0.1), share(0.25, 0.04), share(0.15), 1.0), "imitable": 200}, ("SFT", "DPO")),
        ({"probe": replace(PROBE, accuracy=share(0.64, 0.03))}, ("RLHF", "DPO")),
        ({"probe": replace(PROBE, accuracy=share(0.55, 0.09))}, ("collect more", "DPO")),
        ({"probe": replace(PROBE, over_length=share(0.01, 0.02))}, ("collect more",)),  # length alone does as well
        ({"probe": replace(PROBE, over_length=share(0.05, 0.06))}, ("collect more", "RLHF")),
        ({"probe": None}, ("collect more",)),
        ({"agreement": share(0.5, 0.05)}, ("collect more",)),
        ({"agreement": share(0.58, 0.05)}, ("RLHF",)),  # not shown to be bad, and the probe tells more than it could if it were
        ({"pairs": 90, "demonstrations": 45, "probe": None}, ("collect more", "SFT")),
        ({"prompting": Prompting("probe", share(0.1), share(0.3), 0.5, share(0.5, 0.2))}, ("prompt first", "RLHF")),
        ({"prompting": Prompting("probe", share(0.1), share(0.4), 0.5, share(0.75, 0.2))}, ("prompt first",)),
        (
            {"imitable": 300, "own_pairs": share(0.1), "imitation": Imitation(share(0.97), share(0.76), share(-0.02))},
            ("SFT",),
        ),
        (
            {"imitable": 300, "own_pairs": share(0.1), "imitation": Imitation(share(0.97), share(0.73), share(-0.05))},
            ("SFT", "RLHF"),
        ),
    ],
)
def test_at_a_border_it_says_between_which_answers_it_cannot_tell(changes, expected):
    assert answers(**changes) == expected


def test_what_cannot_be_told_names_the_numbers_that_leave_it_open():
    advice = advice_of(replace(MEASURES, pairs=2100, missing={}))
    assert advice.answer is None
    text = "\n".join(advice.lines())
    assert "It cannot be told yet: RLHF or DPO." in text
    assert advice.unsure == ("There are 2,100 pairs (the line is at about 2,000).",)


def test_every_rule_says_when_and_why_and_the_last_one_always_holds():
    assert all(rule.when and rule.why for rule in RULES)
    assert outcomes(MEASURES)[-1].holds is True
    assert {rule.answer for rule in RULES} == {"prompt first", "SFT", "DPO", "RLHF", "collect more"}


def test_the_documentation_has_every_rule_as_the_code_has_it(repository):
    text = " ".join((repository / "docs" / "advise.md").read_text(encoding="utf-8").split())
    for rule in RULES:
        assert f"| {rule.answer} | {rule.when} | {rule.why} |" in text


@pytest.mark.parametrize(
    ("plain", "guided", "target", "value"),
    [([0, 0, 0, 0], [0, 1, 0, 1], 1.0, 0.5), ([0.2] * 4, [0.4] * 4, 0.6, 0.5), ([0.5] * 4, [0.2] * 4, 0.5, 1.0)],
)
def test_the_closed_share_is_how_much_of_the_way_is_gone(plain, guided, target, value):
    assert closed_share(plain, guided, target).value == pytest.approx(value)


def test_lines_tell_the_advice_first_and_end_with_the_next_command():
    lines = advice_of(replace(MEASURES, missing={})).lines()
    assert lines[0] == "Advice: RLHF."
    assert lines[-1] == "Next: preftune snapshot, then preftune train reward and preftune train ppo"
    # z = 1.96 and 0.8416: (0.98 + 0.8416 √(p (1 − p)))² / (p − 0.5)² = 90 where p = 0.6457
    assert any("90 held-out prompts find a win rate of 64.6 % or more" in line for line in lines)
