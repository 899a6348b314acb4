"""One analytic scene with exact truth, and writers that put it on disk in the datasets' official raw layouts.

Every layout is a module named for its dataset, with
    SIZES                                          width and height of "small" and of "official" frames
    RAW_FROM_SCENE                                 4x4: the dataset's raw world axes from the scene's, in metres
    scene(seed, *, num_frames, size) -> Scene      a scene that suits the dataset
    folder(index) -> str                           where sequence `index` of a raw folder lies
    write(scene, folder)                           all files of one sequence
    write_tree(scene, root, index)                 or, where a sequence lies in several folders, below the raw folder,
                                                   of which `folder` is the last
and, where it is not what one would think,
    units_per_metre(scene) -> float                the unit of the raw files, in which their world is written
    frame_numbers(num_frames) -> array             what the raw files call the scene's frames
    unknown_poses(num_frames) -> list              frames of which the raw files do not know the pose
"""

from typing import Literal

Size = Literal["small", "official"]
