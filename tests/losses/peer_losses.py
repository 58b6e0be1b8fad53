"""The peer's own losses on one small batch, as JSON: what test_preference.py compares ours with.

Run it where TRL 1.16 is installed: make .venv-peer/.installed && .venv-peer/bin/python tests/losses/peer_losses.py
It calls TRL's `_compute_loss` and its like as they are; only the model is a table of log-probs.
"""

from __future__ import annotations

import json
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch

# Token log-probs of four pairs, policy and reference, chosen and rejected; all numbers are exact in float64 as written.
POLICY = {
    "chosen": [[-1.0, -0.5, -2.0], [-0.25, -0.75], [-3.0, -1.0, -0.5, -0.25], [-2.0]],
    "rejected": [[-1.5, -2.5], [-0.5, -1.0, -1.5, -0.25], [-1.0, -0.125, -0.25], [-0.75, -4.0]],
}
REFERENCE = {
    "chosen": [[-1.5, -1.0, -1.5], [-0.5, -0.5], [-1.0, -1.5, -0.25, -0.25], [-1.0]],
    "rejected": [[-1.0, -1.0], [-0.75, -1.0, -1.0, -0.75], [-0.5, -0.25, -0.5], [-1.0, -3.0]],
}


class Anything(SimpleNamespace):
    """An accelerator of one process."""

    device = torch.device("cpu")

    def gather(self, value: Any) -> Any:
        return value

    gather_for_metrics = gather


def padded(rows: list[list[float]], length: int = 5) -> torch.Tensor:
    """Return rows [B, length], the first place (the prompt's) and the padding 0."""
    return torch.tensor([[0.0, *row, *[0.0] * (length - 1 - len(row))] for row in rows], dtype=torch.float64)


def dpo_loss(kind: str, **settings: Any) -> float:
    """Return the mean loss that TRL's DPOTrainer gives."""
    from trl.trainer.dpo_trainer import DPOTrainer

    table = padded(POLICY["chosen"] + POLICY["rejected"])
    mask = (table != 0).long()
    out = SimpleNamespace(
        log_probs=table[:, 1:], entropy=table[:, 1:], mean_logits=table[:, 1:], is_top1=mask[:, 1:].bool(), log_sum_sq_probs=table[:, 1:]
    )
    alpha = settings.get("ld_alpha")
    sums = {}
    for side, other in (("chosen", "rejected"), ("rejected", "chosen")):
        sums[side] = padded(
            [
                [x if t < len(beside) or alpha is None else alpha * x for t, x in enumerate(answer)]
                for answer, beside in zip(REFERENCE[side], REFERENCE[other], strict=True)
            ]
        ).sum(1)
    inputs = {
        "input_ids": mask, "attention_mask": mask, "completion_mask": mask,
        "ref_chosen_logps": sums["chosen"], "ref_rejected_logps": sums["rejected"],
    }  # fmt: skip
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=Anything(), aux_loss_enabled=False, ld_alpha=alpha, precompute_ref_logps=True,
        f_divergence_type="reverse_kl", loss_types=[kind], loss_weights=[1.0], use_weighting=False, _total_train_tokens=0, _tp_size=1,
        beta=settings.get("beta", 0.1), label_smoothing=settings.get("label_smoothing", 0.0), args=SimpleNamespace(),
        _metrics=defaultdict(lambda: defaultdict(list)),
    )  # fmt: skip
    return float(DPOTrainer._compute_loss(trainer, lambda **_: out, inputs, return_outputs=False))


def reference_free() -> dict[str, list[float]]:
    """Return what TRL's CPO and ORPO trainers give for each pair."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    sums = {side: padded(rows).sum(1) for side, rows in POLICY.items()}
    means = {side: sums[side] / torch.tensor([len(r) for r in rows]) for side, rows in POLICY.items()}
    base = {"accelerator": Anything(), "label_smoothing": 0.0, "alpha": 0.0}
    cpo = SimpleNamespace(**base, beta=0.1, loss_type="sigmoid")
    simpo = SimpleNamespace(**base, beta=2.0, loss_type="simpo", simpo_gamma=1.0)
    orpo = SimpleNamespace(**base, beta=1.0)
    return {
        "cpo": CPOTrainer.cpo_loss(cpo, sums["chosen"], sums["rejected"])[0].tolist(),
        "simpo": CPOTrainer.cpo_loss(simpo, means["chosen"], means["rejected"])[0].tolist(),
        "orpo": [-x for x in ORPOTrainer.odds_ratio_loss(orpo, means["chosen"], means["rejected"])[0].tolist()],
    }


def kto_loss(kl: float) -> float:
    """Return the mean loss that TRL's KTOTrainer gives, every chosen answer desirable and every rejected one not; kl: its estimate."""
    from trl.trainer.kto_trainer import KTOTrainer

    table, reference = padded(POLICY["chosen"] + POLICY["rejected"]), padded(REFERENCE["chosen"] + REFERENCE["rejected"])
    mask = (table != 0).long()
    out = SimpleNamespace(log_probs=table[:, 1:], entropy=table[:, 1:], mean_logits=table[:, 1:], is_top1=mask[:, 1:].bool())
    label = torch.tensor([True] * len(POLICY["chosen"]) + [False] * len(POLICY["rejected"]))
    batch = {
        "input_ids": mask, "attention_mask": mask, "completion_mask": mask, "label": label,
        "ref_logps": reference.sum(1), "ref_KL_logps": torch.zeros(len(mask), dtype=torch.float64),
    }  # fmt: skip
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=Anything(), aux_loss_enabled=False, precompute_ref_logps=True, calculate_KL=True,
        loss_type="kto", beta=0.1, desirable_weight=1.0, undesirable_weight=1.0, _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0, _tp_size=1, _compute_kl_logps=lambda model, batch: torch.full((len(mask),), kl, dtype=torch.float64),
    )  # fmt: skip
    return float(KTOTrainer._compute_loss(trainer, lambda **_: out, batch, return_outputs=False))


def main() -> None:
    """Print one JSON object: loss → mean over the batch, or one value a pair."""
    found: dict[str, Any] = {
        "dpo": dpo_loss("sigmoid"),
        "hinge": dpo_loss("hinge"),
        "ipo": dpo_loss("ipo", beta=0.5),
        "exo": dpo_loss("exo_pair", label_smoothing=0.1),
        "robust": dpo_loss("robust", label_smoothing=0.1),
        "bco without its shift": dpo_loss("bco_pair"),
        "aot": dpo_loss("aot"),
        "apo_zero": dpo_loss("apo_zero"),
        "apo_down": dpo_loss("apo_down"),
        "length-normalised": dpo_loss("sigmoid_norm", beta=5.0),
        "length-desensitised": dpo_loss("sigmoid", ld_alpha=0.5),
        "nll over tokens": dpo_loss("sft"),
        "kto": kto_loss(0.2),
        "kto below": kto_loss(-0.2),
        **reference_free(),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
