"""Commands in two processes, as torchrun starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def in_two_processes(folder: Path, script: str, commands: Sequence[Any]) -> subprocess.CompletedProcess[str]:
    """Run a script, written into the folder, in two processes of a thread each; it finds the commands in its first argument, as JSON."""
    path = folder / "commands.py"
    path.write_text(script, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(path), json.dumps(commands)],
        # On models of this size a second thread takes more time than it saves. The path: what a script takes from the tests.
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        timeout=250,
    )
