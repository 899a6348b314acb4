"""The numbers of a glTF scene, in its one binary buffer."""

import numpy as np
from jaxtyping import Float, UInt8
from pygltflib import GLTF2, Accessor, BufferView
from pygltflib import Buffer as GltfBuffer

FLOAT, UNSIGNED_BYTE = 5126, 5121
ARRAY_BUFFER = 34962
KINDS = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}


class Buffer:
    """Collects arrays; each becomes an accessor, which scenes name by number."""

    def __init__(self, scene: GLTF2) -> None:
        self.scene, self.content = scene, bytearray()

    def floats(self, values: Float[np.ndarray, "n c"], *, bounds: bool = False, vertices: bool = False) -> int:
        """`bounds`: glTF wants them of positions and of times."""
        values = np.ascontiguousarray(values, np.float32)
        limits = {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()} if bounds else {}
        return self._add(values, FLOAT, vertices, **limits)

    def colours(self, rgba: UInt8[np.ndarray, "n 4"]) -> int:
        """From 0 to 255."""
        return self._add(rgba, UNSIGNED_BYTE, True, normalized=True)

    def close(self) -> None:
        """To be called when nothing more comes."""
        self.scene.buffers.append(GltfBuffer(byteLength=len(self.content)))
        self.scene.set_binary_blob(bytes(self.content))

    def _add(self, values: np.ndarray, component: int, vertices: bool, **rest) -> int:
        view = BufferView(buffer=0, byteOffset=len(self.content), byteLength=values.nbytes)
        if vertices:
            view.target = ARRAY_BUFFER
        self.content += values.tobytes()
        self.scene.bufferViews.append(view)
        accessor = Accessor(
            bufferView=len(self.scene.bufferViews) - 1,
            componentType=component,
            count=len(values),
            type=KINDS[values.shape[1]],
            **rest,
        )
        self.scene.accessors.append(accessor)
        return len(self.scene.accessors) - 1
