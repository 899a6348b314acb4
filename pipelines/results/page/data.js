// What a model said of a video, by frame and track.

const KNOWN = 1, VISIBLE = 2, FOUND_AGAIN = 4;

class Result {
  constructor(about, arrays, images) {
    Object.assign(this, { about, arrays, images });
    this.length = about.frames.length;
    this.count = about.tracks ? about.tracks.length : 0;
    this.step = about.low.map((low, i) => (about.high[i] - low) / (about.levels - 1));
    this.extent = norm(sub(about.high, about.low)) / 2;
    if (this.count) this.last = this.lastKnown();
  }

  // For each track and frame the last frame, up to it, in which it was known; -1: none.
  lastKnown() {
    const last = new Int32Array(this.count * this.length);
    for (let n = 0; n < this.count; n++) {
      for (let t = 0, known = -1; t < this.length; t++) {
        if (this.state(n, t) & KNOWN) known = t;
        last[n * this.length + t] = known;
      }
    }
    return last;
  }

  state(n, t) { return this.arrays.track_state[n * this.length + t]; }

  xyz(n, t) {
    const i = 3 * (n * this.length + t), steps = this.arrays.track_xyz;
    return this.about.low.map((low, axis) => low + steps[i + axis] * this.step[axis]);
  }

  uv(n, t) {
    const i = 2 * (n * this.length + t), uv = this.arrays.track_uv;
    return [uv[i] / 10000, uv[i + 1] / 10000];
  }

  colour(n) { return Array.from(this.arrays.track_colours.subarray(3 * n, 3 * n + 3), (x) => x / 255); }

  // Where to draw a track: { xyz, uv, kind: seen, hidden, lost }; null before it was first known.
  mark(n, t) {
    const state = this.state(n, t), last = this.last[n * this.length + t];
    if (last < 0) return null;
    const kind = state & KNOWN ? (state & VISIBLE ? "seen" : "hidden") : "lost";
    return { xyz: this.xyz(n, last), uv: this.uv(n, last), kind, since: last };
  }

  // Position, axes (right, down, forward) and corner rays of the camera; null if it is not known.
  camera(t) {
    if (!this.arrays.poses || !this.arrays.camera_known[t]) return null;
    const m = this.arrays.poses.subarray(16 * t, 16 * t + 16), k = this.arrays.lenses.subarray(9 * t, 9 * t + 9);
    const [w, h] = this.about.size, column = (i) => [m[i], m[4 + i], m[8 + i]];
    const [right, down, forward] = [column(0), column(1), column(2)];
    const ray = (u, v) => add(add(forward, right, (u - k[2]) / k[0]), down, (v - k[5]) / k[4]);
    return { centre: column(3), right, down, forward, fx: 2 * k[0] / w, fy: 2 * k[4] / h,
      corners: [ray(0, 0), ray(w, 0), ray(w, h), ray(0, h)] };
  }
}
