"""The stages: each is one file that reads like its algorithm, takes a config and leaves a run folder."""
