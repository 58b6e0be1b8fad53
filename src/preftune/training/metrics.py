"""What each name in a run's metrics.jsonl means; docs/reference/metrics.md is printed from here."""

from __future__ import annotations

METRICS = {
    "step": "Optimiser step, from 1; for PPO, round of sampling and learning.",
    "seconds": "Time spent on the run so far, over all the times it was resumed.",
    "lr": "Learning rate of the step (of the policy, for PPO).",
    "grad_norm": "Length of the gradient before it is cut to max_grad_norm. Healthy: steady. A jump of tenfold says that lr is too high.",
    "loss/train": "The stage's loss, the mean over the step's whole batch. DPO starts at log 2 = 0.693; a reward model near it.",
    "loss/bradley_terry": "Reward model: the loss without the small term that centres the scores.",
    "loss/policy": "PPO: the clipped surrogate, mean over tokens. Its size says little; see reward/score.",
    "loss/value": "PPO: half the squared error of the critic, mean over tokens. Should fall.",
    "accuracy/train": "Share of the step's pairs whose chosen answer comes out ahead. 1.0 early on: memorised, or too easy.",
    "margin/train": "By how much the chosen answer is ahead: difference of scores (reward model), beta × difference of log-ratios (DPO).",
    "logprobs/chosen": "DPO: log-ratio of policy to reference of the chosen answer, nats. 0 at first; far below: it gets unlikelier too.",
    "logprobs/rejected": "DPO: the same of the rejected answer. Falls as DPO learns; hundreds below 0 is overdone.",
    "length/completion": "Mean length of the answers, tokens. In PPO: growth without better style is a sign of reward hacking.",
    "length/finished": "PPO: share of the samples that ended by themselves. Should stay near 1.",
    "reward/score": "PPO: mean score of the samples, in standard deviations of the start's own scores. Should rise.",
    "reward/score_sd": "PPO: spread of the scores of one step's samples. Near 0: the samples have become alike (collapse).",
    "kl/reference": "PPO: KL from the policy to the start, nats an answer, estimated by the log-ratio (k1). The price of the reward.",
    "kl/k3": "PPO: the same by the k3 estimator, which is never negative and varies less.",
    "kl/coef": "PPO: the weight of the KL in the reward; moves where kl_target is set.",
    "value/explained_variance": "PPO: share of the returns' variance that the critic foresees. 1: all of it; 0: as the mean does.",
    "value/mean": "PPO: mean value that the critic gives.",
    "policy/ratio": "PPO: mean probability ratio of new to sampling policy. 1 on the first minibatch; stays near 1.",
    "policy/clip_fraction": "PPO: share of the tokens whose ratio is outside the clip range. 0.05 to 0.3 is usual.",
    "policy/approx_kl": "PPO: half the mean squared log-ratio to the sampling policy, nats a token. The epochs end early past 0.03.",
    "policy/updates": "PPO: optimiser steps done in the round; fewer than epochs × minibatches means that the epochs ended early.",
    "policy/sampler_gap": "PPO: largest difference between the sampler's and the trainer's log-prob of a token, nats. Near 0 in float32.",
    "entropy": "PPO: mean entropy of the next token, nats. A steady fall to 0 is collapse.",
}
