"""The settings of `preftune train dpo`: those of every stage, and those that one loss or another takes."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import Field, field_validator, model_validator

from preftune.config import Config
from preftune.stages.common import OfflineConfig
from preftune.stages.preference_losses import ALSO_CALLED, LOSSES, LossName, Settings

PER_TOKEN = ("ipo", "ln_dpo")  # losses whose log-ratios are means over the tokens
LOSS_KEYS = ("beta", "label_smoothing", "gamma", "alpha", "nll_weight")


class ReferenceUpdate(Config):
    """When and how far the reference follows the policy (TR-DPO, Gorbatovski et al. 2404.09656)."""

    every: int = Field(ge=1, description="steps between two updates (the paper: 256 to 512)")
    mix: float = Field(0.6, gt=0, le=1, description="share of the policy in the new reference: 1 = hard, 0.5 to 0.6 = soft")


class DPOConfig(OfflineConfig):
    """Settings of `preftune train dpo`."""

    lr: float = Field(5e-5, gt=0, description="peak learning rate (5e-6 to 5e-5 for LoRA; 5e-7 to 5e-6 for all weights)")
    loss: LossName = Field("dpo", description="what is minimised; docs/losses.md says which to take when, and its keys")
    beta: float | None = Field(
        None, gt=0, description="pull to the reference: larger = stays nearer (IPO's tau, ORPO's lambda); null = the loss's own (dpo: 0.1)"
    )
    label_smoothing: float | None = Field(
        None, ge=0, lt=0.5, description="measured share of flipped judgements; above 0 = cDPO; null = the loss's own (dpo: 0)"
    )
    gamma: float | None = Field(None, ge=0, description="margin asked for (simpo: 1; odpo: 0.3 a point of strength); null = the loss's own")
    alpha: float | None = Field(
        None, ge=0, description="weight of the loss's second part (dpop: penalty, 50; ld_dpo: tail tokens, 0.5); null = the loss's own"
    )
    nll_weight: float | None = Field(
        None,
        ge=0,
        description="weight of the chosen answer's NLL a token, added to the loss; null = the loss's own (rpo, cpo, orpo: 1; dpo: 0)",
    )

    reference_update: ReferenceUpdate | None = Field(
        None, description="let the reference follow the policy (TR-DPO): every so many steps, by mix; null = it stays the start"
    )

    @field_validator("loss", mode="before")
    @classmethod
    def _known(cls, loss: Any) -> Any:
        if loss in LOSSES:
            return loss
        near = [ALSO_CALLED[str(loss)]] if str(loss) in ALSO_CALLED else difflib.get_close_matches(str(loss), LOSSES, n=1, cutoff=0.4)
        hint = f' Did you mean "{near[0]}"?' if near else ""
        raise ValueError(f"unknown.{hint} There are {', '.join(LOSSES)}")

    @model_validator(mode="after")
    def _only_keys_of_the_loss(self) -> DPOConfig:
        own = LOSSES[self.loss].defaults
        for key in LOSS_KEYS:
            if getattr(self, key) is not None and key not in own:
                users = ", ".join(name for name, kind in LOSSES.items() if key in kind.defaults)
                raise ValueError(
                    f'key "{key}" means nothing to loss "{self.loss}", which takes {", ".join(own)}. Leave it out, or take {users}'
                )
        if self.reference_update and not LOSSES[self.loss].reference:
            raise ValueError(f'key "reference_update" means nothing to loss "{self.loss}", which has no reference. Leave it out')
        if self.loss == "exo" and self.settings.label_smoothing == 0:
            raise ValueError('key "label_smoothing" is 0, where loss "exo" is infinite. Give a small share, such as 0.01')
        if self.loss == "ld_dpo" and self.settings.alpha > 1:
            raise ValueError(f'key "alpha" is {self.alpha}: loss "ld_dpo" weighs the longer answer\'s tail by it. Give 0 to 1')
        return self

    @property
    def settings(self) -> Settings:
        """The numbers of the loss: as set, else the loss's own."""
        own = LOSSES[self.loss].defaults
        return Settings(**{key: value if getattr(self, key) is None else getattr(self, key) for key, value in own.items()})
