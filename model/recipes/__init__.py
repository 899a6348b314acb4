"""Which questions give which result (paper Tab. 1). One encoder pass serves them all: pass `memory` along.

| recipe        | u, v       | t_src   | t_tgt       | t_cam               | read from the answers        |
|---------------|------------|---------|-------------|---------------------|------------------------------|
| tracks        | given      | given   | 0..T-1      | = t_tgt, or one     | xyz, visible                 |
| pixel_tracks  | all pixels | one     | 0..T-1      | = t_tgt, or one     | xyz, visible                 |
| all_tracks    | unvisited  | 0..T-1  | 0..T-1      | = t_tgt, or one     | xyz, visible                 |
| scene_flow    | all pixels | 0..T-2  | t_src, + 1  | either, or one      | difference of xyz            |
| point_cloud   | all pixels | 0..T-1  | = t_src     | one                 | xyz                          |
| depth         | all pixels | 0..T-1  | = t_src     | = t_src             | z, normal                    |
| cameras, pose | grid       | i       | = t_src     | i and j             | two point sets, same instant |
| cameras, K    | grid       | 0..T-1  | = t_src     | = t_src             | xyz                          |

`WithIntrinsics(model, ...)` stands in for a model where the camera's intrinsics are known: all recipes then go by them.

Without further questions: `jitter` asks any query again beside its place, `extrapolate` continues tracks at a constant
velocity.

These take one clip; `track_long_video` takes any number of frames, in windows (see there), and so does `follow_all` of
`dense_following`, for all pixels. `fit_poses` lays cameras into a world of known ones, in its unit.

What every recipe takes:
    video    (T, S, S, 3) uint8, resized to the model's square S without cropping; with `memory`, what it is of
    aspect   raw width / height; None takes it from `memory`, else from `native`, else from `video` itself
    memory   `model.encode(video[None], aspect)`, to encode only once; None encodes here
    native   (T, H, W, 3) uint8, the raw frames: query patches are cut from them, which sharpens edges (paper App. C)
    chunk_size  queries decoded at a time; None, the default: as many as free memory allows

Results are on the CPU. Lengths are in the model's unit, one per clip but arbitrary. Precision follows the caller's
`torch.autocast`.
"""

from model.recipes.asking import AnsweringModel, ask_frames, output_size, pixel_centres, prepare
from model.recipes.camera_paths import MIN_GRID, cameras
from model.recipes.dense_tracking import all_tracks, pixel_tracks
from model.recipes.depth_maps import depth, depth_at, frame_depth
from model.recipes.extrapolation import extrapolate
from model.recipes.known_intrinsics import WithIntrinsics, norm_intrinsics
from model.recipes.known_poses import PoseFit, fit_poses
from model.recipes.long_video import LongTracks, LongVideo, track_long_video
from model.recipes.point_clouds import frame_points, joined_clouds, point_cloud, without_doubtful
from model.recipes.results import AllTracks, CameraPath, Depth, Forecast, PointCloud, SceneFlow, Tracks
from model.recipes.scene_flow import frame_flow, joined_flow, scene_flow
from model.recipes.tracking import tracks
from model.recipes.uncertainty import jitter, jitter_tracks
from model.recipes.windows import WindowPlan, plan_windows

__all__ = [
    "MIN_GRID",
    "AllTracks",
    "AnsweringModel",
    "CameraPath",
    "Depth",
    "Forecast",
    "LongTracks",
    "LongVideo",
    "PointCloud",
    "PoseFit",
    "SceneFlow",
    "Tracks",
    "WindowPlan",
    "WithIntrinsics",
    "all_tracks",
    "ask_frames",
    "cameras",
    "depth",
    "depth_at",
    "extrapolate",
    "fit_poses",
    "frame_depth",
    "frame_flow",
    "frame_points",
    "jitter",
    "jitter_tracks",
    "joined_clouds",
    "joined_flow",
    "norm_intrinsics",
    "output_size",
    "pixel_centres",
    "pixel_tracks",
    "plan_windows",
    "point_cloud",
    "prepare",
    "scene_flow",
    "track_long_video",
    "tracks",
    "without_doubtful",
]
