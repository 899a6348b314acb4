"""How a run learns: what is minimised, and how the weights move. `train/config.py` has the rest of a run."""

from dataclasses import dataclass, field
from typing import Literal

from train.ranges import BELOW_ONE, STEPS, check_numbers

TERMS = ("l3d", "lconf", "l2d", "lvis", "ldisp", "lnormal", "ldepth")
Motion = Literal["pair_q75_or_mean", "median", "relative_mean"]
Part = Literal["encoder", "decoder"]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the terms (paper App. A) and what the paper leaves open."""

    l3d: float = 1.0
    """Position."""
    l2d: float = 0.1
    """Projection in the target frame."""
    lvis: float = 0.1
    """Visibility."""
    ldisp: float = 0.1
    """Displacement."""
    lconf: float = 0.2
    """Confidence, which is then said of the error that remains."""
    lnormal: float = 0.5
    """Surface normal."""
    ldepth: float = 0.0
    """Logarithm of depth, for points in front of the camera; not in the paper. Holds up the spread of depth."""
    normalisation: Literal["paper", "joint"] = "paper"
    """paper: prediction and truth each by its own mean |z|, then a signed log; the prediction's scale is free.
    joint: both by the truth's mean distance, no log; the prediction's scale is learned."""
    displacement_norm: Literal["scaled", "metric"] = "scaled"
    """scaled: by the same two scales as positions; metric: as it is, for data of one scale."""
    confidence: Literal["error", "paper"] = "error"
    """error: it learns how large the error of its answer is, and changes nothing about how that is learnt.
    paper: it multiplies the 3D error, and -log confidence is added; it is 1 wherever that error is below lconf."""
    confidence_warmup_steps: int = 2_500
    """Of the paper's: over these steps confidence fades in from 1, lest early errors drive it to 0 and the 3D gradient
    with it. 0 for fine-tuning."""
    dynamic_reweight: dict[str, Motion] = field(default_factory=dict)
    """Dataset to the rule by which a point counts as moving; its 3D error then has a large weight, not its confidence
    (see train/reweight.py). Datasets that are not named keep their confidence. St4RTrack: point_odyssey and
    dynamic_replica pair_q75_or_mean, kubric median."""
    max_weight: float = 5.0
    """Of a moving point."""

    def __post_init__(self) -> None:
        ranges = dict.fromkeys(TERMS, (0, 1e6)) | {"confidence_warmup_steps": (0, STEPS[1]), "max_weight": (1, 1e6)}
        check_numbers(self, ranges, "loss.")
        if not any(getattr(self, name) for name in TERMS if name != "lconf"):
            raise ValueError("loss: all terms have weight 0, so there is nothing to learn; give one a weight")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW, or Muon, with linear warm-up and cosine decay."""

    optimiser: Literal["adamw", "muon"] = "adamw"
    """muon: the matrices inside the layers are moved by Muon (Jordan et al. 2024), scaled to be as large as AdamW's
    moves (Liu et al. 2025), so that all else here stays as it is; the rest by AdamW. The paper has AdamW; `tiny` and
    `small` need less than half the steps with Muon (docs/log.md)."""
    lr: float = 1e-4
    """Peak learning rate."""
    final_lr: float = 1e-6
    encoder_lr: float | None = None
    """Peak learning rate of the encoder, at most lr, with the same course; default: lr."""
    warmup_steps: int = 2_500
    weight_decay: float = 0.03
    decay_all: bool = False
    """Decay every parameter, as OpenD4RT does; default: not biases, norms and timestep tables."""
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 10.0
    """Largest gradient norm, over all parameters and workers."""
    ema: float = 0.0
    """Share of their running mean that averaged weights keep at each step, say 0.9999; 0: no averaging. The averaged
    weights are then what is registered; checkpoints hold both."""
    freeze: tuple[Part, ...] = ()
    """Parts that do not learn: encoder, or decoder with the query tokens and the heads."""

    def __post_init__(self) -> None:
        rate = (0, 10)
        ranges = {"lr": rate, "final_lr": rate, "encoder_lr": rate, "warmup_steps": (0, STEPS[1])}
        ranges |= {"weight_decay": (0, 10), "betas": (0, BELOW_ONE), "clip_norm": (1e-6, 1e6), "ema": (0, BELOW_ONE)}
        check_numbers(self, ranges, "optim.")
        if self.final_lr > self.lr:
            raise ValueError(f"--optim.final-lr ({self.final_lr}) must be from 0 to --optim.lr ({self.lr})")
        if self.encoder_lr is not None and not 0 < self.encoder_lr <= self.lr:
            raise ValueError(
                f"--optim.encoder-lr ({self.encoder_lr}) must be positive and at most --optim.lr ({self.lr}); "
                "--optim.freeze encoder lets it rest"
            )
        if self.encoder_lr is not None and "encoder" in self.freeze:
            raise ValueError("--optim.encoder-lr has no meaning with --optim.freeze encoder: leave one of them out")
        if len(set(self.freeze)) == 2:
            raise ValueError("--optim.freeze: with encoder and decoder frozen nothing learns; freeze one of them")
        if len(set(self.freeze)) < len(self.freeze):
            raise ValueError(f"--optim.freeze {' '.join(self.freeze)}: a part is named twice; once is enough")
