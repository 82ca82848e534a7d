// What a package of npm says of square gray pictures, whose bytes come on stdin: for each a name, or
// null where it finds no face, as JSON. With SEARCH "True" it looks for the face, else the picture
// is one.
//   node run.mjs NODE_MODULES human|face-api SEARCH SIZE < pictures
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { resolve } from 'node:path';
import { buffer } from 'node:stream/consumers';

const [folder, name, search, side] = process.argv.slice(2);
const home = resolve(folder) + '/';
const require = createRequire(home);
const wasm = home + '@tensorflow/tfjs-backend-wasm/dist/';
globalThis.fetch = async (path) => new Response(await readFile(path)); // all files are local
console.log = console.error; // stdout is for the answer
const tf = require('@tensorflow/tfjs');

async function useHuman() {
  const { Human } = require(home + '@vladmandic/human/dist/human.node-wasm.js');
  const off = { enabled: false };
  const human = new Human({
    backend: 'wasm', wasmPath: wasm, modelBasePath: home + '@vladmandic/human/models/', warmup: 'none',
    face: { iris: off, description: off }, body: off, hand: off, object: off, gesture: off,
    cacheSensitivity: 0, // or it takes a picture that is like the last for the next of a video
  });
  await human.load();
  if (search === 'True') return async (picture) => (await human.detect(picture)).face[0]?.emotion[0]?.emotion;
  const names = ['angry', 'disgust', 'fear', 'happy', 'sad', 'surprise', 'neutral'];
  return (picture) => tf.tidy(() => { // as its src/gear/emotion.ts, but for half_pixel_centers
    const gray = tf.image.resizeBilinear(picture.mean(2, true).expandDims(0), [64, 64], false, true);
    const scores = human.models.models.emotion.execute(gray.div(127.5).sub(1));
    return names[scores.argMax(1).dataSync()[0]];
  });
}

async function useFaceApi() {
  require('@tensorflow/tfjs-backend-wasm').setWasmPaths(wasm);
  await tf.setBackend('wasm');
  const faceapi = require('@vladmandic/face-api/dist/face-api.node-wasm.js');
  for (const net of ['ssdMobilenetv1', 'faceExpressionNet']) {
    await faceapi.nets[net].loadFromDisk(home + '@vladmandic/face-api/model');
  }
  const likeliest = (expressions) => expressions?.asSortedArray()[0].expression;
  return async (picture) => likeliest(search === 'True'
    ? (await faceapi.detectSingleFace(picture).withFaceExpressions())?.expressions
    : await faceapi.nets.faceExpressionNet.predictExpressions(picture));
}

const read = await (name === 'human' ? useHuman : useFaceApi)();
const [bytes, size, answers] = [await buffer(process.stdin), Number(side), []];
for (let start = 0; start < bytes.length; start += size * size) {
  const gray = tf.tensor3d(bytes.subarray(start, start + size * size), [size, size, 1], 'float32');
  const picture = gray.tile([1, 1, 3]);
  answers.push((await read(picture)) ?? null);
  tf.dispose([gray, picture]);
}
process.stdout.write(JSON.stringify(answers));
