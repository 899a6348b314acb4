// What is drawn, and how: points of the cloud, marks of tracks, lines, and the image in a frustum.

const SHADERS = {
  cloud: [`
    in vec3 steps; in vec3 rgb; in float confidence;
    uniform mat4 matrix; uniform vec3 low, step_size; uniform float size, least;
    out vec3 colour;
    void main() {
      gl_Position = matrix * vec4(low + steps * step_size, 1.0);
      gl_PointSize = clamp(size / gl_Position.w, 1.0, 48.0);
      if (confidence < least) gl_Position = vec4(2.0, 2.0, 2.0, 1.0);
      colour = rgb;
    }`, `
    in vec3 colour; out vec4 result;
    void main() { result = vec4(colour, 1.0); }`],
  marks: [`
    in vec3 xyz; in vec3 rgb; in float kind;
    uniform mat4 matrix; uniform float size, near;
    out vec3 colour; flat out float shape;
    void main() {
      gl_Position = matrix * vec4(xyz, 1.0);
      gl_Position.z -= 0.1 * near;  // before points that are at most 5 % nearer
      gl_PointSize = size * (kind > 2.5 ? 2.0 : 1.0);
      colour = rgb; shape = kind;
    }`, `
    in vec3 colour; flat in float shape; out vec4 result;
    void main() {
      vec2 p = 2.0 * gl_PointCoord - 1.0;
      float r = length(p), rim = 0.0;
      if (shape < 0.5) { if (r > 1.0) discard; rim = step(0.78, r); }
      else if (shape < 1.5) { if (r > 1.0 || r < 0.55) discard; }
      else if (shape < 2.5) { if (min(abs(p.x - p.y), abs(p.x + p.y)) > 0.35) discard; }
      else { if (r > 1.0 || r < 0.8) discard; }
      result = vec4(mix(colour, vec3(0.06), rim), 1.0);
    }`],
  lines: [`
    in vec3 start; in vec3 end; in vec4 rgba;
    uniform mat4 matrix; uniform vec2 viewport; uniform float width, near;
    out vec4 colour;
    vec4 before_camera(vec4 p, vec4 other) { return p.w >= near ? p : mix(p, other, (near - p.w) / (other.w - p.w)); }
    void main() {
      vec4 a = matrix * vec4(start, 1.0), b = matrix * vec4(end, 1.0);
      colour = rgba;
      if (max(a.w, b.w) < near) { gl_Position = vec4(2.0, 2.0, 2.0, 1.0); return; }
      vec4 from = before_camera(a, b), to = before_camera(b, a);
      vec2 along = (to.xy / to.w - from.xy / from.w) * viewport;
      vec2 across = length(along) < 1e-6 ? vec2(1.0, 0.0) : normalize(vec2(-along.y, along.x));
      vec4 p = (gl_VertexID & 1) == 0 ? from : to;
      float side = gl_VertexID < 2 ? -1.0 : 1.0;
      gl_Position = vec4(p.xy + side * across * width / viewport * p.w, p.z - 0.06 * near, p.w);
    }`, `
    in vec4 colour; out vec4 result;
    void main() { result = colour; }`],
  image: [`
    in vec3 xyz; in vec2 uv;
    uniform mat4 matrix;
    out vec2 place;
    void main() { gl_Position = matrix * vec4(xyz, 1.0); place = uv; }`, `
    in vec2 place; uniform sampler2D image; out vec4 result;
    void main() { result = vec4(texture(image, place).rgb, 0.9); }`],
};

function compile(gl, name) {
  const program = gl.createProgram();
  SHADERS[name].forEach((source, i) => {
    const shader = gl.createShader(i ? gl.FRAGMENT_SHADER : gl.VERTEX_SHADER);
    gl.shaderSource(shader, `#version 300 es\nprecision highp float;\n${source}`);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(`${name}: ${gl.getShaderInfoLog(shader)}`);
    gl.attachShader(program, shader);
  });
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(`${name}: ${gl.getProgramInfoLog(program)}`);
  const uniforms = {};
  for (let i = 0; i < gl.getProgramParameter(program, gl.ACTIVE_UNIFORMS); i++) {
    const uniform = gl.getActiveUniform(program, i).name;
    uniforms[uniform] = gl.getUniformLocation(program, uniform);
  }
  return { program, uniforms };
}

// Which buffer each attribute of a program comes from.
function vertexArray(gl, program, attributes) {
  const array = gl.createVertexArray();
  gl.bindVertexArray(array);
  for (const { name, buffer, count, type, normalized = false, stride = 0, offset = 0, each = 0 } of attributes) {
    const place = gl.getAttribLocation(program, name);
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, count, type, normalized, stride, offset);
    gl.vertexAttribDivisor(place, each);
  }
  gl.bindVertexArray(null);
  return array;
}
