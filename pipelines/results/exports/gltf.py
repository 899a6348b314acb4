"""An animated glTF scene (.glb) that any 3D viewer plays: the cloud, the camera on its path, and the tracks.

glTF has y up and cameras that look along -z: a root node turns our world, whose nodes keep our axes. A hidden point is
shown half as large, a lost one not at all. https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float
from pygltflib import (
    GLTF2,
    Animation,
    AnimationChannel,
    AnimationChannelTarget,
    AnimationSampler,
    Asset,
    Attributes,
    Camera,
    Material,
    Mesh,
    Node,
    PbrMetallicRoughness,
    Perspective,
    Primitive,
    Scene,
)

from pipelines.geometry import finite, xyzw_from_rotation
from pipelines.pictures.drawing import position_colours
from pipelines.results.exports.gltf_buffer import Buffer
from pipelines.results.exports.static import known_cameras
from pipelines.results.files import LOST
from pipelines.results.reading import Arrays, Result

MAX_TRACKS = 1024  # a node and two channels each: more, and common viewers stutter
MAX_POINTS = 200_000
MARK = 0.006  # of the median distance: half the size of a mark
POINTS, LINES, LINE_STRIP = 0, 1, 3  # modes of a primitive
FLIP = np.diag([1.0, -1, -1])  # from OpenCV's axes to OpenGL's, and back
UNLIT = {"KHR_materials_unlit": {}}


def write(folder: Path, result: Result, about: str) -> list[str]:
    """Whatever of tracks, points and cameras there is. ValueError if that is nothing."""
    root = Node(name=result.video.name, rotation=[1.0, 0.0, 0.0, 0.0], children=[])  # half a turn about x
    scene = GLTF2(
        asset=Asset(generator="d4rt", copyright="", extras={"about": about}),
        scene=0,
        scenes=[Scene(nodes=[0])],
        nodes=[root],
        animations=[Animation(name="video")],
        extensionsUsed=list(UNLIT),
    )
    buffer, notes = Buffer(scene), []
    times = buffer.floats(np.array(result.video.times)[:, None], bounds=True)
    if "points" in result.tasks:
        _add_cloud(scene, buffer, result.arrays("points"))
    if "cameras" in result.tasks:
        _add_camera(scene, buffer, times, result)
    if "tracks" in result.tasks:
        notes += _add_tracks(scene, buffer, times, result.arrays("tracks"))
    if len(scene.nodes) == 1:
        raise ValueError(f"{result.uri} has no tracks, points or cameras that are known: there is nothing to show")
    if not scene.animations[0].channels:
        scene.animations = []
    buffer.close()
    scene.save_binary(str(folder / "scene.glb"))
    return notes


def _add_node(scene: GLTF2, node: Node) -> int:
    scene.nodes.append(node)
    scene.nodes[0].children.append(len(scene.nodes) - 1)
    return len(scene.nodes) - 1


def _add_mesh(scene: GLTF2, primitive: Primitive, name: str) -> int:
    scene.meshes.append(Mesh(name=name, primitives=[primitive]))
    return len(scene.meshes) - 1


def _material(scene: GLTF2, rgb: Float[np.ndarray, "3"]) -> int:
    """`rgb` as sRGB from 0 to 1; glTF's factors are linear."""
    colour = PbrMetallicRoughness(baseColorFactor=[*(rgb**2.2).tolist(), 1.0], metallicFactor=0.0)
    scene.materials.append(Material(pbrMetallicRoughness=colour, extensions=UNLIT))
    return len(scene.materials) - 1


def _animate(scene: GLTF2, node: int, path: str, times: int, values: int, interpolation: str = "LINEAR") -> None:
    animation = scene.animations[0]
    animation.samplers.append(AnimationSampler(input=times, output=values, interpolation=interpolation))
    target = AnimationChannelTarget(node=node, path=path)
    animation.channels.append(AnimationChannel(sampler=len(animation.samplers) - 1, target=target))


