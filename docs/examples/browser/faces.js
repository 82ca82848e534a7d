// Finds and reads faces, in a worker: ferfacenet/faces/search.py and framing.py in JavaScript, one
// view after another; what the numbers of config.json, n, are for stands there. It tells what share
// of its files is { loaded }, then { categories }, and answers { bitmap, live } by { faces }.

const RARELY = 10; // times as long as it takes, a webcam's picture is not searched for new faces
const SMOOTH = 500; // over which a webcam's probabilities are averaged, exponentially
let n, ort, before = [], due = 0; // faces in the webcam's last picture; when it is searched next
const sessions = {}, url = (name) => new URL(name, import.meta.url).href;

async function load() {
  const config = await (await fetch(url("config.json"))).json();
  // The small runtime for WebGPU needs JSPI; a processor that acts as a GPU is slower than WASM.
  const adapter = "Suspending" in WebAssembly ? await navigator.gpu?.requestAdapter() : null;
  const gpu = adapter?.info.isFallbackAdapter === false;
  const names = ["detector", "network", "resize", "view", "frame"];
  const runtime = `ort-wasm-simd-threaded${gpu ? ".jspi" : ""}.wasm`;
  const files = [runtime, ...names.map((name) => `${name}.onnx`)];
  const total = files.reduce((sum, name) => sum + config.files[name], 0);
  let loaded = 0;
  const transform = (part, stream) => {
    postMessage({ loaded: (loaded += part.length) / total });
    stream.enqueue(part);
  };
  const [wasmBinary, ...models] = await Promise.all(files.map(async (name) => {
    const { ok, status, body } = await fetch(url(name));
    if (!ok) throw new Error(`${name}: ${status}`);
    return new Response(body.pipeThrough(new TransformStream({ transform }))).arrayBuffer();
  }));
  ort = await import(url(`ort.${gpu ? "jspi" : "wasm"}.bundle.min.mjs`));
  Object.assign(ort.env.wasm, { wasmBinary, numThreads: self.crossOriginIsolated ? 2 : 1 });
  for (const [index, name] of names.entries()) {
    // WebGPU has no int8 convolutions, and few pixels do not need it.
    const providers = gpu && name === "detector" ? ["webgpu", "wasm"] : ["wasm"];
    const options = { executionProviders: providers, logSeverityLevel: 3 };
    sessions[name] = await ort.InferenceSession.create(models[index], options);
  }
  n = config.search;
  await predict(await createImageBitmap(new ImageData(32, 32))); // what comes once is over then
  postMessage({ categories: config.categories, backend: gpu ? "WebGPU" : "WASM" });
}

const run = async (name, feed) => Object.values(await sessions[name].run(feed))[0];
const floats = (data, ...sizes) => new ort.Tensor("float32", Float32Array.from(data), sizes);
const integers = (...data) => new ort.Tensor("int64", BigInt64Array.from(data, BigInt));

function makeCanvas(width, height, colour) {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = colour;
  context.fillRect(0, 0, width, height);
  return context;
}

function bytes(context, x = 0, y = 0, w = context.canvas.width, h = context.canvas.height) {
  const { data } = context.getImageData(x, y, w, h);
  return new ort.Tensor("uint8", new Uint8Array(data.buffer), [h, w, 4]);
}

const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
const round = (x) => (x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x)); // as Python does
const remainder = (x, y) => x - y * round(x / y);
const degrees = (from, to) => (Math.atan2(to.y - from.y, to.x - from.x) * 180) / Math.PI;
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const centre = (points) => ({ x: mean(points.map((p) => p.x)), y: mean(points.map((p) => p.y)) });
const area = ([low, high]) => Math.max(0, high.x - low.x) * Math.max(0, high.y - low.y);
const longest = ([low, high]) => Math.max(high.x - low.x, high.y - low.y);
const sorted = (values, key) => [...values].sort((first, second) => key(first) - key(second));
const at = ({ x, y }) => new DOMMatrix().translate(x, y);

