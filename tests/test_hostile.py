"""Hundreds of broken files, the largest files there may be, threads, processes, and time."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import conftest
import numpy as np
from conftest import PEAK, ROOT, encoded
from PIL import Image

from ferfacenet import files

#: What one process may grow by, in MiB: with the 516 that PyTorch itself takes, 1 GB.
GROWTH = 437

Image.init()  # so that Image.SAVE is complete
KINDS: dict[str, dict[str, Any]] = {
    "PNG": {}, "JPEG": {}, "GIF": {}, "WEBP": {}, "BMP": {}, "TIFF": {"compression": "tiff_lzw"},
    "PPM": {}, "AVIF": {}, "MPO": {},
}  # fmt: skip


def run(code: str, *arguments: str, **settings: Any) -> Any:
    """What the code prints as JSON, in a process of its own that may not hang."""
    done = conftest.run(code, *arguments, **settings)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def noise(height: int = 40, width: int = 50) -> Image.Image:
    random = np.random.default_rng(height)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


# --- files that are broken, or larger than they may be --------------------------------------


#: Files that are refused, and a word of the reason.
TOO_LARGE = {
    "60000.ppm": (b"P6 60000 60000 255\n" + bytes(10**6), "bomb"),
    "9000.ppm": (b"P6 9000 9000 255\n" + bytes(10**6), "exceed 48 Mi"),
}


def write_corpus(folder: Path) -> None:
    """At least 300 files, and other things that files may turn out to be."""
    random = np.random.default_rng(8)
    for kind, options in KINDS.items():
        if kind not in Image.SAVE:
            continue
        data = encoded(noise(), kind, **options)
        for cut in np.linspace(1, len(data) - 1, 12).astype(int):
            (folder / f"cut-{kind}-{cut}.{kind.lower()}").write_bytes(data[:cut])
        for turn in range(20):
            broken = bytearray(data)
            for place in random.integers(0, min(len(broken), 600 if turn % 2 else 10**9), 5):
                broken[place] ^= 1 << random.integers(8)
            (folder / f"flipped-{kind}-{turn}.{kind.lower()}").write_bytes(broken)
        (folder / f"good-suffix-{kind}.other").write_bytes(data)
        (folder / f"good-tail-{kind}.{kind.lower()}").write_bytes(data + b"\xff" * 1000)
    for name, data in {
        "empty.png": b"",
        "text.jpg": b"hello, I am a text\n" * 99,
        "zeros.bmp": bytes(5000),
        "good-cmyk.jpg": encoded(noise().convert("CMYK"), "JPEG"),
        "good-progressive.jpg": encoded(noise(), "JPEG", progressive=True),
        **{name: data for name, (data, _) in TOO_LARGE.items()},
    }.items():
        (folder / name).write_bytes(data)
    (folder / "folder.png").mkdir()
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "nowhere.png").symlink_to("absent")


READ = """
import json, signal, sys, time
from pathlib import Path
import numpy as np
from ferfacenet import preprocess

preprocess(np.eye(98), align=False)
found, before = {}, peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    start = time.process_time()
    signal.alarm(60)  # what hangs is ended, and the test fails
    try:
        x = preprocess(path, align=False)
        kind, said = "tensor", str(x.shape == (1, 48, 48) and bool(x.isfinite().all()))
    except BaseException as error:
        kind, said = type(error).__name__, str(error)
        kind = "OSError" if isinstance(error, OSError) else kind
    signal.alarm(0)
    found[path.name] = kind, said, time.process_time() - start
