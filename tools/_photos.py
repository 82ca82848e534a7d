"""The photos that tools/benchmark.py times, drawn from docs/photos; and, as a process that is told
in JSON what to do, one package that reads them.
"""

from __future__ import annotations

import cProfile
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

IMAGES = Path(__file__).parents[1] / "docs" / "photos"
FIRST = "967x512, two faces"  # the first photo that a process reads
MANY = "a list of photos, each"
#: What a photo's time is spent on, by the names of functions in ferfacenet.
STEPS = {
    "decoding": {"decode", "open_photo"},
    "search": {"find_poses", "follow_faces", "run"},
    "framing": {"frame_face"},
    "reading": {"read_faces"},
}


def draw_frames(count: int) -> Iterator[Image.Image]:
    """640x480, 25 a second: a portrait that goes and turns a little from side to side."""
    photo = Image.open(IMAGES / "astronaut.jpg")
    for index in range(count):
        swing = np.sin(index / 12)
        frame = Image.new("RGB", (640, 480), (90, 120, 150))
        turned = photo.rotate(8 * swing, Image.Resampling.BILINEAR)
        frame.paste(turned, (60 + round(50 * swing), -20))
        yield frame


def draw_scene(rng: np.random.Generator, size: list[int], heads: list[float]) -> Image.Image:
    """Heads of so many pixels side by side, before flags (mirrored, some would look like faces)."""
    photo = Image.open(IMAGES / "portraits.jpg")
    flag = np.asarray(photo.crop((512, 0, 640, 300)))
    flags = np.pad(flag, ((0, size[1]), (0, size[0]), (0, 0)), "wrap")
    scene = Image.fromarray(flags[: size[1], : size[0]])
    for index, head in enumerate(heads):
        bust = photo.crop([(110, 0, 330, 240), (615, 0, 885, 350)][index % 2])  # 3/4 are head
        bust.thumbnail((size[0] // len(heads), round(head / 0.75)))
        left, top = index * size[0] // len(heads), rng.integers(size[1] - bust.height + 1)
        scene.paste(bust, (left, int(top)))
    return scene


def draw_mixed(rng: np.random.Generator) -> Image.Image:
    """A scene of any size and shape, with up to four heads, three in ten turned by quarters."""
    short, shape = rng.uniform(300, 1200), rng.choice([1, 4 / 3, 3 / 2, 16 / 9])
    size = rng.permutation([int(short), int(short * shape)]).tolist()
    count = int(rng.integers(5))
    heads = rng.uniform(0.2, 0.75, count) * min(size[1], size[0] / max(1, count))
    turn = rng.choice([0, 90, 180, 270], p=[0.7, 0.1, 0.1, 0.1])
    return draw_scene(rng, size, heads.tolist()).rotate(int(turn), expand=True)


def draw_photos(folder: Path, count: int) -> dict[str, list[str]]:
    """The JPEGs of each case, ``count`` of them in the last."""
    rng = np.random.default_rng(0)
    portraits = Image.open(IMAGES / "portraits.jpg")
    large = np.asarray(portraits.crop((0, 0, 512, 384)).resize((4000, 3000)))
    noisy = large + rng.integers(-6, 7, (3000, 4000, 3))  # as a camera's; it costs decoders time
    photos = {
        "350x350, one face": portraits.crop((575, 0, 925, 350)),
        FIRST: portraits,
        "4000x3000, one face": Image.fromarray(noisy.clip(0, 255).astype(np.uint8)),
        "1920x1080, twelve faces": draw_scene(rng, [1920, 1080], np.linspace(40, 120, 12).tolist()),
        "1000x700, no face": draw_scene(rng, [1000, 700], []),
    }
    cases = {name: [str(folder / f"{name}.jpg")] for name in photos}
    cases[MANY] = [str(folder / f"{index}.jpg") for index in range(count)]
    for name, photo in photos.items():
        photo.save(cases[name][0], quality=90)
    for path in cases[MANY]:
        draw_mixed(rng).save(path, quality=90)
    return cases


def make_reader(package: str) -> Callable[[list[Any]], list[Any]]:
    """A function of files, or of a video's frames, to the faces that ferfacenet or fer finds."""
    if package == "fer":
        from fer.fer import FER

        fer = FER()
        return lambda images: [fer.detect_emotions(image) for image in images]
    import ferfacenet

    model = ferfacenet.load_pretrained("fer2013-small")

    def read(images: list[Any]) -> list[Any]:
        if isinstance(images[0], str):  # several are read ahead by threads, one is not
            found = ferfacenet.predict_faces(model, images[0] if len(images) == 1 else images)
            return [found] if len(images) == 1 else list(found)
        tracker = ferfacenet.FaceTracker(model)
        return [tracker.update(frame, index / 25) for index, frame in enumerate(images)]

    return read


def share_steps(call: Callable[[], object]) -> dict[str, float]:
    """The share of each of ``STEPS``, of this thread alone."""
    import ferfacenet

    (profile := cProfile.Profile()).runcall(call)
    entries, home = profile.getstats(), str(Path(ferfacenet.__file__).parent)
    own = [(getattr(e.code, "co_name", ""), e) for e in entries if home in str(e.code)]
    whole = sum(entry.inlinetime for entry in entries)
    return {
        step: round(sum(entry.totaltime for name, entry in own if name in names) / whole, 3)
        for step, names in STEPS.items()
    }


def time_cases(
    package: str, cases: dict[str, list[Any]], frames: int, seconds: float, explained: bool
) -> list[dict[str, Any]]:
    """Wall clock and CPU time in ms for an image: of one the median of calls that last so many
    seconds in all, after one that is not timed; of several that of a single call."""
    read = make_reader(package)
    rows = []
    cases["640x480 video, a frame"] = [np.asarray(frame) for frame in draw_frames(frames)]
    for name, images in cases.items():
        call = partial(read, images)
        taken: list[tuple[float, float]] = []
        if len(images) == 1:
            call()
        while not taken or (len(images) == 1 and sum(wall for wall, _ in taken) < seconds):
            start = time.perf_counter(), time.process_time()
            found = call()
            taken.append((time.perf_counter() - start[0], time.process_time() - start[1]))
        wall, cpu = (1e3 * statistics.median(of) / len(images) for of in zip(*taken, strict=True))
        row = {"case": name, "ms": wall, "cpu_ms": cpu, "faces": sum(map(len, found))}
        rows.append(row | ({"shares": share_steps(call)} if explained else {}))
    return rows


def time_first(package: str, photo: str, started: float) -> list[dict[str, Any]]:
    """From a process's start to its first answer; and the most MiB that it has held."""
    faces = make_reader(package)([photo])[0]
    row = {"case": "first photo of a process", "ms": 1e3 * (time.time() - started)}
    row |= {"cpu_ms": 1e3 * time.process_time(), "faces": len(faces)}
    status = Path("/proc/self/status")
    if found := re.search(r"VmHWM:\s*(\d+)", status.read_text() if status.is_file() else ""):
        row["peak_mib"] = int(found[1]) >> 10
    return [row]


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    print(json.dumps(time_first(**job) if "started" in job else time_cases(**job)))
