"""Losses as pure functions of tensors: no model, no config, no file. The folder can be copied elsewhere and it works.

Every loss returns unreduced values; `reduce` gives the weights; only `training/step.py` divides.
"""
