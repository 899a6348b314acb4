// Vectors are arrays of 3; matrices are 4 x 4, column by column as WebGL has them.

const add = (a, b, k = 1) => [a[0] + k * b[0], a[1] + k * b[1], a[2] + k * b[2]];
const sub = (a, b) => add(a, b, -1);
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const norm = (a) => Math.hypot(a[0], a[1], a[2]);
const unit = (a) => { const n = norm(a) || 1; return [a[0] / n, a[1] / n, a[2] / n]; };

function multiply(a, b) {
  const c = new Float32Array(16);
  for (let col = 0; col < 4; col++) for (let row = 0; row < 4; row++) {
    let sum = 0;
    for (let k = 0; k < 4; k++) sum += a[4 * k + row] * b[4 * col + k];
    c[4 * col + row] = sum;
  }
  return c;
}

// fx, fy: 2 * focal length / size of the image
function perspective(fx, fy, near, far) {
  const m = new Float32Array(16);
  m[0] = fx; m[5] = fy; m[10] = (far + near) / (near - far); m[11] = -1; m[14] = 2 * far * near / (near - far);
  return m;
}

// From the world to a camera that looks along -z, with right and up as x and y.
function viewFrom(eye, right, up, back) {
  return new Float32Array([right[0], up[0], back[0], 0, right[1], up[1], back[1], 0, right[2], up[2], back[2], 0,
    -dot(right, eye), -dot(up, eye), -dot(back, eye), 1]);
}

function lookAt(eye, target, up) {
  const back = unit(sub(eye, target)), right = unit(cross(up, back));
  return viewFrom(eye, right, cross(back, right), back);
}

// A point in pixels of a w x h canvas, with its distance; null behind the camera.
function projected(matrix, p, w, h) {
  const at = (row) => matrix[row] * p[0] + matrix[4 + row] * p[1] + matrix[8 + row] * p[2] + matrix[12 + row];
  const depth = at(3);
  return depth <= 0 ? null : [(at(0) / depth + 1) / 2 * w, (1 - at(1) / depth) / 2 * h, depth];
}
