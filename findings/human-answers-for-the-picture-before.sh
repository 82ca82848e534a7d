#!/usr/bin/env bash
# Guessed: pictures that are given to `detect` of @vladmandic/human one after another are read each by
# itself, unless they hardly differ: its documentation says of `cacheSensitivity`, 0.7 by default,
# that 0.01 means a change of more than 1 %.
# Found: what is held against it is the mean squared difference divided by 255, so that 0.7 is 13 of
# 255 gray levels: two portraits of one person before one wall are the same. Of a smile and a frown
# the second gets the first one's emotion, at the same score and without a mark, whichever comes
# first, for 1.5 seconds; a new `Human` does not help, since all share that memory. With
# `cacheSensitivity: 0` each has its own. So a loop over a folder depends on its order.
# Seen with @vladmandic/human 3.3.6, TensorFlow.js 4.22.0 (wasm), node 20.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q opencv-python-headless==4.14.0.94 scikit-image==0.26.0
npm install --silent --prefix "$place" @vladmandic/human@3.3.6 @tensorflow/tfjs@4.22.0 \
    @tensorflow/tfjs-backend-wasm@4.22.0
"$place/venv/bin/python" - "$place/pictures" <<'END' | tee "$place/said"
import sys

import cv2
import numpy as np
from skimage.data import astronaut

smile, frown = astronaut(), astronaut()
cv2.ellipse(frown, (225, 145), (34, 17), 0, 0, 360, (226, 184, 161), -1)  # skin, for the mouth
cv2.ellipse(frown, (225, 158), (18, 12), 0, 180, 360, (130, 50, 50), 3)
cv2.line(frown, (190, 92), (216, 100), (60, 40, 30), 4)
cv2.line(frown, (260, 92), (234, 100), (60, 40, 30), 4)
print(f"they differ by {np.square(smile - frown.astype(float)).mean() ** 0.5:.0f} of 255 levels")
np.stack([smile, frown]).tofile(sys.argv[1])
END
cat > "$place/read.cjs" <<'END'
const { readFile } = require('node:fs/promises');
const home = __dirname + '/node_modules/';
globalThis.fetch = async (path) => new Response(await readFile(path));
const tf = require('@tensorflow/tfjs');
const { Human } = require(home + '@vladmandic/human/dist/human.node-wasm.js');

async function main() {
  const off = { enabled: false };
  const make = (more) => new Human({
    backend: 'wasm', wasmPath: home + '@tensorflow/tfjs-backend-wasm/dist/', warmup: 'none',
    modelBasePath: home + '@vladmandic/human/models/', body: off, hand: off, object: off,
    gesture: off, face: { iris: off, description: off }, ...more,
  });
  async function say(title, ...jobs) {
    const said = [];
    for (const [human, picture] of jobs) {
      const { emotion, score } = (await human.detect(picture)).face[0].emotion[0];
      said.push(`${emotion} ${score.toFixed(1)}`);
    }
    console.log(`${title}: ${said.slice(-2).join(', ')}`);
  }
  const [kept, another, fresh] = [make({}), make({}), make({ cacheSensitivity: 0 })];
  for (const human of [kept, another, fresh]) await human.load();
  const bytes = await readFile(__dirname + '/pictures');
  const [smile, frown] = [0, 1].map((i) => tf.tensor3d(
    bytes.subarray(i * bytes.length / 2, (i + 1) * bytes.length / 2), [512, 512, 3], 'float32'));
  await say('each by itself, a smile and a frown', [fresh, smile], [fresh, smile], [fresh, frown]);
  await say('in turn', [fresh, smile], [kept, smile], [kept, frown]);
  await say('in turn, the frown first', [fresh, frown], [kept, frown], [kept, smile]);
  await say('each with its own Human', [fresh, smile], [kept, smile], [another, frown]);
}
main();
END
node "$place/read.cjs" | tee -a "$place/said"
diff "$place/said" - <<'END'
they differ by 6 of 255 levels
each by itself, a smile and a frown: happy 1.0, angry 0.9
in turn: happy 1.0, happy 1.0
in turn, the frown first: angry 0.9, angry 0.9
each with its own Human: happy 1.0, happy 1.0
END
