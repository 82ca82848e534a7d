"""Coverage-guided fuzzing of what comes from outside: pictures, and weights with their config.

  pip install atheris
  python tools/fuzz.py images CORPUS -runs=500000 -timeout=20 -rss_limit_mb=1024
  python tools/fuzz.py weights CORPUS -runs=500000 -timeout=20 -rss_limit_mb=1024

The folder CORPUS keeps what was found to reach new code; a new one is started with small sound
files. The other options are libFuzzer's. A finding is any outcome but a tensor (or a model) or
the one documented error; libFuzzer then stops and writes the input to crash-..., timeout-... or
oom-..., and `python tools/fuzz.py TARGET crash-...` runs just that one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import io
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

# Imported by name: it is for a few Python versions only, and its types are not needed.
atheris: Any = importlib.import_module("atheris")

with atheris.instrument_imports(include=["ferfacenet", "PIL", "json"]):
    import json

    import PIL.Image

    PIL.Image.init()
    from ferfacenet import hub, transforms

# What errors may hold of a file's own words: enough to find the place, not the whole file.
LONGEST = 2000


def pictures() -> dict[str, bytes]:
    """A small sound file of each kind that is read."""
    noise = torch.randint(256, (12, 9, 3), dtype=torch.uint8).numpy()
    colour = PIL.Image.fromarray(noise)
    gray = colour.convert("L")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    several: dict[str, Any] = {"save_all": True, "append_images": [colour.rotate(180)]}
    kinds: dict[str, tuple[PIL.Image.Image, str, dict[str, Any]]] = {
        "png": (colour, "PNG", {"exif": exif}),
        "png-palette": (colour.convert("P"), "PNG", {"transparency": 3}),
        "png-16": (gray.convert("I;16"), "PNG", {}),
        "png-1": (colour.convert("1"), "PNG", {}),
        "png-la": (colour.convert("LA"), "PNG", {}),
        "apng": (colour, "PNG", several),
        "jpeg": (colour, "JPEG", {"exif": exif}),
        "jpeg-gray": (gray, "JPEG", {}),
        "jpeg-cmyk": (colour.convert("CMYK"), "JPEG", {}),
        "jpeg-progressive": (colour, "JPEG", {"progressive": True}),
        "mpo": (colour, "MPO", several),
        "webp": (colour, "WEBP", {"exif": exif}),
        "webp-lossless": (colour.convert("RGBA"), "WEBP", {"lossless": True}),
        "webp-animation": (colour, "WEBP", several),
        "gif": (colour, "GIF", several),
        "bmp": (colour, "BMP", {}),
        "bmp-palette": (colour.convert("P"), "BMP", {}),
        "tiff": (colour, "TIFF", {}),
        "tiff-lzw": (colour, "TIFF", {"compression": "tiff_lzw"}),
        "tiff-g4": (colour.convert("1"), "TIFF", {"compression": "group4"}),
        "tiff-16": (gray.convert("I;16"), "TIFF", {}),
        "tiff-float": (gray.convert("F"), "TIFF", {}),
        "ppm": (colour, "PPM", {}),
        "pgm-16": (gray.convert("I"), "PPM", {}),
        "jp2": (colour, "JPEG2000", {}),
        "j2k": (gray, "JPEG2000", {"no_jp2": True}),
    }
    if "AVIF" in PIL.Image.SAVE:
        kinds["avif"] = (colour, "AVIF", {})
    files = {"pgm-text": b"P2 3 2 255\n0 50 100\n150 200 250\n", "pfm": b"Pf 1 1 -1.0\n\0\0\0\0"}
    for name, (image, kind, options) in kinds.items():
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        files[name] = buffer.getvalue()
    return files


def read_picture(data: bytes) -> None:
    try:
        x = transforms.preprocess(data, align=False)
    except ValueError as error:
        if type(error) is not ValueError or not str(error).startswith(f"image of {len(data)} "):
            raise
        check_message(str(error))
    else:
        if x.shape != (1, 48, 48) or not x.isfinite().all():
            raise AssertionError(f"{tuple(x.shape)} from {x.min()} to {x.max()}")


class Small(nn.Module):
    """A network of the same form and arguments as the real one, which would take 80 MB."""

    def __init__(
        self,
        num_classes: int = 7,
        in_channels: int = 1,
        dropout: float = 0.5,
        pool: str = "max",
        hidden_features: int | None = None,
    ) -> None:
        super().__init__()
        hidden = hidden_features or 2
        self.features = nn.Sequential(nn.Conv2d(in_channels, 2, 1), nn.BatchNorm2d(2))
        self.classifier = nn.Sequential(nn.Linear(2, hidden), nn.Linear(hidden, num_classes))
        self.dropout, self.num_classes, self.hidden_features = nn.Dropout(dropout), num_classes, 2
        self.mean, self.std, self.temperature = 0.5, 0.25, 1.0
        self.categories: tuple[str, ...] | None = ("a", "b")


vars(hub)["ImprovedVGG19"] = Small


class Weights:
    """``load_pretrained`` of a folder. An input's first byte says what the rest is: c, the config;
    w, the weights; h, the weights' header alone. Weights get a config that vouches for them, as
    an author of bad ones would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        model = Small(2)
        self.state = safetensors.torch.save(model.state_dict(), {"format": "pt"})
        self.config = hub.WeightsConfig(
            model_args={"num_classes": 2, "in_channels": 1, "dropout": 0.5, "pool": "max",
                        "hidden_features": 2},
            weights_sha256=hashlib.sha256(self.state).hexdigest(),
            categories=("a", "b"), mean=0.5, std=0.25, temperature=1.0, metrics={"a": 0.5},
            license="mit", trained_on="", selected_on="", dataset_license="",
        )  # fmt: skip

    def seeds(self) -> dict[str, bytes]:
        config = self.config.to_json()
        half = safetensors.torch.save(
            {k: v.half() if v.ndim > 1 else v for k, v in Small(2).state_dict().items()}
        )
        compact = json.dumps(json.loads(config)).encode()
        return {
            "config": b"c" + config,
            "compact": b"c" + compact,
            "state": b"w" + self.state,
            "half": b"w" + half,
            "header": b"h" + self.state[8 : 8 + int.from_bytes(self.state[:8], "little")],
        }

    def __call__(self, data: bytes) -> None:
        config, state = self.config.to_json(), self.state
        if data[:1] < b"d":
            config = data[1:]
        else:
            state = data[1:]
            if data[:1] < b"p":
                payload = self.state[8 + int.from_bytes(self.state[:8], "little") :]
                state = len(state).to_bytes(8, "little") + state + payload
            digest = hashlib.sha256(state).hexdigest()
            config = dataclasses.replace(self.config, weights_sha256=digest).to_json()
        (self.folder / hub.CONFIG_FILE).write_bytes(config)
        (self.folder / hub.WEIGHTS_FILE).write_bytes(state)
        try:
            model = hub.load_pretrained(self.folder)
        except hub.WeightsError as error:
            check_message(str(error))
        else:
            if model.training or not model.categories:
                raise AssertionError("a model that is not as load_pretrained promises")


def check_message(message: str) -> None:
    """A message must be short and printable, whatever the file holds."""
    if len(message) > LONGEST or "\n" in message or not message.isprintable():
        raise AssertionError(f"a message of {len(message)} characters: {message[:500]!a}")


def main() -> None:
    if len(sys.argv) < 3 or sys.argv[1] not in ("images", "weights"):
        raise SystemExit(__doc__)
    name = sys.argv.pop(1)
    warnings.simplefilter("ignore")  # Pillow's own, about broken files
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as at:
        weights = Weights(Path(at))
        target, seeds = (
            (read_picture, pictures()) if name == "images" else (weights, weights.seeds())
        )
        corpus = Path(sys.argv[1])
        if not corpus.is_file():
            corpus.mkdir(parents=True, exist_ok=True)
            if not any(corpus.iterdir()):
                for seed, data in seeds.items():
                    (corpus / seed).write_bytes(data)
        atheris.Setup(sys.argv, target)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