// What the detector sees in views of one size, whose matrices lead to the picture: for each a list
// of poses, how a face stands: its box, landmarks, middle and side of its upright box, score.
async function detect(views, matrices) {
  const pictures = floats(views.data, matrices.length, ...views.dims.slice(-3));
  const least = floats([Math.max(0.1, n.min_score - n.weaker)], 1);
  const { data } = await run("detector", { pictures, least });
  const found = matrices.map(() => []);
  for (let row = 0; row < data.length; row += 16) {
    const seen = [1, 3, 5, 7, 9, 11, 13].map((i) => ({ x: data[row + i], y: data[row + i + 1] }));
    const matrix = matrices[data[row]], { a, b, c, d } = matrix;
    const [p, q, ...points] = shift(seen, matrix);
    const box = [Math.min, Math.max].map((of) => ({ x: of(p.x, q.x), y: of(p.y, q.y) }));
    const [middle, side] = [centre(box), Math.sqrt(area(seen) * (a * d - b * c))];
    found[data[row]].push({ box, points, middle, side, score: data[row + 15] });
  }
  return found;
}

const rollOf = ({ points }) => degrees(points[0], points[1]);
const rank = (pose) => -pose.score * pose.side;
const shift = (points, matrix) => points.map((point) => matrix.transformPoint(point));

function turned({ points, middle, ...pose }, angle) {
  const matrix = at(middle).rotate(angle).translate(-middle.x, -middle.y);
  return { ...pose, middle, points: shift(points, matrix) };
}

// As it would be if the line from its eyes to its mouth had followed the head's roll wholly.
function upright(pose) {
  const lean = degrees(centre(pose.points.slice(0, 2)), centre(pose.points.slice(3))) - 90;
  const beyond = clamp(remainder(lean, 90) / n.followed, -45, 45);
  return turned(pose, 90 * round(lean / 90) + beyond - rollOf(pose));
}

// The mean of several looks at a face.
function seenAs(pose, looks) {
  const points = pose.points.map((_, index) => centre(looks.map((look) => look.points[index])));
  const [middle, side] = [centre(looks.map((look) => look.middle)), mean(looks.map((l) => l.side))];
  const move = at(middle).scale(side / pose.side).translate(-pose.middle.x, -pose.middle.y);
  const roll = remainder(rollOf({ points }) - rollOf(pose), 360) * (1 / n.followed_close - 1);
  return turned({ ...pose, points, middle, side, box: shift(pose.box, move) }, roll);
}

// How much of the smaller of two boxes is in the other.
function cover([a, b], [c, d]) {
  const low = { x: Math.max(a.x, c.x), y: Math.max(a.y, c.y) };
  const high = { x: Math.min(b.x, d.x), y: Math.min(b.y, d.y) };
  return area([low, high]) / Math.min(area([a, b]), area([c, d]));
}

// How far apart two are, in sides and in size.
const distance = ({ middle: a, side: first }, { middle: b, side: second }) =>
  Math.hypot(a.x - b.x, a.y - b.y) / second + Math.abs(Math.log(first / second));
const square = ({ middle: { x, y }, side }) => [-0.5, 0.5].map((half) =>
  ({ x: x + half * side, y: y + half * side }));
const isAmong = (pose, others) => others.some((other) =>
  cover(square(pose), square(other)) >= n.same_box || distance(pose, other) < n.same);

// Those that are of different faces, the best score first.
function distinct(poses) {
  const most = (a, b) => (a.quarter === b.quarter ? n.same_box : n.same_turned);
  return sorted(poses, (pose) => -pose.score).reduce((taken, pose) =>
    taken.every((o) => cover(pose.box, o.box) < most(pose, o)) ? [...taken, pose] : taken, []);
}

class Search { // for the faces of the picture on a canvas
  constructor(context) {
    const { width, height } = context.canvas;
    Object.assign(this, { context, width, height, long: Math.max(width, height) });
    this.least = Math.max(n.smallest_box, Math.sqrt(width * height) / n.smallest_share);
  }

