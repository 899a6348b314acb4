"""What a training run is: one frozen config, its presets, and the command line that fills it in.

`python -m train tiny --data.mixture.stores/kubric 1 --steps 400` takes the preset `tiny` and changes two fields.
`base` to `giant` are the paper's recipe (App. A: 500,000 steps of 64 clips with 2048 queries); `small` and `tiny`
are recipes for a CPU, of about an hour and of a few minutes; `opend4rt-refine` is the one that OpenD4RT published.
"""

import math
import re
import time
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import tyro

from model import ModelConfig
from pipelines.catalog import load_mixture
from train.ranges import BELOW_ONE, STEPS, check_numbers
from train.recipe import LossConfig, OptimConfig

MIN_POINTS = 16  # a clip with fewer known points says too little about its scale: its 3D terms are dropped

LONGEST_NAME = 200  # a file system takes 255 bytes, MLflow 256 letters, and both are added to
RANGES = {  # of the numbers in `TrainConfig`
    "steps": STEPS,
    "workers": (1, 10**5),
    "accumulate": (1, 10**6),
    "min_workers": (1, 10**5),
    "dropout": (0, BELOW_ONE),
    "seed": (0, 2**63 - 1),
    "checkpoint_every": STEPS,
    "log_every": STEPS,
    "keep_checkpoints": (1, 10**6),
    "max_skipped": (0, 10**9),
    "max_failures": (0, 10**6),
}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which clips, and how much of each."""

    mixture: dict[str, float] = field(default_factory=dict)
    """Clip store (path or s3:// URI) to sampling weight; weights need not sum to one. On the command line, repeatable:
    --data.mixture.STORE WEIGHT; or see --mixture."""
    queries: int = 2048
    """Queries per clip and step, drawn from the stored sample; at most what the stores hold."""
    clips_per_worker: int = 8
    """Clips per worker and step: a step sees workers times this many."""
    augment: bool = True
    """Change the colours of each clip as it is read, and blur some: one draw per clip (paper App. A). Crops, the rest
    of the paper's augmentation, are made by `convert --crops`."""

    def __post_init__(self) -> None:
        check_numbers(self, {"queries": (MIN_POINTS, 1 << 20), "clips_per_worker": (1, 10**6)}, "data.")
        for store, weight in self.mixture.items():
            if not (weight > 0 and math.isfinite(weight)):
                raise ValueError(f"--data.mixture: weight of {store} ({weight}) must be positive; leave the store out")
        if not math.isfinite(sum(self.mixture.values())):
            raise ValueError("--data.mixture: the weights add up to more than a number can be; their ratios matter")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Scores on held-out clips, while training and at its end. See train/validation.py and train/champion.py."""

    stores: tuple[str, ...] = ()
    """Clip stores (path or s3:// URI) of scenes that are not trained on. The alias then moves only to a better version.
    Without any there is no validation, and the alias always moves."""
    every: int | None = None
    """Steps between two validations, a multiple of checkpoint_every; default: each checkpoint. The last one always."""
    clips: int = 16
    """Per store, at most, spread evenly over it: the same ones each time."""
    pictures: int = 4
    """Clips drawn each time."""

    def __post_init__(self) -> None:
        check_numbers(self, {"every": STEPS, "clips": STEPS, "pictures": (0, 1000)}, "validation.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run. Raises ValueError, naming the option, for values that cannot work together."""

    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    steps: int = 500_000
    """Optimiser steps; the learning rate reaches its final value at the last."""
    workers: int = 8
    """Processes that train in parallel, one GPU each if the cluster has GPUs."""
    accumulate: int = 1
    """Work through the clips of a step in so many parts and add up their gradients: less memory, the same step."""
    min_workers: int | None = None
    """Go on with as few as this while nodes are missing, and with more when they are back, each time from the last
    checkpoint; default: wait for all. A step of fewer workers sees fewer clips."""
    precision: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Of the forward pass (autocast); weights and losses are float32. float16, with losses scaled, is for GPUs that
    have no bfloat16."""
    recompute: bool = False
    """Keep only what enters each layer for the backward pass and compute the rest again: a third of the memory for a
    third more time. The numbers are the same."""
    compile: bool = False
    """Let torch.compile fuse what is inside a layer. The first step takes a minute; numbers differ by rounding."""
    shard: bool = False
    """Share out the optimiser: each worker keeps the running means of its part of the weights, moves those and sends
    them to the others. Less memory, the same numbers. Muon is always shared out."""
    device: Literal["auto", "gpu", "cpu"] = "auto"
    """What workers run on. auto: GPUs, if the cluster has any when the command begins. gpu: it waits for the first."""
    max_skipped: int = 0
    """So many steps whose loss or gradient is not finite are left out, and their clips named; one more ends the run."""
    dropout: float = 0.0
    """Share of attention weights and MLP numbers forgotten at each step. D4RT has none, OpenD4RT 0.1."""
    seed: int = 0
    checkpoint_every: int = 2_500
    """Steps between checkpoints; a multiple of log_every, so that a resumed run repeats no logged step."""
    log_every: int = 50
    """Steps between two points of the curves (means over those steps) and two lines on the terminal."""
    keep_checkpoints: int = 2
    """The newest so many are kept."""
    out: str = "runs"
    """Folder or s3:// URI where runs are kept."""
    name: str | None = None
    """Of the run, a folder in `out`; default: preset and time. An unfinished run of that name goes on where it was."""
    init: str | None = None
    """Weights to start from, read where the command runs; default: fresh ones. All of them: a checkpoint folder, s3://
    URI or registered model (models:/d4rt@champion), or opend4rt:FILE with model.yaml beside it. Only the encoder's:
    videomae:FILE, or timm:NAME (an image ViT, downloaded) or timm:NAME@FILE."""
    resize_tables: Literal["linear", "nearest", "repeat"] = "linear"
    """If `init` is a whole model of other clip_frames: how its timestep tables get as many rows."""
    register_as: str = "d4rt"
    """Name in the MLflow model registry."""
    alias: str = "champion"
    """Alias that is moved to the new version, if it is better (see validation.stores)."""
    max_failures: int = 3
    """Restarts when a worker dies, without a new checkpoint in between; beyond that the run fails."""

    def __post_init__(self) -> None:
        check_numbers(self, RANGES)
        check_registry_names(self.register_as, self.alias)
        if self.name is not None and (not self.name.strip(". ") or re.search(r"[/\\\0-\x1f]", self.name)):
            raise ValueError(f"--name ({self.name!r}) must be that of a folder in --out: without /, not just dots")
        if len((self.name or "").encode()) > LONGEST_NAME:
            raise ValueError(f"--name ({self.name!r}) has more than {LONGEST_NAME} bytes: no folder can be called so")
        if self.data.clips_per_worker % self.accumulate:
            raise ValueError(
                f"--data.clips-per-worker ({self.data.clips_per_worker}) must be a multiple of --accumulate "
                f"({self.accumulate}): so many parts of equal size"
            )
        if self.optim.warmup_steps >= self.steps:
            raise ValueError(f"--optim.warmup-steps ({self.optim.warmup_steps}) must be below --steps ({self.steps})")
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"--min-workers ({self.min_workers}) must be at most --workers ({self.workers})")
        if self.checkpoint_every % self.log_every:
            raise ValueError(
                f"--checkpoint-every ({self.checkpoint_every}) must be a multiple of --log-every ({self.log_every})"
            )
        every = self.validation.every
        if every is not None and every % self.checkpoint_every:
            raise ValueError(
                f"--validation.every ({every}) must be a multiple of --checkpoint-every ({self.checkpoint_every}): "
                "what is scored is a checkpoint"
            )

    def validates(self, step: int) -> bool:
        """Is the checkpoint of this step scored?"""
        every = self.validation.every or self.checkpoint_every
        return bool(self.validation.stores) and (step % every == 0 or step == self.steps)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as for JSON."""
        return asdict(self) | {"model": self.model.to_dict()}


def check_registry_names(model: str, alias: str) -> None:
    """Raise ValueError for a name or an alias that MLflow's registry does not take: before training, not after."""
    if not model.strip() or re.search(r"[/:\0-\x1f]", model) or model in (".", ".."):
        raise ValueError(f"{model!r} is no name of a registered model: it may not be empty, nor hold / or :")
    if len(model) > LONGEST_NAME:
        raise ValueError(f"{model!r} is no name of a registered model: it has more than {LONGEST_NAME} letters")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,255}", alias):
        raise ValueError(f"{alias!r} is no alias: it has the letters a to z, digits, _ and - only, such as champion")
    if alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", alias):
        raise ValueError(f"{alias!r} is no alias: MLflow keeps `latest` and v1, v2, ... to itself; take another word")


