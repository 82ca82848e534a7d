"""Coverage-guided fuzzing of what comes from outside: pictures, and weights with their config.

  pip install atheris
  python tests/fuzz.py images CORPUS -runs=500000 -max_len=4096 -timeout=20 -rss_limit_mb=1024
  python tests/fuzz.py weights CORPUS -runs=50000 -max_len=16384 -timeout=20 -rss_limit_mb=1024

CORPUS keeps what was found to reach new code; a new one is started with small sound files. A
finding is any outcome but a tensor (or a model) or the one documented error; libFuzzer then stops
and writes the input to crash-..., which in place of CORPUS runs alone.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import itertools
import json
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

atheris: Any = importlib.import_module("atheris")  # which has no types

with atheris.instrument_imports(include=["ferfacenet", "PIL"]):
    import PIL.Image

    PIL.Image.init()
    from ferfacenet import ImprovedVGG19, WeightsError, load_pretrained, save_pretrained
    from ferfacenet.files import FORMATS
    from ferfacenet.images import decode
    from ferfacenet.weights import CONFIG_FILE, WEIGHTS_FILE


def pictures() -> dict[str, bytes]:
    """Small sound files of each format that is read, in each mode that it can hold."""
    colour = PIL.Image.fromarray(torch.randint(256, (12, 9, 3), dtype=torch.uint8).numpy())
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    packed = {"exif": exif, "progressive": True, "lossless": True, "compression": "tiff_lzw"}
    several = {"save_all": True, "append_images": [colour.rotate(180)]}
    files = {"text.pgm": b"P2 3 2 255\n0 50 100\n150 200 250\n", "pfm": b"Pf 1 1 -1.0\n\0\0\0\0"}
    modes = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F")
    for kind, mode, options in itertools.product(FORMATS, modes, ({}, packed, several)):
        image = (colour.convert("L") if mode[0] in "IF" else colour).convert(mode)
        with suppress(Exception):  # a format that lacks this mode
            image.save(buffer := io.BytesIO(), kind, **options)
            files[f"{mode}-{len(files)}.{kind}"] = buffer.getvalue()
    return files


def read_picture(data: bytes) -> None:
    try:
        x = decode(data)
    except ValueError as error:
        check_message(error, f"image of {len(data)} bytes: ")
    else:
        assert x.ndim == 3 and len(x) in (1, 3) and x.numel()


class Weights:
    """``load_pretrained`` of a folder. An input's first byte says what the rest is: c, the config;
    h, the weights' header; w, the weights. These get a config that vouches for them."""

    def __init__(self, folder: Path) -> None:
        save_pretrained(ImprovedVGG19(width=0.125), folder)
        self.config, self.weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
        self.good, data = json.loads(self.config.read_bytes()), self.weights.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        self.header, self.payload = data[8:end], data[end:]
        self.seeds = {"config": b"c" + self.config.read_bytes(), "header": b"h" + self.header}

    def __call__(self, data: bytes) -> None:
        weights = self.header if data[:1] < b"d" else data[1:]
        if data[:1] < b"p":
            weights = len(weights).to_bytes(8, "little") + weights + self.payload
        digest = hashlib.sha256(weights).hexdigest()
        config = json.dumps(self.good | {"weights_sha256": digest}).encode()
        self.config.write_bytes(data[1:] if data[:1] < b"d" else config)
        self.weights.write_bytes(weights)
        try:
            model = load_pretrained(self.config.parent)
        except WeightsError as error:
            check_message(error, "")
        else:
            assert not model.training


def check_message(error: Exception, start: str) -> None:
    text = str(error)  # short and printable, whatever the file holds
    assert text.startswith(start) and len(text) < 2000 and text.isprintable(), ascii(text)


def main() -> None:
    if len(sys.argv) < 3 or sys.argv[1] not in ("images", "weights"):
        raise SystemExit(__doc__)
    name = sys.argv.pop(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        weights = Weights(Path(folder))
        corpus = Path(sys.argv[1])
        if not corpus.exists():
            corpus.mkdir(parents=True)
            for seed, data in (pictures() if name == "images" else weights.seeds).items():
                (corpus / seed).write_bytes(data)
        atheris.Setup(sys.argv, read_picture if name == "images" else weights)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
