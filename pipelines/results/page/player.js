// Timeline, controls and clicks; keeps what is shown in `state` and draws when it changes.

const $ = (id) => document.getElementById(id);
const NEAR = 14;  // pixels between a click and a track

function nearest(result, state, x, y, placeOf) {
  let best = -1, least = NEAR;
  for (let n = 0; n < result.count; n++) {
    const mark = result.mark(n, state.t), place = mark && (mark.kind === "seen" || state.hidden) && placeOf(mark);
    const far = place ? Math.hypot(place[0] - x, place[1] - y) : Infinity;
    if (far < least) [best, least] = [n, far];
  }
  return best;
}

class Player {
  constructor(result) {
    this.result = result;
    this.state = { t: 0, always: false, size: 20, least: 0, trail: 10, chosen: -1, points: true, tracks: true,
      hidden: true, cameras: true, through: false };
    this.scene = new Scene($("scene"), result);
    this.view = new View($("scene"), result, () => this.redraw());
    this.picture = new Picture($("picture"), result);
    this.describe();
    this.connect();
    new ResizeObserver(() => this.resize()).observe($("scene"));
    this.resize();
  }

  describe() {
    const { about } = this.result, points = about.first_points ? about.first_points.at(-1) : 0;
    const facts = [`${this.result.length} frames`, points && `${points.toLocaleString("en")} points`,
      this.result.count && `${this.result.count} tracks`, about.seams.length && `${about.seams.length + 1} windows`];
    $("facts").textContent = `${facts.filter(Boolean).join(", ")}; ${about.lengths}; model ${about.model.slice(0, 8)}`;
    $("facts").title = `Lengths: ${about.unit}. World: ${about.world}. Model ${about.model}.`;
    if (about.notes.length) {
      $("warnings").hidden = false;
      $("warnings").querySelector("summary").textContent = `${about.notes.length} to know`;
      for (const note of about.notes) $("warnings").querySelector("ul").append(element("li", note));
    }
    $("time").max = this.result.length - 1;
    $("trail").max = Math.max(1, this.result.length - 1);
    for (const seam of about.seams) {
      const mark = element("i");
      mark.style.left = `calc(8px + (100% - 16px) * ${seam / Math.max(1, this.result.length - 1)})`;
      mark.title = `a window begins at frame ${about.frames[seam]}`;
      $("seams").append(mark);
    }
  }

  connect() {
    const { state } = this;
    $("time").oninput = () => { this.pause(); this.go(Number($("time").value)); };
    $("play").onclick = () => this.playing ? this.pause() : this.play();
    for (const [id, always] of [["instant", false], ["always", true]]) $(id).onclick = () => this.mode(always);
    $("size").oninput = () => { state.size = Number($("size").value); this.redraw(); };
    $("doubt").oninput = () => { this.doubt(Number($("doubt").value)); this.redraw(); };
    $("trail").oninput = () => { this.trail(Number($("trail").value)); this.redraw(); };
    for (const name of ["points", "tracks", "hidden", "cameras"]) {
      $(`show_${name}`).onchange = (event) => { state[name] = event.target.checked; this.redraw(); };
    }
    $("reset").onclick = () => { this.view.reset(); this.through(false); };
    $("through").onclick = () => this.through(!state.through);
    $("through").disabled = !this.result.camera(0);
    $("up").onchange = () => {
      this.view.up = $("up").value.split(",").map(Number);
      this.view.reset();
      this.through(false);
    };
    $("unselect").onclick = () => this.choose(-1);
    this.onClick($("scene"), (x, y) => {
      const { width, height } = $("scene").getBoundingClientRect(), { matrix } = this.view.at(state.t);
      return nearest(this.result, state, x, y, (mark) => projected(matrix, mark.xyz, width, height));
    });
    this.onClick(this.picture.canvas, (x, y) => nearest(this.result, state, x, y, (mark) => this.picture.place(mark)));
    window.addEventListener("keydown", (event) => this.key(event));
    window.addEventListener("click", (event) => event.detail && event.target.blur());  // of the mouse: keys are free again
    this.trail(state.trail);
    this.doubt(0);
  }

  // A press that did not move is a click.
  onClick(canvas, find) {
    let from = null;
    canvas.addEventListener("pointerdown", (event) => { from = [event.clientX, event.clientY]; });
    canvas.addEventListener("pointerup", (event) => {
      if (!from || Math.hypot(event.clientX - from[0], event.clientY - from[1]) > 4) return;
      const { left, top } = canvas.getBoundingClientRect();
      this.choose(find(event.clientX - left, event.clientY - top));
    });
  }

