"""What may be named as a video, which frames of it are taken, and when they were shown."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow
import pytest
from PIL import ExifTags, Image
from pyarrow import parquet

from pipelines.pictures.video_file import write_video
from pipelines.results.finding import find_sources
from pipelines.results.selection import Selection, check_windows
from pipelines.results.sources import Source, check_video, look_at, read_video, video_digest
from pipelines.whole import write_file

TWO = np.arange(2 * 8 * 12 * 3, dtype=np.uint8).reshape(2, 8, 12, 3)


def images(folder: Path, count: int = 2) -> Path:
    folder.mkdir(parents=True)
    for k in range(count):
        Image.fromarray(np.full((8, 12, 3), 50 * k, np.uint8)).save(folder / f"{k}.png")
    return folder


def names(*places: object) -> list[str]:
    return [source.name for source in find_sources([str(place) for place in places], None)]


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """A folder of videos, of each kind, called as people call them."""
    folder = tmp_path_factory.mktemp("videos")
    for name in ("take 10.mp4", "take 9.MOV", "Übung.mkv"):
        (folder / name).touch()
    images(folder / "room v2.5")
    images(folder / "room v2.5 left" / "rgb")
    (folder / "notes.txt").write_text("of that day")
    (folder / ".hidden.mp4").touch()
    return folder


MANY = ["take 9", "take 10", "Übung", "room v2.5", "room v2.5 left__rgb"]


def test_a_folder_of_videos_and_of_folders_is_many_videos(many):
    assert names(many) == MANY
    sources = find_sources([str(many)], None)
    assert Path(sources[0].uri) == many / "take 9.MOV" and sources[3].uri == str(many / "room v2.5")
    assert names(many / "room v2.5") == ["room v2.5"]  # a folder of images is one


def test_what_is_passed_over_is_said(many, tmp_path, capsys):
    names(many)
    assert capsys.readouterr().out.startswith(f"passed over in {many}: notes.txt, .hidden.mp4; a video may be named")
    frames = images(tmp_path / "frames")
    (frames / "2.webp").touch()
    (frames / "more").mkdir()
    (frames / "._0.png").touch()  # which macOS leaves
    assert names(frames) == ["frames"]
    assert capsys.readouterr().out.startswith(f"passed over in {frames}: 2.webp, more; ")
    names(many / "room v2.5")
    assert capsys.readouterr().out == ""


def test_an_s3_prefix_is_a_folder(many, s3_uri):
    for place, _, files in os.walk(many):
        for file in files:
            path = Path(place, file)
            write_file(f"{s3_uri}/{path.relative_to(many).as_posix()}", path.read_bytes())
    assert sorted(names(s3_uri)) == sorted(MANY)


def test_a_mixed_folder_is_refused(tmp_path):
    (images(tmp_path / "day") / "clip.mp4").touch()
    with pytest.raises(ValueError, match=r"day holds images, as 0\.png, and videos, as clip\.mp4.*Move"):
        names(tmp_path / "day")
    with pytest.raises(ValueError, match=r"day holds images.*and videos"):
        names(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no \.png or \.jpg images in .*empty, and no videos"):
        names(tmp_path / "empty")


def test_lists_name_places_from_where_they_lie(many, tmp_path):
    lines = ["# mine", "", "take 9.MOV", "  room v2.5 ", str(many / "Übung.mkv")]
    (many / "list.txt").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    assert names(many / "list.txt") == ["take 9", "room v2.5", "Übung"]
    parquet.write_table(pyarrow.table({"id": [1, 2], "uri": ["take 9.MOV", "take 10.mp4"]}), many / "list.parquet")
    assert names(many / "list.parquet", many / "room v2.5") == ["take 9", "take 10", "room v2.5"]
    parquet.write_table(pyarrow.table({"clip": ["take 9.MOV"]}), many / "one.parquet")
    assert names(many / "one.parquet") == ["take 9"]


def test_wrong_lists_are_named_all_at_once(many, tmp_path):
    parquet.write_table(pyarrow.table({"id": [1], "name": ["x"]}), tmp_path / "others.parquet")
    parquet.write_table(pyarrow.table({"uri": ["x", None]}), tmp_path / "gap.parquet")
    (tmp_path / "no.parquet").write_bytes(b"no parquet")
    (tmp_path / "none.txt").write_text("# nothing\n")
    (tmp_path / "latin.txt").write_bytes("Übung.mkv".encode("latin-1"))
    (tmp_path / "lists.txt").write_text("none.txt\n")
    (tmp_path / "missing.txt").write_text("one.mp4\n/two.mp4\n")
    wrong = ["others.parquet", "gap.parquet", "no.parquet", "none.txt", "latin.txt", "lists.txt", "missing.txt"]
    with pytest.raises(ValueError, match="8 things are wrong") as error:
        names(*(tmp_path / name for name in wrong))
    for part in (
        "others.parquet has no column 'uri' of text, without gaps, but id, name",
        "gap.parquet has no column 'uri'",
        "no.parquet cannot be read as Parquet",
        "none.txt lists no video",
        "latin.txt is no list of videos in UTF-8",
        "lists.txt lists none.txt, a list itself",
        f"video {tmp_path}/one.mp4 does not exist",
        "video /two.mp4 does not exist",
    ):
        assert part in str(error.value)


def test_images_alone_are_one_video(tmp_path):
    folder = images(tmp_path / "shots", 3)
    (source,) = find_sources([str(folder / "2.png"), str(folder / "0.png")], None)
    video = read_video(source, Selection(), 16)
    assert source.name == "2__0"
    assert [frame[0, 0, 0] for frame in video.frames] == [100, 0]
    with pytest.raises(ValueError, match=r"9\.png does not exist"):
        find_sources([str(folder / "2.png"), str(folder / "9.png")], None)


@pytest.mark.parametrize("arrays", [{"video": TWO, "fps": np.float32(3)}, {"anything": TWO}, {"video": TWO[..., 0]}])
def test_an_array_of_frames_is_a_video(arrays, tmp_path):
    np.savez_compressed(tmp_path / "clip.npz", **arrays)
    video = read_video(Source(str(tmp_path / "clip.npz")), Selection(), 16)
    expected = TWO if "video" not in arrays or arrays["video"].ndim == 4 else TWO[..., :1].repeat(3, axis=-1)
    np.testing.assert_array_equal(np.stack([*video.frames]), expected)
    assert video.seconds is None and names(tmp_path / "clip.npz") == ["clip"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"video": TWO.astype(np.float32)}, r"video of .*clip\.npz is \(2, 8, 12, 3\) float32: frames are"),
        ({"video": TWO[0, 0]}, r"is \(12, 3\) uint8"),
        ({"a": TWO, "b": TWO}, "has no array 'video', but a, b: name its frames so"),
        ({"video": np.array([{}, {}], dtype=object)}, "pickled Python objects: refused"),
        ({"video": TWO[:1]}, "has 1 frame"),
    ],
)
def test_other_arrays_are_refused(arrays, message, tmp_path):
    np.savez(tmp_path / "clip.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        look_at(Source(str(tmp_path / "clip.npz")), Selection(), 16)


# --- when frames are shown --------------------------------------------------------------------------------------------

UNEVEN = [0, 40, 80, 200, 220, 500, 540, 1000]  # milliseconds, as a phone films in changing light


@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("uneven") / "phone.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 64, 36, "yuv420p", Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        for k, time in enumerate(UNEVEN):
            frame = av.VideoFrame.from_ndarray(np.full((36, 64, 3), 30 * k, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_frames_have_the_times_of_the_file(uneven):
    seconds = look_at(Source(str(uneven)), Selection(), 16).seconds
    np.testing.assert_allclose(seconds, np.array(UNEVEN) / 1000, atol=1e-4)
    part = look_at(Source(str(uneven)), Selection(start=1, step=3), 16)
    assert part.frame_numbers.tolist() == [1, 4, 7]
    np.testing.assert_allclose(part.seconds, [0.04, 0.22, 1.0], atol=1e-4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"fps": 10.0}, [0, 2, 3, 4, 5, 6, 7]),  # at 0, 0.1, ... 1 s, what is on the screen; none twice
        ({"fps": 4.0}, [0, 4, 5, 6, 7]),
        ({"fps": 4.0, "num_frames": 3}, [0, 4, 5]),
        ({"fps": 5.0, "start": 3}, [3, 4, 6, 7]),
        ({"fps": 1000.0}, list(range(8))),
    ],
)
def test_so_many_frames_a_second_are_those_shown_then(uneven, options, expected):
    video = look_at(Source(str(uneven)), Selection(**options), 16)
    assert video.frame_numbers.tolist() == expected and video.fps == options["fps"]


@pytest.mark.parametrize(
    ("options", "least", "expected"),
    [
        ({}, 2, [0, 1]),
        ({"start": 2, "step": 2}, 2, [2, 4]),
        ({"num_frames": 4}, 1, [0, 1, 2, 3]),
        ({"fps": 4.0}, 3, [0, 4, 5]),  # these are not among the first three
        ({}, 20, list(range(8))),
        ({}, None, list(range(8))),
    ],
)
def test_a_check_tells_as_many_frames_as_it_must(uneven, options, least, expected):
    """Perhaps more, but never others."""
    chosen, size = check_video(Source(str(uneven)), Selection(**options), least)
    assert chosen[: len(expected)].tolist() == expected and size == (36, 64)
    whole = look_at(Source(str(uneven)), Selection(**options), 16).frame_numbers
    assert chosen.tolist() == whole[: len(chosen)].tolist()


def test_a_check_refuses_what_the_work_would(uneven):
    for options in ({"num_frames": 9}, {"fps": 4.0, "num_frames": 6}, {"start": 7}):
        for look in (lambda *given: check_video(*given, 2), lambda *given: look_at(*given, 16)):
            with pytest.raises(ValueError, match=r"phone\.mp4 has 8 frames.*: fewer than"):
                look(Source(str(uneven)), Selection(**options))


def test_without_times_there_is_no_choice_by_them(tmp_path):
    with pytest.raises(ValueError, match="does not say when its frames were taken: give --step"):
        look_at(Source(str(images(tmp_path / "shots"))), Selection(fps=2.0), 16)
    for options, message in (
        ({"fps": 0.0}, "--fps 0 must be above 0"),
        ({"fps": float("nan")}, "--fps nan must be above 0"),
        ({"fps": 5.0, "step": 2}, "both say which frames to take"),
    ):
        with pytest.raises(ValueError, match=message):
            Selection(**options)


def test_a_video_that_changes_under_the_hands_is_named(tmp_path):
    write_video(tmp_path / "clip.mp4", TWO.repeat(3, axis=0), 10.0)
    video = look_at(Source(str(tmp_path / "clip.mp4")), Selection(), 16)
    write_video(tmp_path / "clip.mp4", TWO[::-1].repeat(3, axis=0), 10.0)
    with pytest.raises(ValueError, match=r"clip\.mp4 has changed since its first frame was read"):
        video.clip[[0, 1]]


def test_a_video_that_is_only_touched_is_the_same(tmp_path):
    write_video(tmp_path / "clip.mp4", TWO.repeat(3, axis=0), 10.0)
    video = look_at(Source(str(tmp_path / "clip.mp4")), Selection(), 16)
    (tmp_path / "clip.mp4").touch()
    assert video.clip[[0, 1]].shape == (2, 16, 16, 3)
    (tmp_path / "link.mp4").symlink_to("clip.mp4")
    linked = look_at(Source(str(tmp_path / "link.mp4")), Selection(), 16)
    write_video(tmp_path / "clip.mp4", TWO[::-1].repeat(3, axis=0), 10.0)
    with pytest.raises(ValueError, match=r"link\.mp4 has changed since its first frame was read"):
        next(iter(linked.frames))


def test_images_of_several_sizes_are_no_video(tmp_path):
    """Known before any is decoded, so that it is refused before the work."""
    folder = images(tmp_path / "frames", 3)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    Image.fromarray(np.zeros((12, 8, 3), np.uint8)).save(folder / "3.jpg", exif=turned)
    assert video_digest(Source(str(folder)), Selection())  # 8 x 12, as it is shown
    Image.fromarray(np.zeros((12, 8, 3), np.uint8)).save(folder / "4.png")
    message = r"4\.png is \(12, 8\) \(H, W\), .*0\.png is \(8, 12\): the frames of a video must have one size"
    with pytest.raises(ValueError, match=message):
        video_digest(Source(str(folder)), Selection())
    assert video_digest(Source(str(folder)), Selection(num_frames=4))
    (folder / "4.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"4\.png cannot be read as an image \(it is empty\)"):
        video_digest(Source(str(folder)), Selection())


@pytest.mark.parametrize(
    ("window", "common", "message"),
    [
        (1, None, "--window 1 must be at least 2"),
        (None, 0, "--common 0 must be at least 1"),
        (4, 4, "--common 4 must be less than --window 4"),
    ],
)
def test_what_makes_no_windows(window, common, message):
    check_windows(4, 3)
    check_windows(None, None)
    with pytest.raises(ValueError, match=message):
        check_windows(window, common)
