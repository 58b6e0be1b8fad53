"""Rewards from anywhere (models, Python functions, rules, a judge behind a URL), summed with weights, each component logged apart."""
