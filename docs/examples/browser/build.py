"""Writes the page as a folder that any static host serves.

  python docs/examples/browser/build.py --weights photos --out site
  python -m http.server --directory site

Then open http://127.0.0.1:8000. Needs the onnx extra and npm, which fetches onnxruntime-web; the
folder needs neither. A page that is opened as a file does not work: modules need a server.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2] / "tools"))

import export_onnx  # noqa: E402  # of tools

RUNTIME = "onnxruntime-web@1.30.0"
# Of it, what runs by WASM and what runs by WebGPU; a visit loads one of them.
FILES = (
    "ort.wasm.bundle.min.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.jspi.bundle.min.mjs",
    "ort-wasm-simd-threaded.jspi.wasm",
)


def fetch_runtime(out: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("build.py: needs npm, which comes with Node.js")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", "--silent", "--pack-destination", folder, RUNTIME]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (package,) = Path(folder).iterdir()
        with tarfile.open(package) as archive:
            for name in FILES:
                file = archive.extractfile(f"package/dist/{name}")
                assert file is not None
                (out / name).write_bytes(file.read())


def build(weights: str, out: Path) -> None:
    files = export_onnx.make_folder(weights)
    del files[export_onnx.READER.name]
    config = json.loads(files.pop("config.json"))
    out.mkdir(exist_ok=True)
    for name, data in files.items():
        (out / name).write_bytes(data)
    fetch_runtime(out)
    shutil.copy(HERE / "faces.js", out)
    page = (HERE / "index.html").read_text("utf-8")
    (script,) = re.findall(r'<script type="module">(.*)</script>', page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (out / "index.html").write_text(page.replace("sha256-", f"sha256-{digest}"), "utf-8")
    # How large files are the page has to know before they are there, for its progress bar.
    config["files"] = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    (out / "config.json").write_text(json.dumps(config))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default="photos", help="name, folder or Hub id (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("site"), help="a folder (%(default)s)")
    options = parser.parse_args()
    build(options.weights, options.out)
    size = sum(path.stat().st_size for path in options.out.iterdir()) / 1e6
    print(f"{options.out}: {size:.1f} MB; python -m http.server --directory {options.out}")


if __name__ == "__main__":
    main()
