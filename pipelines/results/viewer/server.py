"""The viewer's controls: which video, which moment, what of it; and the loop that plays."""

import threading
import time
from pathlib import PurePosixPath

import numpy as np
import viser

from model.recipes.asking import AnsweringModel
from pipelines.results.files import model_in_words
from pipelines.results.reading import read_result
from pipelines.results.sources import look_at
from pipelines.results.viewer.live import Live, pixel_of
from pipelines.results.viewer.opened import find_openable, open_folder
from pipelines.results.viewer.stage import WORST, Shown, Stage
from pipelines.results.viewer.truth import track_errors

UPS = ("-y", "+y", "+z", "-z", "+x", "-x")
SPEEDS = ("0.1", "0.25", "0.5", "1", "2", "4")
APART = 1.3  # of its extent: how far to the right what stands beside a result is


class Viewer:
    """Serves at once; `play` draws until it is interrupted.

    Args:
        place: folders to choose from, and `beside`, `truth`: those with the same name in them are shown to the right.
        model: is asked for the track of what is clicked.
    """

    def __init__(
        self,
        place: str,
        host: str,
        port: int,
        beside: tuple[str, ...] = (),
        truth: str | None = None,
        model: AnsweringModel | None = None,
    ) -> None:
        self.folders = {PurePosixPath(uri).name: uri for uri in find_openable(place)}
        others = [*beside] + [truth] * (truth is not None)
        self.others = [{PurePosixPath(uri).name: uri for uri in find_openable(other)} for other in others]
        self.has_truth, self.model, self.live = truth is not None, model, None
        self.server = viser.ViserServer(host=host, port=port, label="D4RT", verbose=False)
        self.lock = threading.RLock()
        self.shown, self.stages, self.playing = Shown(), [], False
        self.server.gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False)
        self.server.scene.set_up_direction("-y")
        if model is not None:
            self.server.scene.on_click()(lambda event: self.ask(event.ray_origin, event.ray_direction))
        self._add_controls()
        self.open(next(iter(self.folders)))

    def open(self, name: str) -> None:
        """Show one of the folders, from its first frame on; what is wrong with it is said where its facts are."""
        with self.lock:
            for stage in self.stages:
                stage.remove()
            self.stages, notes = [], []
            for uri in [self.folders[name], *self._partners(name, notes)]:
                try:
                    opened = open_folder(uri)
                except ValueError as error:
                    notes.append(str(error))
                    continue
                aside = sum((APART * stage.extent for stage in self.stages), 0.0)
                self.stages.append(Stage(self.server, f"/{len(self.stages)}", opened, aside))
                notes += opened.notes
            if self.has_truth and len(self.stages) > 1:
                notes.append(self._compare())
            self.live = self._begin_live(name, notes)
            self._describe(name, notes)
            self._add_timeline()
            self._look()
            self.go(0)

    def _look(self) -> None:
        """Behind and above the first camera, towards what it sees, for browsers here and to come."""
        if not self.stages:
            return
        stage = self.stages[0]
        eye = np.array([0.2, -0.25, -0.25]) * stage.extent
        for camera in (self.server.initial_camera, *(client.camera for client in self.server.get_clients().values())):
            camera.position, camera.look_at = eye, stage.middle

    def _partners(self, name: str, notes: list[str]) -> list[str]:
        """The folders of that name in the other places; of a place with one folder alone, that one."""
        found = []
        for other in self.others:
            alone = next(iter(other.values())) if len(other) == len(self.folders) == 1 else None
            if uri := other.get(name, alone):
                found.append(uri)
            else:
                notes.append(f"there is no {name} to stand beside it")
        return found

    def _begin_live(self, name: str, notes: list[str]) -> Live | None:
        if self.model is None or not self.stages:
            return None
        try:
            result = read_result(self.folders[name])
            video = look_at(result.frames.source, result.frames.selection, self.model.config.image_size)
        except ValueError as error:
            notes.append(f"clicks are not answered: {error}")
            return None
        notes.append("click a point: the model is asked for its track")
        return Live(self.model, self.stages[0].opened, video.clip)

    def ask(self, origin: tuple[float, float, float], direction: tuple[float, float, float]) -> None:
        """Add the track of what a ray in the world meets at this moment."""
        if self.live is None:
            return
        with self.lock:
            stage = self.stages[0]
            try:
                uv_norm = pixel_of(stage.opened, self.shown.t, np.array(origin), np.array(direction))
                stage.opened = self.live.with_track(stage.opened, uv_norm, self.shown.t)
            except ValueError as error:
                self.answer.content = str(error)
                return
            if stage.errors is not None:
                stage.errors = np.concatenate([stage.errors, np.full((1, len(stage.opened)), np.nan)])
            self._tell_last(stage)
            self.draw()

    def _tell_last(self, stage: Stage) -> None:
        tracks, t = stage.opened.arrays["tracks"], self.shown.t
        x, y, z = tracks["xyz"][-1, t]
        seen = int(tracks["visible"][-1].sum())
        self.answer.content = (
            f"asked in frame {t}: at {x:.3f}, {y:.3f}, {z:.3f} in the world, confidence "
            f"{tracks['confidence'][-1, t]:.2f}; seen in {seen} frames"
        )

    def _compare(self) -> str:
        said, truth = self.stages[0], self.stages[-1]
        try:
            said.errors, scale = track_errors(said.opened, truth.opened)
        except ValueError as error:
            return str(error)
        median = float(np.nanmedian(said.errors))
        return (
            f"tracks are coloured by their error, blue 0 to red {WORST:.0%} of the distance; median {median:.1%}, "
            f"after one scale of {scale:.3g}; the truth is on the right"
        )

    # --- controls ----------------------------------------------------------------------------------------------------

    def _add_controls(self) -> None:
        gui = self.server.gui
        self.choice = gui.add_dropdown("video", tuple(self.folders), initial_value=next(iter(self.folders)))
        self.choice.on_update(lambda _: self.open(self.choice.value))
        self.facts, self.answer = gui.add_markdown(""), gui.add_markdown("")
        self.timeline = None
        self.button = gui.add_button("Play")
        self.button.on_click(lambda _: self.toggle())
        self.speed = gui.add_dropdown("speed", SPEEDS, initial_value="1")
        self.loop = gui.add_checkbox("loop", True)
        mode = gui.add_button_group("points", ("4D moment", "3D all frames"))
        mode.on_click(lambda _: self.set(always=mode.value != "4D moment"))
        sliders = {
            "doubt": gui.add_slider("least confident hidden, %", 0, 95, 1, 0),
            "size": gui.add_slider("point size", 0.1, 4.0, 0.1, 1.0),
            "trail": gui.add_slider("trail, frames", 0, 48, 1, 10),
            "points": gui.add_checkbox("show points", True),
            "tracks": gui.add_checkbox("show tracks", True),
            "hidden": gui.add_checkbox("show hidden and lost", True),
            "cameras": gui.add_checkbox("show cameras", True),
        }
        for name, control in sliders.items():
            control.on_update(lambda event, name=name: self.set(**{name: event.target.value}))
        up = gui.add_dropdown("up", UPS, initial_value=UPS[0])
        up.on_update(lambda _: self.server.scene.set_up_direction(up.value))
        through = gui.add_button("Look through the camera")
        through.on_click(lambda event: self.look_through(event.client))

    def _add_timeline(self) -> None:
        """A slider as long as the video, its seams marked."""
        if self.timeline is not None:
            self.timeline.remove()
        last = max(1, self.length - 1)
        seams = self.stages[0].opened.document.seams if self.stages else []
        marks = tuple((seam, "|") for seam in seams if seam <= last) or None
        self.timeline = self.server.gui.add_slider("frame", 0, last, 1, 0, marks=marks, order=self.button.order - 0.5)
        self.timeline.on_update(self._on_timeline)

    def _on_timeline(self, event: viser.GuiEvent) -> None:
        if event.client is not None:  # by hand, not by `go`
            self.playing = False
            self.go(int(self.timeline.value))

    def _describe(self, name: str, notes: list[str]) -> None:
        lines = [f"**{name}**"]
        if self.stages:
            document = self.stages[0].opened.document
            video = document.video
            lines.append(f"{len(video)} frames, {video.width} × {video.height}; lengths: {document.lengths}")
            lines.append(f"model {model_in_words(document.model)}; world: {document.world}")
        lines += [f"⚠ {note}" for note in notes]
        self.facts.content = "\n\n".join(lines)

    @property
    def length(self) -> int:
        return max((len(stage.opened) for stage in self.stages), default=1)

    def set(self, **changed: object) -> None:
        with self.lock:
            for name, value in changed.items():
                setattr(self.shown, name, value)
            self.draw()

    def go(self, t: int) -> None:
        with self.lock:
            self.shown.t = t
            if self.timeline.value != t:
                self.timeline.value = t
            self.draw()

    def draw(self) -> None:
        with self.lock, self.server.atomic():
            for stage in self.stages:
                stage.show(self.shown)

    def toggle(self) -> None:
        self.playing = not self.playing
        self.button.label = "Pause" if self.playing else "Play"

    def look_through(self, client: viser.ClientHandle | None) -> None:
        """Put one browser's eye where the camera of the video is now."""
        cameras = self.stages[0].opened.arrays.get("cameras") if self.stages else None
        if client is None or cameras is None:
            return
        pose = cameras["world_from_cam"][min(self.shown.t, len(cameras["world_from_cam"]) - 1)].astype(np.float64)
        if np.isfinite(pose).all():
            client.camera.position = pose[:3, 3]
            client.camera.look_at = pose[:3, 3] + 0.3 * self.stages[0].extent * pose[:3, 2]
            client.camera.up_direction = -pose[:3, 1]

    # --- playing -----------------------------------------------------------------------------------------------------

    def play(self) -> None:
        """Until the process is interrupted; a browser that comes or leaves changes nothing."""
        due = time.monotonic()
        while True:
            fps = self.stages[0].opened.document.video.fps if self.stages else 10.0
            due = max(due + 1 / (fps * float(self.speed.value)), time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
            if self.playing:
                self.step()

    def step(self) -> None:
        """The next frame; at the end the first, or none."""
        following = self.shown.t + 1
        if following < self.length:
            self.go(following)
        elif self.loop.value:
            self.go(0)
        else:
            self.toggle()
