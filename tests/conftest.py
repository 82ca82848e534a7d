"""What several test files share: where the data is, and tiny data in its form."""

from __future__ import annotations

import io
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"

#: ``peak()`` for code that another Python runs: the most bytes that its process has held. Not
#: getrusage's, which begins with the peak of the process that started it.
PEAK = """
def peak():
    with open("/proc/self/status") as file:
        return int(file.read().split("VmHWM:")[1].split()[0]) * 1024
"""


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of the file that Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def fer2013_csv() -> Path:
    """The real FER2013 file; skips where it is absent, since it may not be redistributed."""
    path = SHARED / "fer2013" / "fer2013.csv.xz"
    if not path.is_file():
        pytest.skip(f"needs FER2013, which may not be redistributed: {path} is absent")
    return path


def csv_text(training: int, public: int, seed: int = 0) -> str:
    """A CSV in FER2013's layout: noise with a bright stripe that tells the label."""
    rng = np.random.default_rng(seed)
    lines = ["emotion,pixels,Usage"]
    for index in range(training + public):
        label = index % 7
        image = rng.integers(0, 100, (48, 48))
        image[6 * label : 6 * label + 6] += 150
        usage = "Training" if index < training else "PublicTest"
        lines.append(f"{label},{' '.join(map(str, image.ravel()))},{usage}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def tiny_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """21 Training and 7 PublicTest images of our own making, and a cache of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "fer2013.csv.xz"
    path.write_bytes(lzma.compress(csv_text(21, 7).encode(), preset=0))
    return path