  key(event) {
    if (["SELECT", "INPUT", "BUTTON"].includes(event.target.tagName)) return;  // they have keys of their own
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === " ") { event.preventDefault(); this.playing ? this.pause() : this.play(); }
    else if (step) { this.pause(); this.go(Math.max(0, Math.min(this.result.length - 1, this.state.t + step))); }
    else if (event.key === "m") this.mode(!this.state.always);
    else if (event.key === "c") this.through(!this.state.through);
    else if (event.key === "r") $("reset").onclick();
  }

  mode(always) {
    this.state.always = always;
    $("always").classList.toggle("on", always);
    $("instant").classList.toggle("on", !always);
    this.redraw();
  }

  through(on) {
    this.state.through = this.view.through = on;
    $("through").classList.toggle("on", on);
    this.redraw();
  }

  trail(frames) {
    this.state.trail = frames;
    $("trail").value = frames;
    $("trail_out").textContent = `${frames} frames`;
  }

  // Hides so many percent of the points, the least confident.
  doubt(percent) {
    const confidence = this.result.arrays.confidence;
    if (!confidence) return;
    const counts = new Uint32Array(257);
    for (const value of confidence) counts[value + 1]++;
    let least = 0, below = 0;
    while (percent && least < 255 && below + counts[least + 1] <= percent / 100 * confidence.length) below += counts[++least];
    this.state.least = least ? (least - 0.5) / 255 : 0;
    $("doubt_out").textContent = least ? `${percent} %: below ${(least / 255).toFixed(2)}` : "none";
  }

  choose(n) {
    this.state.chosen = n;
    $("track").hidden = n < 0;
    this.redraw();
  }

  go(t) {
    this.state.t = t;
    $("time").value = t;
    this.redraw();
  }

  play() {
    if (this.state.t === this.result.length - 1) this.go(0);
    this.playing = true;
    $("play").textContent = "❚❚";
    let due = 0, before = performance.now();
    const tick = (now) => {
      if (!this.playing) return;
      due += Math.max(0, now - before) / 1000 *  // the first one may be dated before the click
        this.result.about.fps * Number($("speed").value);
      before = now;
      const steps = Math.floor(due);
      due -= steps;
      if (steps) {
        const next = this.state.t + steps, { length } = this.result;
        if (next >= length && !$("loop").checked) { this.go(length - 1); return this.pause(); }
        this.go(next % length);
      }
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  pause() {
    this.playing = false;
    $("play").textContent = "▶";
  }

  resize() {
    const canvas = $("scene"), ratio = devicePixelRatio || 1;
    canvas.width = Math.max(1, canvas.clientWidth * ratio);
    canvas.height = Math.max(1, canvas.clientHeight * ratio);
    this.redraw();
  }

  redraw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = null;
      this.scene.draw(this.state, this.view.at(this.state.t));
      this.picture.draw(this.state);
      this.tell();
    });
  }

  tell() {
    const { result, state } = this, { about } = result;
    const seam = about.seams.includes(state.t) ? " seam" : "";
    $("clock").textContent = `${about.times[state.t].toFixed(2)} s, frame ${about.frames[state.t]}${seam}`;
    if (state.chosen < 0) return;
    const n = state.chosen, source = result.arrays.track_source[n], mark = result.mark(n, state.t);
    const pixels = (uv) => uv.map((x, i) => (x * about.size[i]).toFixed(1)).join(", ");
    const coordinates = (xyz) => xyz.map((x) => x.toFixed(3)).join(", ");
    const start = result.mark(n, source);
    const told = { "asked at": `${pixels(result.uv(n, source))} px, frame ${about.frames[source]}` };
    if (mark) {
      const again = result.state(n, state.t) & FOUND_AGAIN ? ", found again" : "";
      told["now"] = mark.kind === "lost" ? `lost since frame ${about.frames[mark.since]}` : mark.kind + again;
      told["pixel"] = pixels(mark.uv);
      told["in the world"] = coordinates(mark.xyz);
      told["confidence"] = (result.arrays.track_confidence[n * result.length + state.t] / 255).toFixed(2);
      if (start) told["from its start"] = norm(sub(mark.xyz, start.xyz)).toFixed(3);
    }
    $("track").querySelector("h2").textContent = `Track ${about.tracks[n]}`;
    $("track").querySelector("dl").replaceChildren(
      ...Object.entries(told).flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
  }
}

function element(tag, text = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

async function begin() {
  const about = JSON.parse($("about").textContent), arrays = arraysOf(await unpack($("data").textContent), about.arrays);
  $("data").remove();
  window.player = new Player(new Result(about, arrays, await imagesOf(arrays)));
}

begin().catch((error) => {
  $("failure").hidden = false;
  $("failure").textContent = `This page cannot be shown: ${error.message}`;
  console.error(error);
});
