"""Frames a second that pages read in one browser: docs/examples/browser, @vladmandic/human and
@vladmandic/face-api with the weights of their own packages, of one frame with one face, again and
again. Writes pages.json beside this file.

  python docs/results/peers/pages.py

Needs the onnx and dev extras, npm, Chromium, and a machine that does nothing else.
"""

from __future__ import annotations

import functools
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from playwright.sync_api import Error as BrowserError

from ferfacenet import __version__

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import _pages  # noqa: E402
from _settings import make_parser  # noqa: E402
from benchmark import describe_machine  # noqa: E402
from evaluate import write_json  # noqa: E402

PACKAGES = {
    "@vladmandic/human": "3.3.6",
    "@vladmandic/face-api": "1.7.15",
    "@tensorflow/tfjs-backend-wasm": "4.22.0",  # which both need by WASM
}

# Each sets read, from a canvas to the likeliest expression of the face on it, or null.
OURS = """
const worker = new Worker("/faces.js", { type: "module" });
const answer = (done) => new Promise((resolve) => {
  worker.onmessage = ({ data }) => done(data) && resolve(data);
});
const { categories } = await answer((data) => data.categories);
self.read = async (canvas) => {
  worker.postMessage({ bitmap: await createImageBitmap(canvas), live: true });
  const { faces: [face] } = await answer((data) => data.faces || data.error);
  return face ? categories[face.chances.indexOf(Math.max(...face.chances))] : null;
};
"""
HUMAN = """
import { Human } from "/node_modules/@vladmandic/human/dist/human.esm.js";
const off = { enabled: false };
const human = new Human({
  backend: "BACKEND", wasmPath: "/node_modules/@tensorflow/tfjs-backend-wasm/dist/",
  modelBasePath: "/node_modules/@vladmandic/human/models/", SIMILAR
  face: { iris: off, description: off }, body: off, hand: off, object: off, gesture: off,
});
await human.load();
if (human.tf.getBackend() !== "BACKEND") throw new Error(human.tf.getBackend());
self.read = async (canvas) => (await human.detect(canvas)).face[0]?.emotion[0]?.emotion ?? null;
"""
FACE_API = """
import * as faceapi from "/node_modules/@vladmandic/face-api/dist/face-api.esm.js";
faceapi.tf.setWasmPaths?.("/node_modules/@tensorflow/tfjs-backend-wasm/dist/");
if (!(await faceapi.tf.setBackend("BACKEND"))) throw new Error("BACKEND");
await faceapi.tf.ready();
for (const net of ["NET", "faceExpressionNet"]) {
  await faceapi.nets[net].loadFromUri("/node_modules/@vladmandic/face-api/model");
}
self.read = async (canvas) => {
  const face = await faceapi.detectSingleFace(canvas, new faceapi.OPTIONS()).withFaceExpressions();
  return face?.expressions.asSortedArray()[0].expression ?? null;
};
"""
# What a first visit to our page does not load where WASM computes.
NOT_LOADED = ("ort.jspi.bundle.min.mjs", "ort-wasm-simd-threaded.jspi.wasm", "LICENSE")

DETECTORS = {
    "tinyFaceDetector": "TinyFaceDetectorOptions",
    "ssdMobilenetv1": "SsdMobilenetv1Options",
}

