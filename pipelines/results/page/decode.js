// The numbers of the page, as numbers.py has put them in: base64, gzip, one array after another.

const KINDS = { uint8: Uint8Array, uint16: Uint16Array, int16: Int16Array, uint32: Uint32Array, int32: Int32Array,
  float32: Float32Array };

async function unpack(text) {
  const packed = atob(text.trim());
  const bytes = new Uint8Array(packed.length);
  for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

function arraysOf(buffer, places) {
  const arrays = {};
  for (const [name, { offset, dtype, shape }] of Object.entries(places)) {
    arrays[name] = new KINDS[dtype](buffer, offset, shape.reduce((a, b) => a * b, 1));
  }
  return arrays;
}

// Low and high bytes of differences, one column after another, to (n, 4) whole numbers, the last one unused.
function undifferenced(halves) {
  const count = halves.length / 6, steps = new Uint16Array(4 * count);
  for (let axis = 0; axis < 3; axis++) {
    const low = 2 * axis * count, high = low + count;
    let sum = 0;
    for (let i = 0; i < count; i++) {
      sum = (sum + halves[low + i] + 256 * halves[high + i]) & 65535;
      steps[4 * i + axis] = sum;
    }
  }
  return steps;
}

async function imagesOf(arrays) {
  if (!arrays.images) return null;
  const ends = arrays.images_ends;
  const one = (end, i) => createImageBitmap(new Blob([arrays.images.subarray(i ? ends[i - 1] : 0, end)],
    { type: "image/jpeg" }));
  return Promise.all(Array.from(ends, one));
}
