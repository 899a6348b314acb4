"""`python -m pipelines export OUT`: results of `infer` in the formats of other programs, without the model.

Made from the result folders alone, as often as one likes, into NAME/exports/FORMAT/ of each video.
"""

from pipelines.log import say, shown
from pipelines.problems import alike, counted
from pipelines.results.reading import find_results

# The libraries of the formats take a second to import and are not needed to print help: see below.


def export(place: str, /, *, formats: str = "all") -> None:
    """Write results in the formats of other programs, in place of what an earlier call has written.

    Args:
        place: What `infer --out` has written: the folder or s3:// URI of all videos, or of one.
        formats: Which, separated by commas. ply: point cloud. colmap: photos, cameras and static tracks seen from
            several frames. nerfstudio: transforms.json. trajectory: cameras as TUM and as matrices. gltf: animated
            scene. st4rtrack, opend4rt: the files of these projects. depth: 16-bit PNG. page: page.html of each video
            and index.html of all, again, in their places.
    """
    from pipelines.results.exports.made import FORMATS, export_one
    from pipelines.results.page.job_page import write_index
    from pipelines.results.page.video_page import rewrite_page

    formats_and_page = [*FORMATS, "page"]
    chosen = formats_and_page if formats == "all" else [name.strip() for name in formats.split(",")]
    if unknown := sorted(set(chosen) - set(formats_and_page)):
        listed = ", ".join(formats_and_page)
        raise ValueError(f"--formats has {', '.join(map(repr, unknown))}: choose from {listed}, or all")
    found = find_results(place)
    noted, failed = {}, {}
    work = [(uri, name) for uri in found for name in chosen]
    for uri, name in shown(work, len(work), "export", "export", delay=2):
        video = uri.rpartition("/")[2]
        try:
            notes = rewrite_page(uri) if name == "page" else export_one(uri, name)
        except ValueError as error:
            failed[f"{name} of {video}"] = str(error)
            continue
        say(f"{uri}/page.html" if name == "page" else f"{uri}/exports/{name}")
        if notes:
            noted[f"{name} of {video}"] = "; ".join(notes)
    if "page" in chosen and found != [place.rstrip("/")]:
        write_index(place.rstrip("/"), {})
    for line in alike(noted):
        say(f"noted {line}")
    if failed:
        listed = "\n".join(f"  {name}: {reason}" for name, reason in failed.items())
        raise ValueError(f"{len(failed)} of {len(work)} exports could not be made\n{listed}")
    say(f"{place}: {', '.join(chosen)} of {counted(len(found), 'video')}")
