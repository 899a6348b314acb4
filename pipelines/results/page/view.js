// From where the scene is looked at: turned about a point by hand, or through the camera of the video.

class View {
  constructor(canvas, result, changed) {
    Object.assign(this, { canvas, result, changed, up: [0, -1, 0], through: false });
    this.reset();
    this.listen();
  }

  // Behind the first camera, a little above, with what it sees in the middle.
  reset() {
    const { result } = this, first = [...Array(result.length).keys()].map((t) => result.camera(t)).find(Boolean);
    const middle = add(result.about.low, sub(result.about.high, result.about.low), 0.5);
    const eye = first ? first.centre : [0, 0, 0];
    this.target = first ? add(eye, first.forward, Math.max(0.3 * result.extent, dot(sub(middle, eye), first.forward)))
      : middle;
    this.distance = norm(sub(this.target, eye)) * 1.25 + 0.15 * result.extent;
    const forward = unit(sub(this.target, eye));
    const { ahead, aside } = this.basis();
    this.yaw = Math.atan2(dot(forward, aside), dot(forward, ahead));
    this.pitch = 0.25 - Math.asin(Math.max(-1, Math.min(1, dot(forward, this.up))));
    this.yaw += 0.28;
    this.through = false;
  }

  basis() {
    const ahead = Math.abs(this.up[2]) > 0.5 ? [0, 1, 0] : [0, 0, 1];
    return { ahead, aside: cross(ahead, this.up) };
  }

  eye() {
    const { ahead, aside } = this.basis(), c = Math.cos(this.pitch);
    const level = add(ahead.map((x) => x * Math.cos(this.yaw)), aside, Math.sin(this.yaw));
    const direction = add(level.map((x) => x * c), this.up, -Math.sin(this.pitch));
    return add(this.target, direction, -this.distance);
  }

  at(t) {
    const { canvas, result } = this, { width, height } = canvas;
    const near = 0.002 * result.extent, far = 40 * result.extent + 4 * this.distance, ratio = devicePixelRatio || 1;
    const camera = this.through && result.camera(t);
    if (camera) {
      const wide = width / height > camera.fy / camera.fx;  // wider than the image: its height fits
      const [fx, fy] = wide ? [camera.fy * height / width, camera.fy] : [camera.fx, camera.fx * width / height];
      const minus = (v) => v.map((x) => -x);
      const view = viewFrom(camera.centre, camera.right, minus(camera.down), minus(camera.forward));
      return { matrix: multiply(perspective(fx, fy, near, far), view), near, ratio, focal: fy * height / 2 };
    }
    const wide = width > height, fx = wide ? 1.9 * height / width : 1.9, fy = wide ? 1.9 : 1.9 * width / height;
    const matrix = multiply(perspective(fx, fy, near, far), lookAt(this.eye(), this.target, this.up));
    return { matrix, near, ratio, focal: fy * height / 2 };
  }

  turn(dx, dy) {
    this.yaw += dx * 0.006;
    this.pitch = Math.max(-1.55, Math.min(1.55, this.pitch + dy * 0.006));
  }

  move(dx, dy) {
    const back = unit(sub(this.eye(), this.target)), right = unit(cross(this.up, back)), scale = this.distance / 900;
    this.target = add(add(this.target, right, -dx * scale), cross(back, right), dy * scale);
  }

  zoom(factor) {
    const { extent } = this.result;
    this.distance = Math.max(0.01 * extent, Math.min(20 * extent, this.distance * factor));
  }

  listen() {
    const { canvas } = this, pointers = new Map();
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, [event.clientX, event.clientY]);
    });
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => pointers.delete(event.pointerId));
    }
    canvas.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId);
      if (!before) return;
      const now = [event.clientX, event.clientY], dx = now[0] - before[0], dy = now[1] - before[1];
      if (pointers.size === 2) {
        const [other] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
        const apart = (a) => Math.hypot(a[0] - other[0], a[1] - other[1]);
        this.zoom(apart(before) / Math.max(1, apart(now)));
        this.move(dx / 2, dy / 2);
      } else if (event.shiftKey || event.buttons & 2) this.move(dx, dy);
      else this.turn(dx, dy);
      pointers.set(event.pointerId, now);
      this.changed();
    });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(event.deltaY * 0.001));
      this.changed();
    }, { passive: false });
  }
}
