"""The clip stores of a mixture: are they there, and do they fit the model and the loss?"""

from typing import get_args

from model import ModelConfig
from pipelines.catalog import Catalog
from pipelines.datasets import HeldOutKey, reader
from pipelines.query_table import VALID_BITS
from pipelines.store.reader import ClipStore, evenly, open_different
from train.config import MIN_POINTS, DataConfig
from train.mixture import MixturePlan
from train.recipe import LossConfig

SCANNED = 64  # clips of a store that are looked at for labels of which its index says nothing


def open_mixture(config: DataConfig, model: ModelConfig, seed: int) -> tuple[MixturePlan, list[ClipStore]]:
    """Open every store of the mixture and check that it fits the model. ValueError, naming the store, if not."""
    if not config.mixture:
        raise ValueError("data.mixture is empty: name at least one clip store, --data.mixture.STORE WEIGHT")
    stores = open_different(config.mixture)
    frames = stores[0].settings.frames
    for store in stores:
        settings = store.settings
        refuse_benchmarks(store)
        if settings.image_size != model.image_size:
            raise ValueError(
                f"store {store.uri} has frames of {settings.image_size} pixels, the model takes {model.image_size}: "
                f"convert with --image-size {model.image_size}, or train with --model.image-size {settings.image_size}"
            )
        if settings.frames > model.clip_frames:
            raise ValueError(
                f"store {store.uri} has clips of {settings.frames} frames, the model takes at most "
                f"{model.clip_frames}: convert with --frames {model.clip_frames}, or raise --model.clip-frames"
            )
        if settings.frames != frames:
            raise ValueError(
                f"store {store.uri} has clips of {settings.frames} frames, store {stores[0].uri} of {frames}: "
                "the stores of a mixture must agree, convert one of them again"
            )
        if settings.queries < config.queries:
            raise ValueError(
                f"store {store.uri} holds {settings.queries} queries per sample, --data.queries asks for "
                f"{config.queries}: lower it, or convert with --queries {config.queries}"
            )
    plan = MixturePlan(
        stores=tuple(store.uri for store in stores),
        weights=tuple(map(float, config.mixture.values())),
        lengths=tuple(map(len, stores)),
        samples=tuple(store.settings.samples for store in stores),
        seed=seed,
    )
    return plan, stores


def refuse_benchmarks(store: ClipStore) -> None:
    """ValueError, naming store and scene, for a store that holds what a benchmark is made of.

    A dataset that is not known here has no catalog to tell it.
    """
    dataset = store.settings.dataset
    try:
        layout, catalog = reader(dataset), Catalog.load(dataset)
    except (KeyError, ValueError, ImportError):
        return
    for name in store.info["sequences"] if catalog.benchmarks else []:
        if benchmark := catalog.benchmark_of(layout.scene_of(name)):
            remedy = "train on another dataset" if dataset in get_args(HeldOutKey) else "convert --split train or val"
            raise ValueError(
                f"store {store.uri} holds {name} of {dataset}, which the benchmark {benchmark} is made of: scores of a "
                f"model that was trained on it would say nothing; {remedy}, and evaluate on this one"
            )


def check_labels(stores: list[ClipStore], config: DataConfig, loss: LossConfig) -> None:
    """ValueError, naming store and dataset, for a store without a single label that the loss makes use of."""
    for store in stores:
        # The index knows of points; a clip with too few of them has no scale.
        points = config.queries * max(store.column("share_valid").tolist(), default=0)
        scale = points >= MIN_POINTS
        terms = {"xyz": (loss.l3d or loss.ldepth) and scale, "uv_tgt": loss.l2d, "visible": loss.lvis}
        terms["displacement"] = loss.ldisp and (scale or loss.displacement_norm == "metric")
        terms["normal"] = loss.lnormal
        used = [name for name, weight in terms.items() if weight]
        bits = sum(VALID_BITS[name] for name in used)
        numbers = evenly(len(store), SCANNED)
        if "xyz" not in used and not any((store[n].all_queries()["valid"] & bits).any() for n in numbers):
            raise ValueError(
                f"store {store.uri}: dataset {store.settings.dataset} has no label that loss.* makes use of: at most "
                f"{points:.0f} points per clip ({MIN_POINTS} make a scale), and in {len(numbers)} clips nothing of "
                f"{', '.join(used) or 'anything else'}; leave it out of data.mixture"
            )
    if unknown := sorted(loss.dynamic_reweight.keys() - {store.settings.dataset for store in stores}):
        raise ValueError(
            f"--loss.dynamic-reweight names {', '.join(unknown)}, but the stores of data.mixture hold "
            f"{', '.join(sorted({store.settings.dataset for store in stores}))}"
        )
