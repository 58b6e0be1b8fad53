"""The same adapter at another strength: what LoRA adds is linear in its alpha, so nothing has to be trained again.

    weights at strength s = base + s · (alpha / rank) · B A

Strength 0 is the base and 1 the trained model, to the last bit; between and beyond lie models that no training run has visited.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from preftune.errors import ModelError
from preftune.manifest import disk_errors, write_json

SETTINGS = "adapter_config.json"


def write_scaled(adapter: Path, target: Path, *, strength: float) -> None:
    """Write the adapter folder `adapter` to `target` with its update multiplied by strength (0 = the base, 1 = as trained).

    The matrices are copied as they are and only alpha changes, so nothing is rounded. Raises ModelError where a part of the
    adapter is not linear in alpha: DoRA's magnitudes, modules and biases that were trained whole.
    Source: Hu et al. 2106.09685, eq. 3; the line from base to tuned weights: Wortsman et al. 2109.01903. Differs: none.
    """
    settings = json.loads((adapter / SETTINGS).read_text(encoding="utf-8"))
    _refuse_what_is_not_linear(settings, adapter)
    patterns = {name: alpha * strength for name, alpha in (settings.get("alpha_pattern") or {}).items()}
    settings |= {"lora_alpha": settings["lora_alpha"] * strength, "alpha_pattern": patterns}
    with disk_errors(target):
        shutil.copytree(adapter, target, dirs_exist_ok=True)
    write_json(target / SETTINGS, settings)


def _refuse_what_is_not_linear(settings: dict[str, Any], adapter: Path) -> None:
    trained_whole = [*(settings.get("modules_to_save") or ()), *(settings.get("trainable_token_indices") or ())]
    reasons = {
        f"it is of the kind {settings.get('peft_type')}": settings.get("peft_type") != "LORA",
        "it is a DoRA adapter, whose magnitudes do not follow alpha": bool(settings.get("use_dora")),
        f"it holds modules that were trained whole ({', '.join(map(str, trained_whole))})": bool(trained_whole),
        "it holds biases that were trained whole": settings.get("bias", "none") != "none",
    }
    for reason, holds in reasons.items():
        if holds:
            raise ModelError(f"this adapter has no strength to scale: {reason}", str(adapter), "Scale a plain LoRA run.")
