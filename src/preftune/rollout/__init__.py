"""Sampling, and scoring what was sampled."""
