"""Which videos are meant: files, folders, S3 prefixes and lists of them become one `Source` per video."""

import io
import posixpath
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from pipelines.datasets import reader
from pipelines.problems import Problems
from pipelines.raw.folder import RawFolder
from pipelines.raw.place import absolute, open_place, reachable
from pipelines.results.files import INDEX
from pipelines.results.footage import IMAGES, VIDEOS, natural
from pipelines.results.sources import Source
from pipelines.whole import read_file

LISTS = (".txt", ".parquet")
COLUMN = "uri"  # of a Parquet file with videos
LOOKED_AT = 16  # together
MAX_DEPTH = 5  # of folders of videos
TOLD = 5  # of the names that are passed over


def find_sources(videos: list[str], dataset: str | None) -> list[Source]:
    """One Source per video; with a dataset, per sequence found in these raw folders.

    | what is given                    | is                                                                        |
    |----------------------------------|---------------------------------------------------------------------------|
    | a file                           | a video                                                                   |
    | images, and nothing else         | one video, in the order given: two are a pair                             |
    | a folder of images               | one video, in the order of the numbers in their names                     |
    | a folder of videos, of folders   | all of them, called by their path in it                                   |
    | a .txt file                      | a place per line, absolute or from where the list lies; # is a remark     |
    | a .parquet file                  | the same, in its column `uri`, or the only one                            |

    ValueError, with all problems at once, if there is none, if one is missing, or if two would have the same results.
    """
    if not videos:
        raise ValueError("no video given: name at least one after --video")
    problems, sources, first = Problems(), [], {}
    if dataset is not None:
        for uri in videos:
            with problems.noted():
                sources += [Source(uri, dataset, name) for name in reader(dataset).find(RawFolder(uri))]
    elif all(uri.lower().endswith(IMAGES) for uri in videos) and len(videos) > 1:
        sources = [Source(videos[0], images=tuple(videos))]
        problems = _each(videos, _require_file, problems)[1]
    else:
        listed, problems = _each(videos, _listed, problems)
        found, problems = _each([uri for places in listed for uri in places], _sources_in, problems)
        sources = [source for each in found for source in each]
    for source in sources:
        if source.name == INDEX:
            problems.reasons.append(
                f"{source} would be written to {INDEX}/, which is the name of the job's page: rename it"
            )
        other = first.setdefault(source.name, source)
        if other is not source:
            problems.reasons.append(f"{other} and {source} would both be written to {source.name}/: rename one")
    problems.refuse()
    return sources


def _each(uris: list[str], work: Callable[[str], list], problems: Problems) -> tuple[list[list], Problems]:
    """What `work` gives for each place, looked at together; in the order given. What is wrong is noted."""

    def attempt(uri: str) -> list:
        with problems.noted():
            return work(uri)
        return []

    with ThreadPoolExecutor(LOOKED_AT) as pool:
        return list(pool.map(attempt, uris)), problems


def _require_file(uri: str) -> list:
    fs, path = open_place(uri)
    with reachable(uri):
        there, kept = fs.exists(path), fs.isfile(path) or fs.isdir(path)
    if not there:
        raise ValueError(f"video {uri} does not exist: check --video")
    if not kept:  # a pipe can be read once only, and opening it may wait for ever
        raise ValueError(f"video {uri} is neither a file nor a folder: save what comes out of it to a file first")
    return []


def _listed(uri: str) -> list[str]:
    """The places in a list; a place that is none is itself."""
    if not uri.lower().endswith(LISTS):
        return [uri]
    _require_file(uri)
    fs, path = open_place(uri)
    with reachable(uri):
        if fs.isdir(path):
            return [uri]
    lines = _lines(uri) if uri.lower().endswith(".txt") else _column(uri)
    if not lines:
        raise ValueError(f"{uri} lists no video: one place per line")
    if lists := [line for line in lines if line.lower().endswith(LISTS)]:
        raise ValueError(f"{uri} lists {lists[0]}, a list itself: name each list after --video")
    folder = posixpath.dirname(uri)
    return [absolute(line if line.startswith(("/", "s3://", "~/")) else posixpath.join(folder, line)) for line in lines]


def _lines(uri: str) -> list[str]:
    try:
        lines = [line.strip() for line in (read_file(uri) or b"").decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{uri} is no list of videos in UTF-8 ({error}): one place per line") from None
    return [line for line in lines if line and not line.startswith("#")]


def _column(uri: str) -> list[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(io.BytesIO(read_file(uri) or b""))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{uri} cannot be read as Parquet ({error}): write it again") from None
    name = COLUMN if COLUMN in table.column_names or len(table.column_names) != 1 else table.column_names[0]
    column = table.column(name).to_pylist() if name in table.column_names else [None]
    if not all(isinstance(value, str) and value for value in column):
        raise ValueError(
            f"{uri} has no column {COLUMN!r} of text, without gaps, but {', '.join(table.column_names)}: name the "
            "column with the places of the videos so"
        )
    return column


def _sources_in(uri: str) -> list[Source]:
    _require_file(uri)
    fs, path = open_place(uri)
    with reachable(uri):
        is_folder = fs.isdir(path)
    if not is_folder:
        return [Source(uri)]
    folder, passed_over = RawFolder(uri), []
    found = _below(folder, ".", passed_over)
    if passed_over:
        more = f" and {len(passed_over) - TOLD} more" if len(passed_over) > TOLD else ""
        print(f"passed over in {uri}: {', '.join(passed_over[:TOLD])}{more}; a video may be named by itself")
    if not found:
        raise ValueError(
            f"no .png or .jpg images in {uri}, and no videos: give a video file or a folder of images, or its --dataset"
        )
    return [Source(uri) if path == "." else Source(posixpath.join(uri, path), within=uri) for path in found]


def _below(folder: RawFolder, path: str, passed_over: list[str]) -> list[str]:
    """Paths of the videos in a folder; its own if it is one. ValueError if it is neither one nor many.

    Adds to `passed_over` what is not looked at: other files, hidden ones that are called like a video, and what lies
    too deep.
    """
    folders, files = folder.listdir(path)
    images = [name for name in files if name.lower().endswith(IMAGES)]
    videos = [name for name in files if name.lower().endswith(VIDEOS)]
    hidden = [name for name in folder.hidden(path) if name.lower().endswith((*IMAGES, *VIDEOS))]
    others = [*sorted({*files} - {*images, *videos}), *hidden]
    if images and videos:
        raise ValueError(
            f"{posixpath.normpath(posixpath.join(folder.uri, path))} holds images, as {images[0]}, and videos, as "
            f"{videos[0]}: is it one video or many? Move the ones or the others to a folder of their own"
        )
    deeper = folders if images or path.count("/") + 1 >= MAX_DEPTH else []
    passed_over += [posixpath.normpath(posixpath.join(path, name)) for name in [*others, *deeper]]
    if images:
        return [path]
    found = [posixpath.normpath(posixpath.join(path, name)) for name in sorted(videos, key=natural)]
    if not deeper:
        for name in sorted(folders, key=natural):
            found += _below(folder, posixpath.normpath(posixpath.join(path, name)), passed_over)
    return found
