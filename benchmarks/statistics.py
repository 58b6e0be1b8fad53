"""Do the statistics of `preftune evaluate` keep their promises? Simulations of them, and published figures from published verdicts.

    python benchmarks/statistics.py [--quick] [--data FOLDER]

Coverage: how often the 95 % interval of a win rate holds the truth, with several verdicts a prompt that hang together. Non-inferiority:
how often "kept" is said with the truth on the margin (5 % is promised), and with nothing lost (80 % at the number that `required_items`
names). Sequential: how often two alike are called different by a look after every judgement. Length: the win rate of two alike before
and after the control, where the longer answer is preferred. Published: LLMBar's consistency of GPT-4 and ChatGPT, PandaLM's Fleiss κ, from
the files beside the checkout (or in FOLDER); null where they are not there. The last line is one JSON object.
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from pathlib import Path

if __name__ == "__main__":
    from _statistics import main

    main(__doc__)
else:  # a benchmark that is run as a file has this folder on its path, and it or a library asks for the standard library's
    spec = importlib.util.spec_from_file_location("statistics", Path(sysconfig.get_path("stdlib")) / "statistics.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["statistics"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["statistics"])