def _add_cloud(scene: GLTF2, buffer: Buffer, points: Arrays) -> None:
    known = np.flatnonzero(finite(points["xyz"]))
    known = known[:: max(1, -(-len(known) // MAX_POINTS))]
    if not len(known):
        return
    rgba = np.pad(points["rgb"][known], ((0, 0), (0, 1)), constant_values=255)
    attributes = Attributes(
        POSITION=buffer.floats(points["xyz"][known], bounds=True, vertices=True), COLOR_0=buffer.colours(rgba)
    )
    primitive = Primitive(attributes=attributes, mode=POINTS, material=_material(scene, np.ones(3)))
    _add_node(scene, Node(name="points", mesh=_add_mesh(scene, primitive, "points")))


def _add_camera(scene: GLTF2, buffer: Buffer, times: int, result: Result) -> None:
    """Known poses, each held until the next known one; the lens is the median one."""
    cameras, video = result.arrays("cameras"), result.video
    try:
        known = known_cameras(cameras, result.uri)
    except ValueError:
        return
    pose = cameras["world_from_cam"][_held(known)].astype(np.float64)
    lens = np.median(cameras["intrinsics"][known].astype(np.float64), axis=0)
    view = Perspective(
        aspectRatio=video.width / video.height, yfov=float(2 * np.arctan(video.height / 2 / lens[1, 1])), znear=0.01
    )
    scene.cameras.append(Camera(type="perspective", perspective=view, name="camera"))
    centres = pose[:, :3, 3]
    extent = max(float(np.ptp(centres, axis=0).max()), 1e-3)

    corners = np.array([[0, 0], [video.width, 0], [video.width, video.height], [0, video.height]])
    rays = np.concatenate([corners, np.ones((4, 1))], axis=1) @ np.linalg.inv(lens).T @ FLIP
    outline = np.concatenate([np.zeros((1, 3)), 0.15 * extent * rays])
    edges = np.array([[0, 1], [0, 2], [0, 3], [0, 4], [1, 2], [2, 3], [3, 4], [4, 1]])
    frustum = buffer.floats(outline[edges].reshape(-1, 3), bounds=True, vertices=True)
    orange = _material(scene, np.array([1.0, 0.55, 0.1]))
    lines = Primitive(attributes=Attributes(POSITION=frustum), mode=LINES, material=orange)
    node = _add_node(scene, Node(name="camera", camera=0, mesh=_add_mesh(scene, lines, "frustum")))

    quaternions = xyzw_from_rotation(pose[:, :3, :3] @ FLIP)
    turns = np.where((quaternions[1:] * quaternions[:-1]).sum(axis=1) < 0, -1.0, 1.0)  # the short way round
    quaternions[1:] *= np.cumprod(turns)[:, None]
    _animate(scene, node, "translation", times, buffer.floats(centres))
    _animate(scene, node, "rotation", times, buffer.floats(quaternions))
    path = Primitive(
        attributes=Attributes(POSITION=buffer.floats(centres, bounds=True, vertices=True)),
        mode=LINE_STRIP,
        material=orange,
    )
    _add_node(scene, Node(name="camera path", mesh=_add_mesh(scene, path, "camera path")))


def _add_tracks(scene: GLTF2, buffer: Buffer, times: int, tracks: Arrays) -> list[str]:
    known = finite(tracks["xyz"]) & (tracks["status"] != LOST)
    ever = np.flatnonzero(known.any(axis=1))
    if not len(ever):
        return ["no track is known anywhere"]
    chosen = ever[np.linspace(0, len(ever) - 1, min(len(ever), MAX_TRACKS)).round().astype(int)]
    distances = np.linalg.norm(tracks["xyz"][known], axis=-1)
    corners = MARK * float(np.median(distances)) * np.concatenate([np.eye(3), -np.eye(3)])
    faces = np.array([[0, 1, 2], [1, 3, 2], [3, 4, 2], [4, 0, 2], [1, 0, 5], [3, 1, 5], [4, 3, 5], [0, 4, 5]])
    mark = buffer.floats(corners[faces].reshape(-1, 3), bounds=True, vertices=True)

    colours = position_colours(tracks["points"]) / 255
    for n in chosen.tolist():
        primitive = Primitive(attributes=Attributes(POSITION=mark), material=_material(scene, colours[n]))
        node = _add_node(scene, Node(name=f"track {n}", mesh=_add_mesh(scene, primitive, f"track {n}")))
        size = np.where(known[n], np.where(tracks["visible"][n], 1.0, 0.5), 0.0)
        _animate(scene, node, "translation", times, buffer.floats(tracks["xyz"][n, _held(known[n])]))
        _animate(scene, node, "scale", times, buffer.floats(np.repeat(size[:, None], 3, axis=1)), "STEP")
    left_out = len(ever) - len(chosen)
    return (
        [f"{left_out} of {len(ever)} tracks are left out, evenly: more than {MAX_TRACKS} stutter"] if left_out else []
    )


def _held(known: np.ndarray) -> np.ndarray:
    """(T,) for each frame the last known one, or the first where none was before."""
    last = np.maximum.accumulate(np.where(known, np.arange(len(known)), -1))
    return np.where(last < 0, np.argmax(known), last)