  // All faces, those that are known first; of a webcam's picture the upright ones, if there are.
  async find(known, live) {
    const scale = Math.max(n.smallest / this.least, Math.min(1, n.least / this.long));
    const fine = await this.draw(this.context, scale);
    const side = Math.max(fine.canvas.width, fine.canvas.height), whole = side <= n.whole;
    const first = whole ? fine : await this.draw(fine, n.small / this.long);
    let rows = await this.look(first, [0]), quarters = whole ? [] : [0];
    const filled = rows.some((row) => area(row.box) >= (n.portrait * this.long) ** 2);
    const portrait = filled && rows.every((row) => row.score >= n.upright);
    if (!portrait && !(live && rows.some((row) => row.score >= n.sure))) {
      const small = await this.draw(first, Math.min(1, n.small / this.long));
      const seen = await this.look(small, whole ? [0, 1, 2, 3] : [1, 2, 3]);
      const turned = distinct(whole ? seen : [...rows, ...seen]);
      const sure = (q) => turned.some((row) => row.quarter === q && row.score >= n.sure);
      quarters.push(...[1, 2, 3].filter(sure));
      rows = whole ? [...rows, ...turned] : turned;
    }
    rows.push(...(await this.look(fine, quarters)));
    const others = n.others.filter((other) => other / side <= 0.8 || other / side >= 1.25);
    for (const other of rows.some((row) => row.score >= n.sure) ? [] : others) {
      rows.push(...(await this.look(await this.draw(this.context, other / this.long), [0])));
    }
    const large = distinct(rows).filter((row) => longest(row.box) >= n.nearly * this.least);
    return this.confirm(sorted(large.map(upright), rank), n.tilts, known);
  }

  // The picture at a scale, made of one that is drawn already; a canvas shrinks it badly.
  async draw(like, wanted) {
    const scale = Math.min(wanted, n.max_upscale, n.parts[0] / this.long);
    const [w, h] = [this.width, this.height].map((length) => Math.max(1, round(length * scale)));
    if (like.canvas.width === w && like.canvas.height === h) return like;
    const { data } = await run("resize", { pixels: bytes(like), size: integers(h, w) });
    const context = makeCanvas(w, h), image = context.getImageData(0, 0, w, h);
    for (let i = 0; i < data.length; i++) image.data[i + Math.floor(i / 3)] = data[i];
    context.putImageData(image, 0, 0);
    return context;
  }

  // What is seen of the picture as it is drawn when it is turned anticlockwise by quarters.
  async look({ canvas }, quarters) {
    const { width, height } = canvas, found = [];
    const least = Math.max(width, height) <= n.small ? n.small : 0; // so that all turns have a size
    for (const quarter of quarters) {
      const sizes = quarter % 2 ? [height, width] : [width, height];
      const sides = sizes.map((length) => Math.max(least, length) + 2 * n.border)
        .map((side) => Math.ceil(side / n.step) * n.step);
      const [x, y] = sides.map((end, i) => Math.floor((end - sizes[i]) / 2) + sizes[i] / 2);
      const turn = at({ x: width / 2, y: height / 2 }).rotate(90 * quarter).translate(-x, -y);
      const view = makeCanvas(...sides, "rgb(128 128 128)");
      view.imageSmoothingEnabled = false;
      view.setTransform(turn.inverse());
      view.drawImage(canvas, 0, 0);
      const back = new DOMMatrix().scale(this.width / width, this.height / height).multiply(turn);
      for (const pose of (await detect(bytes(view), [back]))[0]) {
        found.push({ ...pose, quarter, score: pose.score - (quarter && n.turned) });
      }
    }
    return found;
  }

  // Those that are faces when they are looked at from close by, behind those that are known.
  async confirm(poses, tilts, known) {
    const found = [...known];
    for (const pose of poses.filter((each) => !isAmong(each, known))) {
      const now = await this.lookClose(pose, tilts);
      const sure = now.score >= n.min_score && longest(now.box) >= this.least;
      if (sure && !isAmong(now, found)) found.push(now);
    }
    return found;
  }

  // The mean of what is seen in tilted close views of a face, if it is seen again in them; if it is
  // turned, of what is seen in upright ones.
  async lookClose(pose, tilts, level = n.level) {
    const side = n.close_view * Math.max(pose.side / n.close_face, 1 / n.max_upscale);
    const rolls = tilts.map((tilt) => rollOf(pose) + tilt);
    const views = await this.cut("view", pose.middle, rolls, side, n.close_view);
    const back = rolls.map((roll) => at(pose.middle).rotate(roll).scale(side / n.close_view)
      .translate(-n.close_view / 2, -n.close_view / 2));
    const near = (await detect(views, back))
      .flatMap((looks) => sorted(looks, (look) => distance(look, pose)).slice(0, 1))
      .filter((look) => distance(look, pose) < n.same);
    // What is not seen again counts only if it was evident.
    const before = pose.score >= n.evident ? pose.score : 0;
    const seen = { ...pose, score: Math.max(before, ...near.map((look) => look.score)) };
    const now = near.length ? seenAs(seen, near) : seen;
    const rolled = Math.abs(remainder(rollOf(now) - rollOf(pose), 360)) > level;
    return rolled ? this.lookClose(now, tilts, Infinity) : now;
  }

