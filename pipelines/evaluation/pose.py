"""Camera paths: ATE and RPE after Sim(3) (Sturm 2012; as evo and MonST3R's tables have them), AUC@30 (VGGT's).

Poses P are predicted, Q true; both world_from_cam, with positions x and y.

    ATE     root of the mean of ||s R x + t - y||^2, with the Sim(3) of `similarity.py` over all frames
    RPE     E_i = (Q_i^-1 Q_i+1)^-1 (P_i^-1 P_i+1) of neighbouring aligned poses; the root of the mean square of its
            translation (in the unit of the truth) and of its angle (degrees)
    AUC@m   of all pairs i < j: e is the larger of the angle between the relative rotations and that between the
            relative translations, folded into 0 to 90 degrees; mean over b = 1..m of the share with e < b
"""

from typing import Literal

import numpy as np
from jaxtyping import Float, Float64

from pipelines.evaluation.similarity import Degenerate, Similarity
from pipelines.geometry import inverse, xyzw_from_rotation

Alignment = Literal["sim3", "se3", "scale_only", "none"]
Poses = Float[np.ndarray, "N 4 4"]

FLOOR = 1e-15  # below which two directions cannot be told apart in double precision


def align(predicted: Poses, truth: Poses, alignment: Alignment) -> Float64[np.ndarray, "N 4 4"]:
    """The predicted poses in the world and the unit of the truth. Raises Degenerate (see `Similarity.fit`)."""
    aligned = predicted.astype(np.float64).copy()
    if alignment == "none":
        return aligned
    positions = aligned[:, :3, 3].copy()
    found = Similarity.fit(positions, truth[:, :3, 3], scaled=alignment != "se3")
    if alignment == "scale_only":
        aligned[:, :3, 3] = found.scale * positions
        return aligned
    aligned[:, :3, :3] = found.rotation @ aligned[:, :3, :3]
    aligned[:, :3, 3] = found(positions)
    return aligned


def position_errors(predicted: Poses, truth: Poses, alignment: Alignment) -> Float64[np.ndarray, "N"]:
    """||x - y|| of each frame after the alignment, in the unit of the truth. ATE is the root of their mean square."""
    return np.linalg.norm(align(predicted, truth, alignment)[:, :3, 3] - truth[:, :3, 3], axis=1)


def relative_errors(aligned: Poses, truth: Poses) -> tuple[Float64[np.ndarray, "pairs"], Float64[np.ndarray, "pairs"]]:
    """(translation, angle in degrees) of E_i for each pair of neighbouring frames."""
    ours = inverse(aligned[:-1]) @ aligned[1:]
    theirs = inverse(truth[:-1].astype(np.float64)) @ truth[1:]
    error = inverse(theirs) @ ours
    return np.linalg.norm(error[:, :3, 3], axis=1), degrees(error[:, :3, :3])


def degrees(rotation: Float[np.ndarray, "*batch 3 3"]) -> Float64[np.ndarray, "*batch"]:
    """The angle of rotations, 0 to 180; exact also for small ones, where an arc cosine of the trace is not."""
    skew = rotation - np.swapaxes(rotation, -1, -2)
    sine = np.sqrt(skew[..., 2, 1] ** 2 + skew[..., 0, 2] ** 2 + skew[..., 1, 0] ** 2)
    cosine = np.trace(rotation, axis1=-2, axis2=-1) - 1
    return np.degrees(np.arctan2(sine, cosine))


def root_mean_square(errors: Float[np.ndarray, "n"]) -> float:
    return float(np.sqrt(np.mean(errors**2)))


def path_scores(predicted: Poses, truth: Poses) -> dict[str, float | int | str | None]:
    """ATE, RPE-T, RPE-R after Sim(3), and what had to be left out.

    Frames whose true pose is not finite are dropped, with both their pairs, and counted. A truth or prediction without
    a direction (a camera that stands still, a line, two frames) cannot be aligned: `ate` and `rpe_translation` are
    None then and `reason` says why; RPE-R needs no alignment.

    Raises:
        ValueError: a predicted pose is not finite.
    """
    if not np.isfinite(predicted).all():
        bad = np.flatnonzero(~np.isfinite(predicted).all(axis=(1, 2))).tolist()
        which = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise ValueError(f"{len(bad)} of {len(predicted)} predicted poses are missing or not finite: frames {which}")
    known = np.isfinite(truth).all(axis=(1, 2))
    pairs = known[:-1] & known[1:]
    left_out = {"frames": int(known.sum()), "frames_without_truth": int((~known).sum())}
    usable = np.where(known[:, None, None], truth, np.eye(4))

    try:
        found = align(predicted[known], truth[known], "sim3")
    except Degenerate as error:
        _, angle = relative_errors(predicted.astype(np.float64), usable)
        return left_out | {
            "ate": None,
            "rpe_translation": None,
            "rpe_rotation_degrees": root_mean_square(angle[pairs]) if pairs.any() else None,
            "reason": f"not alignable: {error}",
        }
    ate = root_mean_square(np.linalg.norm(found[:, :3, 3] - truth[known][:, :3, 3], axis=1))
    aligned = np.broadcast_to(np.eye(4), predicted.shape).copy()
    aligned[known] = found
    translation, angle = relative_errors(aligned, usable)
    return left_out | {
        "ate": ate,
        "rpe_translation": root_mean_square(translation[pairs]) if pairs.any() else None,
        "rpe_rotation_degrees": root_mean_square(angle[pairs]) if pairs.any() else None,
        "reason": None,
    }


def pair_errors(
    predicted: Float[np.ndarray, "N 4 4"], truth: Float[np.ndarray, "N 4 4"]
) -> tuple[Float64[np.ndarray, "pairs"], Float64[np.ndarray, "pairs"]]:
    """(rotation, direction of translation) in degrees of all pairs i < j. Poses are cam_from_world here.

    A pair without a baseline, in truth or prediction, counts as 90 degrees.
    """
    first, second = np.triu_indices(len(truth), 1)
    ours, theirs = (
        poses[first] @ inverse(poses[second]) for poses in (predicted.astype(np.float64), truth.astype(np.float64))
    )
    quaternions = [xyzw_from_rotation(pose[:, :3, :3]) for pose in (ours, theirs)]
    along = (quaternions[0] * quaternions[1]).sum(axis=1) ** 2
    rotation = np.degrees(np.arccos(1 - 2 * np.maximum(1 - along, FLOOR)))

    directions = [
        pose[:, :3, 3] / (np.linalg.norm(pose[:, :3, 3], axis=1, keepdims=True) + FLOOR) for pose in (ours, theirs)
    ]
    cosine = (directions[0] * directions[1]).sum(axis=1)
    direction = np.degrees(np.arccos(np.sqrt(1 - np.maximum(1 - cosine**2, FLOOR))))
    return rotation, direction


def auc(rotation: Float[np.ndarray, "pairs"], direction: Float[np.ndarray, "pairs"], most: int) -> float:
    """AUC@most, 0 to 1: bins of a degree, closed below, the last one above too. NaN falls into none."""
    error = np.maximum(rotation, direction)
    with np.errstate(invalid="ignore"):
        shares = [np.mean(error < bound) for bound in range(1, most)] + [np.mean(error <= most)]
    return float(np.mean(shares))


def auc_exact(rotation: Float[np.ndarray, "pairs"], direction: Float[np.ndarray, "pairs"], most: float) -> float:
    """The area itself, which the upper sum of `auc` is always above."""
    error = np.nan_to_num(np.maximum(rotation, direction), nan=np.inf)
    return float(np.mean(np.maximum(0, 1 - error / most)))