def _paper(model: str, accumulate: int = 1) -> TrainConfig:
    return TrainConfig(model=ModelConfig.preset(model), accumulate=accumulate)


PRESETS: dict[str, tuple[str, TrainConfig]] = {
    "tiny": (
        "Minutes on a laptop CPU: 4 frames of 64x64, two workers.",
        TrainConfig(
            model=ModelConfig.preset("tiny"),
            data=DataConfig(queries=256, clips_per_worker=8, augment=False),
            loss=LossConfig(confidence_warmup_steps=50),
            optim=OptimConfig(optimiser="muon", lr=5e-3, final_lr=5e-5, warmup_steps=50, betas=(0.9, 0.95)),
            steps=1_500,
            workers=2,
            precision="float32",
            checkpoint_every=200,
            log_every=20,
        ),
    ),
    "small": (
        "About an hour on two CPU cores: ViT-S, 8 frames of 128x128.",
        TrainConfig(
            model=replace(ModelConfig.preset("small"), image_size=128, clip_frames=8),
            data=DataConfig(queries=1024, clips_per_worker=1, augment=False),
            loss=LossConfig(confidence_warmup_steps=100),
            optim=OptimConfig(optimiser="muon", lr=2e-3, final_lr=2e-5, warmup_steps=100, betas=(0.9, 0.95)),
            steps=1_600,
            workers=2,
            precision="float32",
            checkpoint_every=200,
            log_every=10,
        ),
    ),
    "base": ("The paper's recipe on a ViT-B encoder, 48 frames of 256x256.", _paper("base")),
    "large": ("The paper's recipe on a ViT-L encoder.", _paper("large")),
    "huge": ("The paper's recipe on a ViT-H encoder.", _paper("huge", accumulate=2)),
    "giant": ("The paper's recipe on a ViT-g encoder: the paper's model.", _paper("giant", accumulate=4)),
    "opend4rt-refine": (
        "OpenD4RT's last stage, from 32 to 48 frames: to go on from a released checkpoint.",
        TrainConfig(
            model=ModelConfig.preset("opend4rt"),
            data=DataConfig(queries=4096, clips_per_worker=2, augment=False),
            loss=LossConfig(lnormal=0.4, displacement_norm="metric", confidence="paper", confidence_warmup_steps=0),
            optim=OptimConfig(lr=4e-6, final_lr=4e-7, warmup_steps=500, decay_all=True),
            steps=30_000,
            dropout=0.0,  # theirs is 0.1, which no part of the paper asks for
        ),
    ),
}

