"""What several test files share: where the data is, tiny data in its form, networks, processes."""

from __future__ import annotations

import io
import json
import lzma
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _fer2013 import VOTES
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ferfacenet import ImprovedVGG19, load_pretrained, save_pretrained
from ferfacenet.model import FER2013_CATEGORIES

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
PHOTO = ROOT / "docs" / "photos" / "astronaut.jpg"
PORTRAITS = ROOT / "docs" / "photos" / "portraits.jpg"  # two faces

unix = pytest.mark.skipif(os.name != "posix", reason="needs Unix: named pipes, signals, forks")

#: ``peak()`` and ``held()`` for code that another Python runs: the most bytes that its process has
#: held, and those that it holds. Not getrusage's, which begins with the peak of its parent.
PEAK = """
def peak(kind="VmHWM"):
    with open("/proc/self/status") as file:
        return int(file.read().split(kind + ":")[1].split()[0]) * 1024

def held():
    return peak("VmRSS")
"""


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of the file that Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def lively(model: ImprovedVGG19, seed: int = 0) -> ImprovedVGG19:
    """The model in eval mode, with weights and BatchNorm statistics by which its answers differ."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(0, 0.2, generator=random)
                module.running_var.uniform_(0.5, 1.5, generator=random)
                module.weight.uniform_(0.7, 1.5, generator=random)
                module.bias.normal_(0, 0.2, generator=random)
            elif isinstance(module, nn.Conv2d):
                module.weight.normal_(0, (2 / module.weight[0].numel()) ** 0.5, generator=random)
                assert module.bias is not None
                module.bias.normal_(0, 0.1, generator=random)
            elif isinstance(module, nn.Linear):
                module.weight.normal_(0, 0.5 * module.in_features**-0.5, generator=random)
                module.bias.normal_(0, 0.1, generator=random)
    return model.eval()


def sharp(num_classes: int = 7, width: float = 1.0) -> ImprovedVGG19:
    """A lively network whose probabilities show, in the third decimal, that a picture was read
    a little differently; those of random classifiers do not."""
    model = lively(ImprovedVGG19(num_classes, width=width))
    assert isinstance(model.classifier, nn.Linear)
    with torch.no_grad():
        features = model.forward_features(torch.full((1, 1, 44, 44), 0.5))
        embedding = model.forward_head(features, pre_logits=True)[0]
        model.classifier.weight.mul_(8)
        model.classifier.bias.copy_(-model.classifier.weight @ embedding)
    return model


def faces(n: int, seed: int = 0) -> Tensor:
    """Prepared images (n, 1, 48, 48) in [0, 1] that are smooth, as faces are."""
    coarse = torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=(48, 48), mode="bicubic").mul(2).sigmoid()


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that finds and reads faces without PyTorch."""
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason="needs the onnx extra")
    import export_onnx

    out = tmp_path_factory.mktemp("embedded") / "app"
    export_onnx.main(["--out", str(out)])
    return out


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real Chromium whose camera is a file."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the dev extra")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs Chromium: apt install chromium")
    camera = tmp_path_factory.mktemp("camera") / "camera.mjpeg"
    with Image.open(PHOTO) as photo:
        camera.write_bytes(encoded(photo.convert("RGB").resize((640, 480)), "JPEG") * 10)
    options = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    options += [f"--use-file-for-fake-video-capture={camera}", "--no-sandbox"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(browser: Any, address: str) -> Iterator[Any]:
    """Opened at the address, which a test file gives; it asks for nothing elsewhere."""
    page, asked = browser.new_page(), list[str]()
    page.set_default_timeout(120_000)
    page.on("request", lambda request: asked.append(request.url.removeprefix("blob:")))
    page.goto(address)
    yield page
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith((address, "data:"))] == []


def paste(page: Any, photo: Path, event: str = "paste") -> None:
    """Paste a file into a page in Chromium, or "drop" it there."""
    code = """([event, bytes]) => {
      const data = new DataTransfer();
      data.items.add(new File([Uint8Array.from(bytes)], "photo.jpg", { type: "image/jpeg" }));
      const Event = event === "paste" ? ClipboardEvent : DragEvent;
      document.body.dispatchEvent(
        new Event(event, { clipboardData: data, dataTransfer: data, bubbles: true }),
      );
    }"""
    page.evaluate(code, [event, list(photo.read_bytes())])


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


def change_state(run: Path, **changes: Any) -> None:
    """Give the state in a run's checkpoint other values."""
    path = run / "checkpoint.safetensors"
    with safe_open(path, "pt") as file:
        state = json.loads(file.metadata()["state"]) | changes
    save_file(load_file(path), path, {"state": json.dumps(state)})


def votes_text(rows: int) -> str:
    """FER+'s file for ``rows`` rows of ``csv_text``, where all agree with the label."""
    labels = [FER2013_CATEGORIES[row % 7] for row in range(rows)]
    votes = [",".join("9" if name == label else "0" for name in VOTES) for label in labels]
    lines = [f"Usage,Image name,{','.join(VOTES)}", *(f"Training,a.png,{row}" for row in votes)]
    return "\n".join(lines) + "\n"


@pytest.fixture
def tiny_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """21 Training and 7 PublicTest images of our own making, and a cache of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "fer2013.csv.xz"
    path.write_bytes(lzma.compress(csv_text(21, 7).encode(), preset=0))
    return path


def assert_whole(model: ImprovedVGG19, whole: dict[str, Tensor]) -> None:
    found = model.state_dict()
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[key], value) for key, value in whole.items())
    assert not model.training


def flip(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small weights by which views of one face have different answers."""
    folder = tmp_path_factory.mktemp("weights")
    save_pretrained(sharp(width=0.125), folder, dtype=torch.float32)
    return folder


@pytest.fixture(scope="session")
def model(weights: Path) -> ImprovedVGG19:
    return load_pretrained(weights)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A face that moves to the right in twenty frames, then four of a wall."""
    from videos import write_clip  # which needs the video extra

    return write_clip(tmp_path_factory.mktemp("clips"))


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may have more than 100,000 bytes, as on a disk that is full."""
    resource = pytest.importorskip("resource", reason="needs Unix")

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def python_path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def run(code: str, *arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh interpreter that finds the package under test."""
    if PEAK in code and not Path("/proc/self/status").exists():
        pytest.skip("needs /proc, which says how much memory a process has had")
    environment = os.environ | settings.pop("env", {}) | {"PYTHONPATH": python_path()}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, env=environment, text=True, capture_output=True, timeout=300, **settings
    )
