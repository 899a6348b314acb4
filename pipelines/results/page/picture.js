// The frame of the video in a corner, with the tracks where the model has them in it.

const PICTURE_SIDE = 300;

class Picture {
  constructor(figure, result) {
    const [w, h] = result.about.size, scale = PICTURE_SIDE / Math.max(w, h), ratio = devicePixelRatio || 1;
    Object.assign(this, { result, canvas: figure.querySelector("canvas"), caption: figure.querySelector("figcaption") });
    this.width = Math.max(80, w * scale);
    this.height = Math.max(80, h * scale);
    Object.assign(this.canvas, { width: this.width * ratio, height: this.height * ratio });
    Object.assign(this.canvas.style, { width: `${this.width}px`, height: `${this.height}px` });
    this.pen = this.canvas.getContext("2d");
    this.pen.scale(ratio, ratio);
  }

  draw(state) {
    const { pen, width, height, result } = this, image = result.images && result.images[state.t];
    pen.fillStyle = "#22262d";
    pen.fillRect(0, 0, width, height);
    if (image) pen.drawImage(image, 0, 0, width, height);
    if (state.tracks) for (let n = 0; n < result.count; n++) this.drawTrack(state, n);
    const [w, h] = result.about.size;
    this.caption.textContent = `frame ${result.about.frames[state.t]}, ${w} × ${h}`
      + (image ? "" : ": its picture is not here");
  }

  place(mark) { return [mark.uv[0] * this.width, mark.uv[1] * this.height]; }

  drawTrack(state, n) {
    const { pen } = this, mark = this.result.mark(n, state.t), chosen = n === state.chosen;
    if (!mark || (mark.kind !== "seen" && !state.hidden && !chosen)) return;
    const [x, y] = this.place(mark), colour = this.result.colour(n).map((c) => Math.round(255 * c));
    pen.fillStyle = pen.strokeStyle = mark.kind === "lost" ? `rgb(255 107 107 / ${state.t - mark.since > 12 ? 0.35 : 1})` : `rgb(${colour})`;
    pen.lineWidth = 1.4;
    pen.beginPath();
    if (mark.kind === "lost") {
      pen.moveTo(x - 2.5, y - 2.5); pen.lineTo(x + 2.5, y + 2.5);
      pen.moveTo(x - 2.5, y + 2.5); pen.lineTo(x + 2.5, y - 2.5);
      pen.stroke();
    } else {
      pen.arc(x, y, 2.4, 0, 7);
      mark.kind === "seen" ? pen.fill() : pen.stroke();
    }
    if (!chosen) return;
    pen.strokeStyle = "#ffffff";
    pen.beginPath();
    pen.arc(x, y, 6, 0, 7);
    pen.stroke();
  }
}