MIXTURE_FLAG = "--data.mixture"


@dataclass(frozen=True, kw_only=True)
class Arguments(TrainConfig):
    """A run, and what only the command line has."""

    mixture: str | None = None
    """Instead of --data.mixture: the weights of catalogs/mixtures/NAME.yaml, or of a file, for the stores in `stores`;
    such as nine."""
    stores: str | None = None
    """Folder or s3:// URI whose clip stores bear the names of the datasets in `mixture`."""
    dry_run: bool = False
    """Only check that all is there: stores, weights, shapes, memory, disk, MLflow."""

    def config(self, preset: str) -> TrainConfig:
        """The run that they ask for, named after the preset and the time if it has no name."""
        values = {field.name: getattr(self, field.name) for field in fields(TrainConfig)}
        mixture = _mixture_in(self.mixture, self.stores) | self.data.mixture
        name = self.name or f"{preset}-{time.strftime('%Y%m%d-%H%M%S')}"
        return TrainConfig(**values | {"data": replace(self.data, mixture=mixture), "name": name})


def parse(argv: list[str]) -> tuple[TrainConfig, bool]:
    """`PRESET [--field value ...]` to the run, and whether it is only tried out: `--dry-run`.

    Ends the process with exit code 2 and a suggestion if an option cannot be understood.
    """
    preset = argv[0]
    about, default = PRESETS[preset]
    arguments = tyro.cli(
        Arguments,
        prog=f"python -m train {preset}",
        description=f"Train D4RT on clip stores and register the result. {about}",
        default=Arguments(**vars(default)),
        args=_gather_mixture(argv[1:]),
    )
    return arguments.config(preset), arguments.dry_run


def _mixture_in(mixture: str | None, stores: str | None) -> dict[str, float]:
    """Store to weight, of a mixture file and the folder its stores are in."""
    if not mixture and not stores:
        return {}
    if not mixture or not stores:
        raise ValueError(
            "--mixture and --stores go together: --mixture nine --stores s3://bucket/clips trains on the stores "
            "s3://bucket/clips/DATASET with the weights of catalogs/mixtures/nine.yaml"
        )
    return {f"{stores.rstrip('/')}/{dataset}": weight for dataset, weight in load_mixture(mixture).items()}


def _gather_mixture(argv: list[str]) -> list[str]:
    """Turn every `--data.mixture.STORE WEIGHT` into one `--data.mixture STORE WEIGHT STORE WEIGHT ...` at the end."""
    kept, pairs, words = [], [], iter(argv)
    for word in words:
        if not word.startswith(f"{MIXTURE_FLAG}."):
            kept.append(word)
            continue
        store, equals, weight = word.removeprefix(f"{MIXTURE_FLAG}.").rpartition("=")
        pairs += [store, weight] if equals else [weight, next(words, "")]
    return [*kept, MIXTURE_FLAG, *pairs] if pairs else kept