MEASURE = """async ([photo, seconds]) => {
  const picture = await createImageBitmap(await (await fetch(photo)).blob());
  const canvas = Object.assign(document.createElement("canvas"), { width: 640, height: 480 });
  canvas.getContext("2d").drawImage(picture, 0, 0);
  for (let i = 0; i < 3; i++) await read(canvas); // what comes once is over then
  const start = performance.now();
  let count = 0, expression;
  for (; performance.now() < start + 1000 * seconds; count++) expression = await read(canvas);
  return [expression, (1000 * count) / (performance.now() - start)];
}"""


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def pages() -> dict[tuple[str, str], str]:
    """By package and how it is called: the script of its page."""
    scripts = {("ferfacenet", "docs/examples/browser, wasm"): OURS}
    for backend in ("wasm", "humangl"):
        human = HUMAN.replace("BACKEND", backend)
        each = human.replace("SIMILAR", "cacheSensitivity: 0,")
        scripts["@vladmandic/human", f"detect, every frame read, {backend}"] = each
        scripts["@vladmandic/human", f"detect, {backend}"] = human.replace("SIMILAR", "")
    for backend in ("wasm", "webgl"):
        for net, options in DETECTORS.items():
            script = FACE_API.replace("BACKEND", backend).replace("NET", net)
            called = f"detectSingleFace, {net}, {backend}"
            scripts["@vladmandic/face-api", called] = script.replace("OPTIONS", options)
    return scripts


def fill(folder: Path, scripts: dict[tuple[str, str], str]) -> float:
    """All that is served: our page's files, the packages, and a page for each script. Returns the
    megabytes that a visit to ours loads."""
    runpy.run_path(str(ROOT / "docs" / "examples" / "browser" / "build.py"))["build"](
        "photos", folder
    )
    own = [file.stat().st_size for file in folder.iterdir() if file.name not in NOT_LOADED]
    wanted = [f"{name}@{version}" for name, version in PACKAGES.items()]
    command = ["npm", "install", "--silent", "--ignore-scripts", "--prefix", str(folder), *wanted]
    subprocess.run(command, check=True)
    with Image.open(ROOT / "docs" / "photos" / "astronaut.jpg") as photo:
        photo.convert("RGB").resize((640, 480)).save(folder / "frame.png")
    for index, script in enumerate(scripts.values()):
        module = f"{script}\ndocument.title = 'ready';"
        page = f'<!doctype html><script type="module">{module}</script>'
        (folder / f"{index}.html").write_text(page)
    return sum(own) / 1e6


def measure(browser: Browser, address: str, seconds: float) -> tuple[str | None, float]:
    page = browser.new_page()
    page.set_default_timeout(60_000)
    failed = list[str]()
    page.on("pageerror", lambda error: failed.append(str(error)))
    try:
        page.goto(address)
        page.wait_for_function("document.title === 'ready'", timeout=30_000)
        expression, frames = page.evaluate(MEASURE, ["/frame.png", seconds])
    except BrowserError as error:
        raise RuntimeError(failed[0] if failed else error.message) from error
    finally:
        page.close()
    return expression, frames


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=4, help="of each round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="by turns (%(default)s)")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    scripts, found = pages(), dict[tuple[str, str], list[float]]()
    said = dict[tuple[str, str], str | None]()
    with tempfile.TemporaryDirectory() as name, sync_playwright() as driver:
        visit = fill(Path(name), scripts)
        handler = functools.partial(Handler, directory=name)
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            for turn in range(options.rounds):
                for index, key in enumerate(scripts):
                    if turn and found.get(key, [0.0])[0] < 1:
                        continue  # what has failed or is slow needs no other turn
                    address = f"http://127.0.0.1:{server.server_port}/{index}.html"
                    try:
                        said[key], frames = measure(browser, address, options.seconds)
                    except RuntimeError as error:
                        print(f"{key}: {error}", file=sys.stderr)
                        continue
                    found.setdefault(key, []).append(frames)
            chosen = browser.version
            browser.close()
            server.shutdown()
    versions = PACKAGES | {"ferfacenet": __version__}
    rows: list[dict[str, Any]] = [
        {
            "package": package,
            "called": called,
            "version": versions[package],
            "says": said[package, called],
            "frames_a_second": round(statistics.median(frames), 1),
        }
        for (package, called), frames in found.items()
    ]
    about = {"browser": f"Chromium {chosen}", "visit_megabytes": round(visit, 1)}
    result = about | describe_machine(torch.device("cpu")) | {"rows": rows}
    write_json(HERE / "pages.json", result)
    print(_pages.browsers())


if __name__ == "__main__":
    main()
