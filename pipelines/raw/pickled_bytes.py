"""Byte strings of a NumPy array of objects, without ever executing the pickle that holds them.

TAPVid-3D and WorldTrack keep the JPEGs of a clip so. The pickle may name what NumPy needs to make an array of objects,
for which harmless stand-ins take its place; any other name is refused.
"""

import io
import pickle
import pickletools
from typing import Any


class _Objects:
    """Stands for the array, and keeps the list of its elements."""

    def __init__(self, *_: Any) -> None:
        self.elements: Any = None

    def __setstate__(self, state: Any) -> None:
        self.elements = state[-1]


class _Nothing:
    """Stands for a dtype."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


ALLOWED = {("numpy", "ndarray"): _Objects, ("numpy", "dtype"): _Nothing}
ALLOWED |= {(f"numpy.{core}.multiarray", "_reconstruct"): _Objects for core in ("core", "_core")}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise ValueError(f"names {module}.{name}, which is no array of bytes: refused, it can run any code")
        return ALLOWED[module, name]


def unpickled_bytes(pickled: bytes) -> list[bytes]:
    """The elements, in order. ValueError for whatever else a pickle can hold."""
    try:
        for code, argument, _ in pickletools.genops(pickled):  # which also stumbles over lengths beyond the end
            if "PUT" in code.name and argument is not None and argument > len(pickled):  # memory is taken for as many
                raise ValueError(f"it numbers an object {argument}, but has {len(pickled)} bytes")
        found = _Unpickler(io.BytesIO(pickled)).load()
    except ValueError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise ValueError(f"it is damaged ({type(error).__name__}: {error})") from None
    elements = getattr(found, "elements", None)
    if not isinstance(elements, list) or not all(isinstance(element, bytes) for element in elements):
        raise ValueError("it holds other objects than byte strings")
    return elements
