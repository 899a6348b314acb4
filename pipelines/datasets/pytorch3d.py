"""Frame annotations of PyTorch3D's Implicitron, in which Dynamic Replica and CO3D tell cameras and paths.

A record of the list, of which more may be null or absent than is here:
    sequence_name, frame_number
    image      path, size [H, W]
    depth      path, scale_adjustment, mask_path    16-bit grey PNG whose bits are those of a float16
    mask       path
    viewpoint  R (3 x 3), T (3)                     row vectors, x_cam = x_world R + T; +x left, +y up, +z forward
               focal_length, principal_point (x, y), intrinsics_format: "ndc_isotropic", in units of half the image's
               shorter side, or "ndc_norm_image_bounds" (also if absent), of half its width and height; both of the
               principal point are negative to the right and below of the image's centre
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, UInt16

from pipelines.geometry import inverse

FLIP = np.diag([-1.0, -1, 1])  # PyTorch3D's camera axes to OpenCV's, and back
DEPTHS = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)  # of each stored value
DEPTHS[~(np.isfinite(DEPTHS) & (DEPTHS > 0))] = np.nan  # 0, -0, inf and NaN stand for nothing


def depth_of(stored: UInt16[np.ndarray, "H W"], scale: float) -> Float32[np.ndarray, "H W"]:
    """Depth along +z from its float16 bits, NaN where there is none; `scale` is the record's scale_adjustment."""
    return DEPTHS[stored] * np.float32(scale)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What one record says, in our conventions. None is what it leaves open."""

    number: int
    image: str
    size: tuple[int, int]
    """(H, W)."""
    depth: str | None
    depth_scale: float
    depth_mask: str | None
    mask: str | None
    trajectories: str | None
    """Dynamic Replica's own addition."""
    intrinsics: Float64[np.ndarray, "3 3"] | None
    world_from_cam: Float64[np.ndarray, "4 4"] | None

    @classmethod
    def parse(cls, record: dict[str, Any], where: str, locate: Callable[[str], str]) -> "Frame":
        """`where` names the list in errors; `locate` makes a path below the raw folder of one in the record."""
        where = f"frame {record.get('frame_number')!r} of {record.get('sequence_name')!r} in {where}"

        def path(*keys: str) -> str | None:
            value = _value(record, where, *keys)
            if not (value is None or isinstance(value, str)):
                raise _wrong(where, keys, value, "a path")
            return None if value is None else locate(value)

        number, image = _value(record, where, "frame_number"), path("image", "path")
        if type(number) is not int or image is None:
            raise ValueError(f"{where} must have a whole frame_number and an image path: download the list again")
        height, width = _numbers(record, where, "image", "size", shape=(2,)).tolist()
        if not (height >= 1 and width >= 1 and height % 1 == 0 and width % 1 == 0):
            raise _wrong(where, ("image", "size"), [height, width], "[H, W], whole numbers from 1")
        scale = _value(record, where, "depth", "scale_adjustment")
        scale = 1.0 if scale is None else _numbers(record, where, "depth", "scale_adjustment", shape=()).item()
        if scale <= 0:
            raise _wrong(where, ("depth", "scale_adjustment"), scale, "above 0")
        seen = _value(record, where, "viewpoint") is not None
        size = int(height), int(width)
        return cls(
            number=number,
            image=image,
            size=size,
            depth=path("depth", "path"),
            depth_scale=scale,
            depth_mask=path("depth", "mask_path"),
            mask=path("mask", "path"),
            trajectories=path("trajectories", "path"),
            intrinsics=_intrinsics(record, where, size) if seen else None,
            world_from_cam=_world_from_cam(record, where) if seen else None,
        )


def _intrinsics(record: dict[str, Any], where: str, size: tuple[int, int]) -> Float64[np.ndarray, "3 3"]:
    """Pixels; corner origin, as NDC counts from the outer edges of the image."""
    half = np.array(size[::-1]) / 2
    form = _value(record, where, "viewpoint", "intrinsics_format") or "ndc_norm_image_bounds"
    units = {"ndc_isotropic": half.min(), "ndc_norm_image_bounds": half}
    if not isinstance(form, str) or form not in units:
        raise _wrong(where, ("viewpoint", "intrinsics_format"), form, f"one of {', '.join(units)}")
    matrix = np.eye(3)
    matrix[(0, 1), (0, 1)] = units[form] * _numbers(record, where, "viewpoint", "focal_length", shape=(2,))
    matrix[:2, 2] = half - units[form] * _numbers(record, where, "viewpoint", "principal_point", shape=(2,))
    return matrix


def _world_from_cam(record: dict[str, Any], where: str) -> Float64[np.ndarray, "4 4"]:
    cam_from_world = np.eye(4)
    cam_from_world[:3, :3] = FLIP @ _numbers(record, where, "viewpoint", "R", shape=(3, 3)).T
    cam_from_world[:3, 3] = FLIP @ _numbers(record, where, "viewpoint", "T", shape=(3,))
    return inverse(cam_from_world)


def _value(record: dict[str, Any], where: str, *keys: str) -> Any:
    """What stands under these keys, one within the other; None if it or what is around it is null or absent."""
    value: Any = record
    for i, key in enumerate(keys):
        if value is None:
            return None
        if not isinstance(value, dict):
            raise _wrong(where, keys[:i], value, "a mapping")
        value = value.get(key)
    return value


def _numbers(record: dict[str, Any], where: str, *keys: str, shape: tuple[int, ...]) -> Float64[np.ndarray, "..."]:
    value = _value(record, where, *keys)
    try:
        numbers = np.array(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = np.empty(0)
    if numbers.shape != shape or not np.isfinite(numbers).all():
        raise _wrong(where, keys, value, f"finite numbers of shape {shape}")
    return numbers


def _wrong(where: str, keys: tuple[str, ...], value: Any, rule: str) -> ValueError:
    shown = repr(value)[:80]
    return ValueError(f"{'.'.join(keys)} of {where} is {shown}; it must be {rule}: download the list again")