print(json.dumps([found, (peak() - before) / 2**20]))
"""


def test_a_corpus_of_broken_files(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    found, growth = run(PEAK + READ, str(tmp_path))
    assert len(found) == len(list(tmp_path.iterdir())) >= 300
    assert growth < GROWTH
    for name, (kind, said, seconds) in found.items():
        if kind == "tensor":
            assert said == "True", name
        else:
            assert kind in ("ValueError", "OSError"), (name, kind, said)
            assert name in said and len(said) < 1000 and not name.startswith("good"), said
        assert seconds < 15, (name, kind, said, seconds)
    for name in ("loop.png", "nowhere.png", "folder.png"):
        assert found[name][0] == "OSError", found[name]
    for name in ("empty.png", "text.jpg", "zeros.bmp"):
        assert found[name][0] == "ValueError", found[name]
    for name, (_, word) in TOO_LARGE.items():
        assert found[name][0] == "ValueError" and word in found[name][1], found[name]


def test_the_largest_files_stay_under_a_gigabyte(tmp_path: Path) -> None:
    """Of each format whose decoder takes much, a file at its limit of pixels."""
    for name, mode, kind, options in (
        ("a.webp", "RGBA", "WEBP", {"lossless": True, "method": 0, "quality": 0}),
        ("b.avif", "RGB", "AVIF", {"speed": 10}),
        ("c.jpg", "CMYK", "progressive JPEG", {"progressive": True}),
        ("d.png", "RGBA", "PNG", {"compress_level": 1}),
        ("e.tif", "RGB", "TIFF", {"compression": "tiff_lzw", "tiffinfo": {278: 8192}}),
    ):
        size = (8192, files._LIMITS.get(kind, files.MAX_PIXELS) // 8192)
        if kind.split()[-1] in Image.SAVE:
            image = Image.new(mode, size)
            image.paste("red", (0, 0, size[0] // 2, size[1]))  # one plain colour is refused
            image.save(tmp_path / name, kind.split()[-1], **options)
    found, growth = run(PEAK + READ, str(tmp_path))
    assert {kind for kind, _, _ in found.values()} == {"tensor"}, found
    assert 200 < growth < GROWTH  # a figure that stayed small would mean nothing was measured


def test_nothing_in_the_package_unpickles() -> None:
    loads = re.compile(
        r"import (c?[Pp]ickle|dill|joblib|marshal|shelve)|(torch|np|numpy|jit)\.load\(|"
        r"allow_pickle|weights_only|load_state_dict_from_url|[^.\w](eval|exec)\("
    )
    for path in (ROOT / "ferfacenet").rglob("*.py"):
        assert not loads.search(path.read_text()), path.name


# --- threads and processes ------------------------------------------------------------------

CALLS = """
import io, sys
import numpy as np, torch
from ferfacenet import ImprovedVGG19, predict_proba, preprocess
from PIL import Image

torch.manual_seed(0)
model = ImprovedVGG19(width=0.125).eval()
random = np.random.default_rng(0)
faces = [random.integers(0, 256, (48, 48), dtype=np.uint8) for _ in range(12)]
photo = io.BytesIO()
Image.fromarray(random.integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(photo, "JPEG")
prepared = torch.stack([preprocess(face) for face in faces])
calls = [
    lambda: predict_proba(model, faces[0]),
    lambda: predict_proba(model, faces[:3], tta="ten_crop"),
    lambda: predict_proba(model, prepared[:9], tta=None),
    lambda: predict_proba(model, prepared, batch_size=5),
    lambda: predict_proba(model, prepared[2:4], precision="float32"),
    lambda: preprocess(photo.getvalue(), align=False),
    lambda: preprocess(Image.open(io.BytesIO(photo.getvalue())), align=False),
]
"""

THREADS = """
import json
from concurrent.futures import ThreadPoolExecutor

serial = [call() for call in calls]
order = random.integers(len(calls), size=400).tolist()
with ThreadPoolExecutor(16) as pool:
    answers = list(pool.map(lambda which: calls[which](), order))
print(json.dumps([torch.equal(a, serial[which]) for a, which in zip(answers, order)]))
"""

MEMORY = """
import json
from ferfacenet import detect_faces

held_after = []
for done, (height, width) in enumerate(random.integers(300, 1400, (24, 2)).tolist(), 1):
    detect_faces(random.integers(0, 256, (height, width), np.uint8))
    for _ in range(4):
        calls[done % len(calls)]()
    if done in (8, 24):
        held_after.append(held())
print(json.dumps(held_after))
"""


def test_memory_grows_neither_with_the_sizes_of_photos_nor_with_predictions() -> None:
    early, late = run(CALLS + PEAK + MEMORY)
    assert late - early < 60 << 20


def test_sixteen_threads_answer_as_one() -> None:
    assert all(run(CALLS + THREADS))
