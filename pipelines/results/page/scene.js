// Draws a moment of a result with WebGL 2.

const KIND = { seen: 0, hidden: 1, lost: 2, chosen: 3 };
const LOST_COLOUR = [1.0, 0.42, 0.42], SEAM_COLOUR = [1.0, 0.8, 0.42], NOW_COLOUR = [1, 1, 1];
const WIDEST = 2;  // of a camera's corner rays, in its depth: of a lens of 125 degrees from corner to corner

class Scene {
  constructor(canvas, result) {
    const gl = canvas.getContext("webgl2", { antialias: true, preserveDrawingBuffer: true });
    if (!gl) throw new Error("this browser has no WebGL 2");
    Object.assign(this, { canvas, gl, result });
    this.programs = Object.fromEntries(Object.keys(SHADERS).map((name) => [name, compile(gl, name)]));
    if (result.about.first_points) this.makeCloud();
    this.lines = this.dynamic("lines", [["start", 3], ["end", 3], ["rgba", 4]], 1);
    this.marks = this.dynamic("marks", [["xyz", 3], ["rgb", 3], ["kind", 1]], 0);
    this.quad = this.dynamic("image", [["xyz", 3], ["uv", 2]], 0);
    this.texture = gl.createTexture();
    gl.enable(gl.DEPTH_TEST);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);
    gl.clearColor(0.078, 0.086, 0.102, 1);
  }

  makeCloud() {
    const { gl } = this, { points, colours, confidence } = this.result.arrays, count = points.length / 6;
    const filled = (content) => {
      const buffer = gl.createBuffer();
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.bufferData(gl.ARRAY_BUFFER, content, gl.STATIC_DRAW);
      return buffer;
    };
    const rest = new Uint8Array(4 * count);
    for (let i = 0; i < count; i++) {
      for (let c = 0; c < 3; c++) rest[4 * i + c] = colours[c * count + i];
      rest[4 * i + 3] = confidence[i];
    }
    const steps = filled(undifferenced(points)), bytes = filled(rest), byte = gl.UNSIGNED_BYTE;
    this.cloud = vertexArray(gl, this.programs.cloud.program, [
      { name: "steps", buffer: steps, count: 3, type: gl.UNSIGNED_SHORT, stride: 8 },
      { name: "rgb", buffer: bytes, count: 3, type: byte, normalized: true, stride: 4 },
      { name: "confidence", buffer: bytes, count: 1, type: byte, normalized: true, stride: 4, offset: 3 },
    ]);
  }

  // A buffer of floats that is filled anew for each picture.
  dynamic(name, layout, each) {
    const { gl } = this, buffer = gl.createBuffer(), floats = layout.reduce((sum, [, count]) => sum + count, 0);
    let offset = 0;
    const attributes = layout.map(([attribute, count]) => {
      offset += 4 * count;
      return { name: attribute, buffer, count, type: gl.FLOAT, stride: 4 * floats, offset: offset - 4 * count, each };
    });
    return { buffer, floats, array: vertexArray(gl, this.programs[name].program, attributes) };
  }

  fill({ buffer, floats, array }, values) {
    const { gl } = this;
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array(values), gl.DYNAMIC_DRAW);
    gl.bindVertexArray(array);
    return values.length / floats;
  }

  use(name, matrix) {
    const { program, uniforms } = this.programs[name];
    this.gl.useProgram(program);
    this.gl.uniformMatrix4fv(uniforms.matrix, false, matrix);
    return uniforms;
  }

  // `state`: see player.js; `view`: { matrix, near, focal in pixels }.
  draw(state, view) {
    const { gl, canvas } = this;
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    if (state.points && this.cloud) this.drawCloud(state, view);
    const lines = [], marks = [];
    if (state.cameras) this.addCameras(state, view, lines);
    if (state.tracks && this.result.count) this.addTracks(state, lines, marks);
    this.drawLines(lines, view, 1.6);
    const uniforms = this.use("marks", view.matrix);
    gl.uniform1f(uniforms.size, 9 * view.ratio);
    gl.uniform1f(uniforms.near, view.near);
    gl.drawArrays(gl.POINTS, 0, this.fill(this.marks, marks));
    gl.bindVertexArray(null);
  }

  drawCloud(state, view) {
    const { gl } = this, { about, step } = this.result, uniforms = this.use("cloud", view.matrix);
    gl.uniform3fv(uniforms.low, about.low);
    gl.uniform3fv(uniforms.step_size, step);
    gl.uniform1f(uniforms.size, state.size * this.result.extent / 4000 * view.focal);
    gl.uniform1f(uniforms.least, state.least);
    gl.bindVertexArray(this.cloud);
    const first = about.first_points, from = state.always ? 0 : first[state.t];
    gl.drawArrays(gl.POINTS, from, (state.always ? first[first.length - 1] : first[state.t + 1]) - from);
  }

  drawLines(lines, view, width) {
    const { gl, canvas } = this, uniforms = this.use("lines", view.matrix);
    gl.uniform2f(uniforms.viewport, canvas.width, canvas.height);
    gl.uniform1f(uniforms.width, width * view.ratio);
    gl.uniform1f(uniforms.near, view.near);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, this.fill(this.lines, lines));
  }

  addCameras(state, view, lines) {
    const { result } = this, seams = new Set(result.about.seams), size = 0.025 * result.extent;
    let before = null;
    for (let t = 0; t < result.length; t++) {
      const camera = result.camera(t);
      if (!camera) { before = null; continue; }
      const now = t === state.t, share = t / Math.max(1, result.length - 1);
      const colour = now ? NOW_COLOUR : seams.has(t) ? SEAM_COLOUR : [0.3 + 0.6 * share, 0.5, 0.95 - 0.6 * share];
      if (before && !state.through) lines.push(...before, ...camera.centre, ...colour.map((c) => now ? 0.7 : c), 0.9);
      before = camera.centre;
      if (state.through) continue;
      // A camera with hardly any focal length, as a poor model tells of one, would cover all else.
      const bound = size * Math.min(1, WIDEST / Math.max(...camera.corners.map(norm)));
      const ends = camera.corners.map((ray) => add(camera.centre, ray, now ? 2 * bound : bound));
      const every = Math.ceil(result.length / 60);
      if (!now && !seams.has(t) && t % every) continue;
      ends.forEach((end, i) => {
        lines.push(...camera.centre, ...end, ...colour, now ? 1 : 0.55);
        lines.push(...end, ...ends[(i + 1) % 4], ...colour, now ? 1 : 0.55);
      });
      if (now && result.images) this.drawImage(result.images[t], ends, view);
    }
  }

  drawImage(image, [a, b, c, d], view) {
    const { gl } = this;
    this.use("image", view.matrix);
    gl.bindTexture(gl.TEXTURE_2D, this.texture);
    if (this.shown !== image) {
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, image);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
      this.shown = image;
    }
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, this.fill(this.quad, [...a, 0, 0, ...d, 0, 1, ...b, 1, 0, ...c, 1, 1]));
  }

  addTracks(state, lines, marks) {
    const { result } = this;
    for (let n = 0; n < result.count; n++) {
      const mark = result.mark(n, state.t);
      const chosen = n === state.chosen;
      if (chosen) this.addPath(n, 0, result.length - 1, [1, 1, 1], () => 0.9, lines);
      if (!mark || (mark.kind !== "seen" && !state.hidden && !chosen)) continue;
      const colour = result.colour(n), first = Math.max(0, state.t - state.trail);
      this.addPath(n, first, state.t, colour, (t) => (t - first + 1) / (state.t - first + 1), lines);
      const faded = 1 - 0.7 * Math.min(1, (state.t - mark.since) / 12);  // the longer lost, the darker
      const shown = mark.kind === "lost" ? LOST_COLOUR.map((c) => c * faded) : colour;
      marks.push(...mark.xyz, ...shown, KIND[mark.kind]);
      if (chosen) marks.push(...mark.xyz, 1, 1, 1, KIND.chosen);
    }
  }

  // Between frames in which it is known; thinner to the eye where it is hidden.
  addPath(n, first, last, colour, alpha, lines) {
    const { result } = this;
    for (let t = first + 1; t <= last; t++) {
      const both = result.state(n, t) & result.state(n, t - 1);
      if (!(both & KNOWN)) continue;
      lines.push(...result.xyz(n, t - 1), ...result.xyz(n, t), ...colour, alpha(t) * (both & VISIBLE ? 0.9 : 0.3));
    }
  }
}
