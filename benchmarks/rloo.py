"""RLOO: ours against TRL on the same prompts, in one go; the last line is one JSON object.

    python benchmarks/rloo.py [--quick] [--prompts N] [--samples N] [--new-tokens N] [--steps N] [--runs N] [--alone] [--json]

The work, and how it is measured, is told in `_online.py`. ratio: times faster a step than the peer, memory_ratio: our peak over the
peer's, tokens_per_step: that were sampled and learned from, on either side.
"""

from _online import main

if __name__ == "__main__":
    main("rloo", "RLOO: ours against TRL on the same prompts.")