  // Squares about a middle, so wide and turned by rolls, drawn by a graph at that size.
  async cut(graph, middle, rolls, side, size) {
    const reach = side * 0.75 + 2;
    const cover = (c, length) => {
      const start = clamp(Math.floor(c - reach), 0, length - 1);
      return [start, clamp(Math.ceil(c + reach), start + 1, length) - start];
    };
    const [x, w] = cover(middle.x, this.width), [y, h] = cover(middle.y, this.height);
    const part = new DOMMatrix([2 / w, 0, 0, 2 / h, -1, -1]).translate(-x, -y).multiply(at(middle));
    const theta = rolls.flatMap((roll) => {
      const { a, b, c, d, e, f } = part.rotate(roll).scale(side / 2);
      return [a, c, e, b, d, f];
    });
    const small = [h, w].map((length) => Math.max(1, round(length * Math.min(1, size / side))));
    return run(graph, {
      pixels: bytes(this.context, x, y, w, h), size: integers(...small),
      theta: floats(theta, rolls.length, 2, 3), side: integers(size),
    });
  }

  // What the network is given of a face, or of a picture that is framed on it already.
  frame(pose) {
    const side = pose.side / n.box_share, roll = rollOf(pose), x = this.width / 2;
    if (pose.isCrop) return this.cut("frame", { x, y: x }, [90 * round(roll / 90)], 2 * x, 2 * x);
    const middle = at(pose.middle).rotate(roll).transformPoint({ x: 0, y: n.drop * side });
    return this.cut("frame", middle, [roll], side, clamp(round(side), n.size, n.max_frame));
  }

  isCrop(pose) {
    const width = this.width, gray = (value, i, all) => i % 4 === 3 || value === all[i - (i % 4)];
    if (width !== this.height || width <= n.small_crop) return width === this.height;
    const apart = Object.values(pose.middle).map((value) => Math.abs(value / width - 0.5));
    return Math.max(...apart) <= n.crop_shift && pose.side >= n.crop_share * width
      && Math.abs(remainder(rollOf(pose), 90)) <= n.crop_roll
      && bytes(this.context).data.every(gray);
  }
}

async function predict(bitmap, live) {
  const context = makeCanvas(bitmap.width, bitmap.height, "white");
  context.drawImage(bitmap, 0, 0);
  const search = new Search(context), now = performance.now(), old = live ? before : [];
  let poses = await search.confirm(old.map((pose) => ({ ...pose, score: 0 })), [0], []);
  if (now >= due || !old.length || poses.length < old.length) {
    poses = await search.find(poses, live);
    due = performance.now() + RARELY * (performance.now() - now);
  }
  poses = sorted(poses, rank);
  before = live ? poses : [];
  if (!poses.length) return [];
  if (search.isCrop(poses[0])) poses = [{ ...poses[0], isCrop: true }];
  const faces = [];
  for (const pose of poses) {
    const { data } = await run("network", { faces: await search.frame(pose) });
    const { chances: last = data, seen = 0 } = pose, share = 1 - Math.exp((seen - now) / SMOOTH);
    const chances = Array.from(data, (value, k) => last[k] + (value - last[k]) * share);
    Object.assign(pose, { chances, seen: now });
    const box = pose.box.map(({ x, y }) => [clamp(x, 0, search.width), clamp(y, 0, search.height)]);
    faces.push({ box: box.flat(), score: Math.min(1, pose.score), chances });
  }
  return faces;
}

const loading = load();
loading.catch(({ message }) => postMessage({ failed: message }));
onmessage = async ({ data: { bitmap, live } }) => {
  const reading = loading.then(() => predict(bitmap, live));
  const answer = await reading.then((faces) => ({ faces }), ({ message }) => ({ error: message }));
  postMessage({ ...answer, bitmap }, [bitmap]);
};
