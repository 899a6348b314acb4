"""Exports of exact results, read by the programs they are for."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pygltflib
import pytest
import trimesh
from exact_result import DIGEST, exact_arrays, write_exact, write_of
from PIL import Image
from s3fs import S3FileSystem
from scipy.spatial.transform import Rotation

from pipelines.evaluation.pose import align, position_errors, relative_errors
from pipelines.export import export
from pipelines.geometry import project, transform
from pipelines.results.exports.made import FORMATS, export_one
from pipelines.results.reading import read_result
from pipelines.results.shapes import check_arrays
from pipelines.synthesize.scene import Scene

FRAMES, WIDTH, HEIGHT, GRID = 10, 96, 64, 12
LENS = np.array([[80.0, 0, 48], [0, 80.0, 32], [0, 0, 1]])


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene.random(3, num_frames=FRAMES, width=WIDTH, height=HEIGHT, intrinsics=LENS)


@pytest.fixture(scope="module")
def arrays(scene) -> dict:
    return exact_arrays(scene, GRID)


@pytest.fixture(scope="module")
def result(scene, tmp_path_factory) -> Path:
    return write_exact(tmp_path_factory.mktemp("exact"), scene, GRID, seams=(4,))


@pytest.fixture(scope="module")
def exported(result) -> Path:
    for name in FORMATS:
        export_one(str(result), name)
    return result / "exports"


def again(result: Path, folder: Path, **changed) -> Path:
    """The same results with other arrays: task -> key -> array."""
    shutil.copytree(result, folder, ignore=shutil.ignore_patterns("exports"))
    for task, arrays in changed.items():
        with np.load(folder / f"{task}.npz") as file:
            np.savez(folder / f"{task}.npz", **(dict(file) | arrays))
    return folder


def test_every_export_says_what_its_numbers_are(exported):
    assert sorted(path.name for path in exported.iterdir()) == sorted(FORMATS)
    for name in FORMATS:
        about = json.loads((exported / name / "about.json").read_text())
        assert about["model"] == DIGEST and "model units" in about["unit"] and "first frame" in about["world"]
        assert [(window["first"], window["last"]) for window in about["windows"]] == [(0, 7), (4, FRAMES - 1)]
    inside = ["ply/points.ply", "colmap/sparse/0/images.txt", "nerfstudio/transforms.json", "trajectory/tum.txt"]
    for name in (*inside, "gltf/scene.glb", "opend4rt/manifest.json", "depth/depth_000000.png"):
        head = (exported / name).read_bytes()
        assert DIGEST.encode() in head and b"model units" in head, f"{name} itself says it too"


def test_colmap_reads_its_model_and_adjusts_it_towards_the_truth(result, arrays, tmp_path):
    """The cameras are wrong by a centimetre and half a degree; where points were seen is exact."""
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed")
    truth = arrays["cameras"]["world_from_cam"].astype(np.float64)
    rng, poses = np.random.default_rng(0), truth.copy()
    poses[1:, :3, 3] += 0.01 * rng.standard_normal((FRAMES - 1, 3))
    turns = Rotation.from_rotvec(0.008 * rng.standard_normal((FRAMES - 1, 3))).as_matrix()
    poses[1:, :3, :3] = poses[1:, :3, :3] @ turns
    folder = again(result, tmp_path / "wrong", cameras={"world_from_cam": poses.astype(np.float32)})
    notes = export_one(str(folder), "colmap")
    assert "stand still" in notes[-1]

    model = pycolmap.Reconstruction(folder / "exports" / "colmap" / "sparse" / "0")
    assert model.num_images() == FRAMES and model.num_cameras() == 1

    def found() -> np.ndarray:
        images = sorted(model.images.values(), key=lambda image: image.image_id)
        cam_from_world = np.stack([np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]]) for image in images])
        return np.linalg.inv(cam_from_world)

    np.testing.assert_allclose(found(), poses, atol=1e-5)

    def reprojection() -> float:
        model.update_point_3d_errors()
        return np.mean([point.error for point in model.points3D.values() if point.track.length()])

    before, error_before = reprojection(), position_errors(found(), truth, "sim3").mean()
    options = pycolmap.BundleAdjustmentOptions()
    options.refine_focal_length = options.refine_extra_params = options.print_summary = False
    pycolmap.bundle_adjustment(model, options)
    after, error_after = reprojection(), position_errors(found(), truth, "sim3").mean()
    assert before > 0.3 and after < 0.02, "it converges"
    assert error_after < 0.2 * error_before, f"{error_before} to {error_after}"
    turned_before, _ = relative_errors(align(poses, truth, "sim3"), truth)
    turned_after, _ = relative_errors(align(found(), truth, "sim3"), truth)
    assert np.mean(turned_after) < 0.2 * np.mean(turned_before)


def test_points_of_the_colmap_model_stand_still_and_are_where_their_views_say(exported, arrays, scene):
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed")
    model = pycolmap.Reconstruction(exported / "colmap" / "sparse" / "0")
    tracked = {key: point for key, point in model.points3D.items() if point.track.length()}
    assert len(tracked) > 0.4 * GRID**2 and min(point.track.length() for point in tracked.values()) >= 2
    for point in tracked.values():
        for element in point.track.elements:
            image = model.images[element.image_id]
            uv = image.points2D[element.point2D_idx].xy
            np.testing.assert_allclose(image.project_point(point.xyz), uv, atol=0.2)
    xyz, visible = arrays["tracks"]["xyz"], arrays["tracks"]["visible"]
    moved = np.linalg.norm(xyz - xyz[:, :1], axis=-1).max(axis=1) > 0.3
    still = np.array([point.xyz for point in tracked.values()])
    assert moved.any() and visible[moved].sum(axis=1).max() > 2, "or this is easy"
    for n in np.flatnonzero(moved):
        assert np.linalg.norm(still - np.median(xyz[n, visible[n]], axis=0), axis=1).min() > 1e-3
    images = exported / "colmap" / "images"
    assert {image.name for image in model.images.values()} == {path.name for path in images.iterdir()}
    np.testing.assert_allclose(np.asarray(Image.open(images / "frame_000003.jpg")), scene.render(3, 1).image, atol=60)


def test_nerfstudio_cameras_see_the_cloud_where_ours_do(exported, arrays):
    document = json.loads((exported / "nerfstudio" / "transforms.json").read_text())
    assert (document["w"], document["h"], len(document["frames"])) == (WIDTH, HEIGHT, FRAMES)
    cloud = np.asarray(trimesh.load(exported / "nerfstudio" / document["ply_file_path"]).vertices)
    turn = np.array(document["applied_transform"])
    world = cloud @ turn[:3, :3]  # turned back
    for t, frame in enumerate(document["frames"]):
        assert (exported / "nerfstudio" / frame["file_path"]).exists()
        local = transform(np.linalg.inv(frame["transform_matrix"]), cloud)  # x right, y up, looking along -z
        in_front = local[:, 2] < -0.1
        x, y, z = local[in_front].T
        theirs = np.stack([frame["fl_x"] * x / -z + frame["cx"], frame["fl_y"] * -y / -z + frame["cy"]], axis=1)
        ours = transform(np.linalg.inv(arrays["cameras"]["world_from_cam"][t].astype(float)), world[in_front])
        np.testing.assert_allclose(theirs, project(ours, LENS), atol=0.01)


def test_trajectories_are_the_cameras(exported, arrays):
    pose = arrays["cameras"]["world_from_cam"]
    rows = np.loadtxt(exported / "trajectory" / "tum.txt")
    assert rows[:, 0].tolist() == list(range(FRAMES))
    np.testing.assert_allclose(rows[:, 1:4], pose[:, :3, 3], atol=1e-6)
    np.testing.assert_allclose(Rotation.from_quat(rows[:, 4:]).as_matrix(), pose[:, :3, :3], atol=1e-6)
    matrices = np.loadtxt(exported / "trajectory" / "matrices.txt").reshape(-1, 4, 4)
    np.testing.assert_allclose(matrices, pose, atol=1e-6)
    np.testing.assert_allclose(np.loadtxt(exported / "trajectory" / "intrinsics.txt")[0].reshape(3, 3), LENS)


def numbers(scene: pygltflib.GLTF2, accessor: int) -> np.ndarray:
    found = scene.accessors[accessor]
    view, columns = scene.bufferViews[found.bufferView], {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[found.type]
    content = scene.binary_blob()[view.byteOffset : view.byteOffset + view.byteLength]
    return np.frombuffer(content, "<f4").reshape(found.count, columns)


def test_the_gltf_scene_moves_as_the_tracks_and_the_camera_do(exported, arrays):
    path = exported / "gltf" / "scene.glb"
    scene = pygltflib.GLTF2().load(str(path))
    animation, root = scene.animations[0], scene.nodes[0]
    turn = Rotation.from_quat(root.rotation).as_matrix()
    played = {}
    for channel in animation.channels:
        sampler = animation.samplers[channel.sampler]
        name = scene.nodes[channel.target.node].name
        played[name, channel.target.path] = numbers(scene, sampler.output)
        np.testing.assert_allclose(numbers(scene, sampler.input)[:, 0], np.arange(FRAMES) / 10)
    xyz, visible = arrays["tracks"]["xyz"], arrays["tracks"]["visible"]
    for n in (0, 77, GRID**2 - 1):
        shown = played[f"track {n}", "translation"] @ turn.T
        np.testing.assert_allclose(shown, xyz[n] * [1, -1, -1], atol=1e-5)  # y up
        np.testing.assert_array_equal(played[f"track {n}", "scale"][:, 0], np.where(visible[n], 1, 0.5))
    ahead = Rotation.from_quat(played["camera", "rotation"]).apply([0, 0, -1])
    np.testing.assert_allclose(ahead, arrays["cameras"]["world_from_cam"][:, :3, 2], atol=1e-5)
    opened = trimesh.load(path)
    assert len(opened.geometry["points"].vertices) == FRAMES * WIDTH * HEIGHT


def test_st4rtrack_files_are_in_the_camera_of_the_first_frame(exported, arrays):
    folder = exported / "st4rtrack"
    names = {"pts3d1", "pts3d2", "conf1", "conf2", "img1", "img2"}
    assert {path.name.split("_")[0] for path in folder.iterdir()} == names | {"about.json"}
    for j in (0, 7):
        head1, head2 = np.load(folder / f"pts3d1_p{j}.npy"), np.load(folder / f"pts3d2_p{j}.npy")
        assert head1.shape == (GRID, GRID, 6) and head2.shape == (HEIGHT, WIDTH, 6) and head2[..., 3:].max() <= 1
        np.testing.assert_allclose(head1[..., :3].reshape(-1, 3), arrays["tracks"]["xyz"][:, j], atol=1e-6)
        cloud = arrays["points"]["xyz"][arrays["points"]["frame"] == j]
        np.testing.assert_allclose(head2[..., :3].reshape(-1, 3), cloud, atol=1e-4)
        np.testing.assert_allclose(np.load(folder / f"conf1_p{j}.npy"), 10, rtol=1e-5)


def test_depth_images_give_the_depth_by_their_scale(result, arrays, tmp_path):
    depth = arrays["depth"]["depth"].copy()
    depth[2, :5] = np.nan
    folder = again(result, tmp_path / "holes", depth={"depth": depth})
    export_one(str(folder), "depth")
    image = Image.open(folder / "exports" / "depth" / "depth_000002.png")
    values, scale = np.asarray(image), float(image.text["scale"])
    assert (values[:5] == 0).all() and values[5:].all()
    np.testing.assert_allclose(values[5:] * scale, depth[2, 5:], atol=scale)


def test_the_package_of_opend4rt_holds_tracks_in_both_frames(exported, arrays):
    with np.load(exported / "opend4rt" / "assets" / "tracks.npz", allow_pickle=False) as tracks:
        np.testing.assert_array_equal(tracks["tracks_xyz_local"], arrays["tracks"]["xyz_cam"])
        np.testing.assert_allclose(tracks["tracks_xyz_ref0"], arrays["tracks"]["xyz"], atol=1e-6)
    manifest = json.loads((exported / "opend4rt" / "manifest.json").read_text())
    there = sorted(path.name for path in (exported / "opend4rt" / "assets").iterdir())
    assert manifest["assets"] == there and {"input_video.mp4", "depth_pred.mp4"} <= set(there)


def test_an_export_is_made_anew_and_nothing_of_the_old_one_stays(result, tmp_path):
    folder = again(result, tmp_path / "again")
    export_one(str(folder), "ply")
    first = (folder / "exports" / "ply" / "points.ply").read_bytes()
    (folder / "exports" / "ply" / "old.txt").write_text("")
    export_one(str(folder), "ply")
    assert sorted(path.name for path in (folder / "exports" / "ply").iterdir()) == ["about.json", "points.ply"]
    assert (folder / "exports" / "ply" / "points.ply").read_bytes() == first
    assert [path.name for path in (folder / "exports").iterdir()] == ["ply"], "nothing half-made stays beside it"


def test_without_the_video_there_are_no_images_and_it_is_said(result, tmp_path):
    folder = again(result, tmp_path / "alone")
    document = json.loads((folder / "result.json").read_text())
    document["source"]["uri"] = str(tmp_path / "gone")
    (folder / "result.json").write_text(json.dumps(document))
    for name in ("colmap", "nerfstudio", "st4rtrack", "opend4rt"):
        notes = export_one(str(folder), name)
        assert any("gone" in note for note in notes), (name, notes)
    assert (folder / "exports" / "colmap" / "sparse" / "0" / "points3D.txt").exists()


def test_what_a_result_lacks_is_named(scene, arrays, result, tmp_path):
    nothing = {
        task: {key: np.full_like(array, np.nan) for key, array in found.items() if array.dtype == np.float32}
        for task, found in arrays.items()
    }
    unknown = again(result, tmp_path / "unknown", **nothing)
    wrong = {
        "colmap": "0 frames with a known camera",
        "nerfstudio": "0 frames with a known camera",
        "depth": "known nowhere",
        "gltf": "nothing to show",
    }
    for name, words in wrong.items():
        with pytest.raises(ValueError, match=words):
            export_one(str(unknown), name)
    assert not list((unknown / "exports").glob("*")), "nothing half-made"

    frames = result.parent / "scene-frames"
    few = write_of(tmp_path / "few", frames, {"depth": arrays["depth"]})
    for name in ("colmap", "ply", "st4rtrack", "opend4rt", "trajectory"):
        with pytest.raises(ValueError, match=r"has no (tracks|points|cameras).*infer with --tasks depth,"):
            export_one(str(few), name)


def test_a_folder_that_is_no_whole_result_is_refused_in_words(result, tmp_path):
    with pytest.raises(ValueError, match=r"holds no results .*result\.json is missing"):
        export_one(str(tmp_path), "ply")

    part = again(result, tmp_path / "part")
    (part / "points.npz").unlink()
    with pytest.raises(ValueError, match=r"lacks points\.npz"):
        export_one(str(part), "ply")

    cut = again(result, tmp_path / "cut")
    (cut / "points.npz").write_bytes((cut / "points.npz").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"points\.npz in .*cut is damaged"):
        export_one(str(cut), "ply")

    document = json.loads((result / "result.json").read_text())
    for change, words in (({"schema": 0}, "schema 0, this program reads 1"), ({"video": 3}, "video")):
        other = again(result, tmp_path / words[:8])
        (other / "result.json").write_text(json.dumps(document | change))
        with pytest.raises(ValueError, match=words):
            export_one(str(other), "ply")
    foreign = again(result, tmp_path / "foreign")
    (foreign / "result.json").write_text('{"loss": 3.5}')
    with pytest.raises(ValueError, match="schema"):
        export_one(str(foreign), "ply")
    shorter = again(result, tmp_path / "shorter", depth={"depth": np.zeros((3, 4, 5), np.float32)})
    with pytest.raises(ValueError, match=r"depth\.npz .*depth is \(3, 4, 5\), it must be \(T, h, w\) with T = 10"):
        export_one(str(shorter), "depth")


@pytest.mark.parametrize(
    ("task", "key", "change", "message"),
    [
        ("tracks", "visible", lambda x: x[:, :-1], r"visible is \(\d+, 9\), it must be \(N, T\)"),
        ("tracks", "confidence", lambda x: x[:-1], r"confidence is \(\d+, 10\), it must be \(N, T\) with T = 10, N = "),
        ("tracks", "t_src", lambda x: x + 99, "t_src has 99 to 99, frames are from 0 to 9"),
        ("tracks", "t_src", lambda x: x - 1, "t_src has -1 to -1"),
        ("tracks", "xyz", lambda x: x.astype(str), "xyz is <U32, it must be float"),
        ("tracks", "xyz", lambda x: x.astype(complex), "xyz is complex128"),
        ("points", "rgb", lambda x: x.astype(float), "rgb is float64, it must be colour"),
        ("points", "frame", lambda x: x[:-1], r"frame is .*it must be \(P\)"),
        ("points", "xyz", lambda x: np.asarray(x[0, 0]), r"xyz is \(\), it must be \(P, 3\)"),
        ("depth", "depth", lambda x: x[:, :0], "h = 0"),
        ("cameras", "world_from_cam", lambda x: x[:, :3], r"world_from_cam is \(10, 3, 4\)"),
        ("cameras", "intrinsics", lambda x: 0 * x, "focal length"),
    ],
)
def test_arrays_that_are_not_as_the_table_has_them_are_refused(task, key, change, message, result, arrays):
    with pytest.raises(ValueError, match=message):
        check_arrays(task, arrays[task] | {key: change(arrays[task][key])}, 10)
    check_arrays(task, arrays[task], 10)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fps": 0.0}, r"video\.fps"),
        ({"width": 0}, r"video\.width"),
        ({"frame_numbers": []}, r"video\.frame_numbers"),
        ({"seconds": [0.0]}, "1 seconds and 10 frame_numbers"),
        ({"seconds": [math.nan] * 10}, r"video\.seconds"),
        ({"frame_numbers": [0, 1]}, "a window has frames that are not of the clip"),
    ],
)
def test_a_video_that_cannot_be_is_refused(changed, message, result, tmp_path):
    document = json.loads((result / "result.json").read_text())
    (tmp_path / "result.json").write_text(
        json.dumps(document | {"all_files": [], "video": document["video"] | changed})
    )
    with pytest.raises(ValueError, match=rf"result\.json is damaged \(.*{message}"):
        read_result(str(tmp_path))


def test_the_command_makes_what_can_be_made_and_says_what_cannot(result, arrays, tmp_path, capsys):
    frames = result.parent / "scene-frames"
    write_of(tmp_path / "few", frames, {"cameras": arrays["cameras"]})
    write_of(tmp_path / "other", frames, {"cameras": arrays["cameras"]})
    export(str(tmp_path), formats="trajectory")
    assert (tmp_path / "few/exports/trajectory/tum.txt").exists() and "other/exports" in capsys.readouterr().out
    (tmp_path / "few" / "page.html").write_text("old")
    export(str(tmp_path), formats="page")
    assert "scene-frames" in (tmp_path / "few" / "page.html").read_text()
    assert "2 videos" in (tmp_path / "index.html").read_text()
    with pytest.raises(ValueError, match=r"(?s)2 of 4 exports could not be made.*ply of few: .* has no points"):
        export(str(tmp_path), formats="trajectory,ply")
    with pytest.raises(ValueError, match="'plyy': choose from ply, colmap"):
        export(str(tmp_path), formats="plyy")
    with pytest.raises(ValueError, match="holds no results"):
        export(str(tmp_path / "few" / "exports"))


def test_results_on_s3_are_exported_there(result, s3_uri):
    """Folders in an export too; made again, nothing of the old one stays."""
    fs = S3FileSystem()
    for file in result.iterdir():
        if file.is_file():
            fs.put_file(str(file), f"{s3_uri}/out/scene/{file.name}")
    fs.pipe_file(f"{s3_uri}/out/scene/exports/colmap/sparse/0/old.txt", b"")
    export(f"{s3_uri}/out", formats="colmap,page")
    there = {path.partition("colmap/")[2] for path in fs.find(f"{s3_uri}/out/scene/exports")}
    photos = {f"images/frame_{t:06d}.jpg" for t in range(FRAMES)}
    assert there == photos | {"about.json"} | {f"sparse/0/{name}.txt" for name in ("cameras", "images", "points3D")}
    assert b"1 video<" in fs.cat_file(f"{s3_uri}/out/index.html")
