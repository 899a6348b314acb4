"""What the arrays of results must be to be read again, as the table at the top of `files.py` has them."""

import numpy as np

KINDS = {"float": "f", "whole": "iu", "bool": "b", "frame": "iu", "colour": "u"}
"""Kinds of NumPy's dtypes that a word stands for. A `frame` is one of the clip; a `colour` is from 0 to 255."""

SHAPES = {  # task -> key -> axes, of one length wherever they bear one name, and what is in it; T is the clip's length
    "tracks": {
        "points": ("N 2", "float"),
        "t_src": ("N", "frame"),
        "xyz": ("N T 3", "float"),
        "xyz_cam": ("N T 3", "float"),
        "uv_norm": ("N T 2", "float"),
        "visible": ("N T", "bool"),
        "confidence": ("N T", "float"),
        "status": ("N T", "whole"),
    },
    "depth": {
        "depth": ("T h w", "float"),
        "normal": ("T h w 3", "float"),
        "confidence": ("T h w", "float"),
    },
    "points": {
        "xyz": ("P 3", "float"),
        "rgb": ("P 3", "colour"),
        "normal": ("P 3", "float"),
        "confidence": ("P", "float"),
        "frame": ("P", "frame"),
        "left_out": ("", "float"),
    },
    "cameras": {
        "world_from_cam": ("T 4 4", "float"),
        "intrinsics": ("T 3 3", "float"),
        "residual": ("T", "float"),
    },
}
MAY_BE_EMPTY = {"P"}


def check_arrays(task: str, arrays: dict[str, np.ndarray], length: int) -> None:
    """ValueError, naming key, shape and rule, for arrays of a clip of `length` frames that are not as they must be."""
    sides = {"T": length}
    for key, (axes, kind) in SHAPES.get(task, {}).items():
        array, names = arrays[key], axes.split()
        if array.dtype.kind not in KINDS[kind] or (kind == "colour" and array.dtype != np.uint8):
            raise ValueError(f"{key} is {array.dtype}, it must be {kind}")
        fits = array.ndim == len(names)
        for name, side in zip(names, array.shape, strict=False):
            expected = int(name) if name.isdecimal() else sides.setdefault(name, side)
            fits = fits and side == expected and (side > 0 or name in MAY_BE_EMPTY)
        if not fits:
            told = ", ".join(f"{name} = {side}" for name, side in sides.items())
            raise ValueError(f"{key} is {array.shape}, it must be ({', '.join(names)}) with {told}")
        if kind == "frame" and array.size and not (array.min() >= 0 and array.max() < length):
            raise ValueError(f"{key} has {array.min()} to {array.max()}, frames are from 0 to {length - 1}")
    if task == "cameras" and (arrays["intrinsics"][:, (0, 1), (0, 1)] <= 0).any():
        raise ValueError("intrinsics have a focal length that is not above 0")
