"""What the numbers of an evaluation and of a reward model's held-out report mean; printed as docs/reference/metrics.md."""

from __future__ import annotations

EVALUATED = {
    "style": "Mean over the held-out requests of the share of house conventions that the greedy answer keeps, of those that apply to it.",
    "style_gain": "The same less the base's, request by request. Above 0 with its whole interval: style was won.",
    "fully_adherent": "Share of the answers that keep every convention that applies.",
    "conventions": "For each convention how often it applied and how often it was followed.",
    "parses": "Share of the answers that hold Python code which parses.",
    "passes_check": "Share of the answers whose code runs and passes the request's own check, of the requests that have one.",
    "ends_by_itself": "Share of the greedy answers that end before the limit of tokens. Far below the base's: it has unlearned to stop.",
    "mean_tokens": "Mean length of the greedy answers, tokens. Doubling is the usual sign of a gamed reward.",
    "sampled_tokens": "The same of the answers drawn at temperature 1.",
    "sampled_ends": "Share of the answers drawn at temperature 1 that end by themselves.",
    "reward": "Mean score of the greedy answers by the reward model, in standard deviations; `sd` is their spread.",
    "sampled_reward": "The same of the answers drawn at temperature 1, which is what reinforcement learning raises.",
    "win_rate": "Share of the requests on which the reward model prefers this model's greedy answer to the base's; ties count half.",
    "kl": "Distance from the base, nats an answer: mean log-ratio of answers drawn at temperature 1. The price of what was won.",
    "retention": "What was kept: facts, neutral texts, functions, your own tasks, each before and after on the same items, with a verdict.",
    "answers": "Every greedy answer with its prompt and what was measured of it.",
    "seconds": "How long the evaluation took, of this model alone.",
    "peak_memory_gib": "The most memory that its process held.",
}

HELD_OUT = {
    "n": "Held-out pairs, on prompts that were not learned from.",
    "accuracy": "Share of them whose chosen answer scores higher; equal scores count half. Its interval: `accuracy_interval`.",
    "longer_wins": "Share of them whose longer answer is the chosen one: what length alone would reach.",
    "same_length": "The accuracy among pairs whose lengths differ by 10 % at most. Far below accuracy: it judges by length.",
    "by_kind": "The accuracy by kind of prompt.",
    "by_language": "The accuracy by language of the prompt, guessed from common words.",
    "by_raters": "The accuracy by who stands behind the pair: one rater, several of one mind, or split ones.",
    "human_agreement": "How often two raters agree; `ceiling` is what a perfect model would reach against one rater.",
    "accuracy_of_heads": "Of a reward model of several heads: the accuracy of each.",
    "ece": "Expected calibration error: by how much, on average, how sure it is differs from how often it is right.",
    "calibration": "The temperature that would make its probabilities right, the error after it, and the points of the reliability plot.",
    "margins": "Of each pair the chosen answer's score less the rejected one's.",
    "loss": "Mean Bradley–Terry loss of the held-out pairs. 0.693 is a coin toss.",
}
