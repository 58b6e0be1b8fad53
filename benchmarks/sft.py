"""SFT on completions: ours against TRL on the same pairs, in one go; the last line is one JSON object.

    python benchmarks/sft.py [--lora] [--quick] [--pairs N] [--runs N] [--json]

The work: SmolLM2-135M-Instruct, HH pairs, batches of 8, at most 1,024 tokens, float32. ratio: times faster than the peer,
memory_ratio: our peak over the peer's, max_loss_diff: the largest difference of the two losses in any of the first ten steps.
"""

from _compare import main

if __name__ == "__main__":
    main("sft", "SFT on completions: ours against TRL on the same pairs.")
