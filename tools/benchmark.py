"""Times the package beside plain PyTorch, beside what the machine could do, and beside others.

  python tools/benchmark.py --out runs/benchmark
  python tools/benchmark.py --out runs/benchmark --peers --data fer2013.csv \\
      --evaluation docs/results/release8/evaluation.json --plot accuracy-time.png

prints its tables and writes them to OUT/benchmark.md, and every figure to OUT/benchmark.json.
A run of some sections (--only) replaces those and keeps the rest. The whole takes about 15
minutes on two cores; on a machine that is busy otherwise the figures mean little.

sections:
  forward     predict_proba on one image and on 128 prepared ones
  gpu         the same on a GPU; where there is one
  throughput  1, 10, 128 and 1,000 images, from decoded arrays and from JPEG files
  start       from the start of the process to the first answer, and what loading costs
  memory      the most memory that a process holds
  tta         what each tta mode costs and gains; accuracies with --evaluation
  training    images a second of tools/train.py's steps
  peers       other packages on the same images; only with --peers
  bfloat16    what bfloat16 changes in the answers; only with --data

how it is measured:
  Calls that are compared take turns, after one round that does not count. A time is the median
  in milliseconds, with the quartiles in brackets. "plain" is the same network as PyTorch runs it
  eagerly in float32, model(x).softmax(1) in batches of 128, on the same images and views. "limit"
  is the least time by what the run itself measured just before: the multiplications of the direct
  sums at the rate of a large matrix product in the dtype used, or one reading of the weights from
  memory, whichever is longer. Winograd's form needs fewer multiplications, and may go below it.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from engine import Settings, Trainer, soft_loss
from evaluate import TTAS, prepare
from fer2013 import VOTES, load
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from train import RECIPES

from ferfacenet import ImprovedVGG19, load_pretrained, predict_proba
from ferfacenet.fast import Precision, prefers_bfloat16
from ferfacenet.hub import write_atomically
from ferfacenet.inference import TTA, views

Image8: TypeAlias = npt.NDArray[np.uint8]
Calls: TypeAlias = Mapping[str, Callable[[], object]]
Row: TypeAlias = dict[str, Any]


class Time(NamedTuple):
    """Seconds: the median, and the quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Time:
        low, middle, high = statistics.quantiles(seconds, method="inclusive")
        return cls(middle, low, high)


@dataclass
class Run:
    """What all sections share."""

    model: ImprovedVGG19
    seconds: float  # for each comparison
    largest: int  # most images in a call
    settings: argparse.Namespace
    bar: tqdm[Any]
    machine: str = ""  # for the table: what it ran on, and the limits it measured

    def time(self, calls: Calls) -> dict[str, Time]:
        """The calls' times, taken in turn, at least three of each."""
        self.bar.set_postfix_str(", ".join(calls), refresh=True)
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            call()
        end = time.perf_counter() + self.seconds
        while time.perf_counter() < end or len(next(iter(taken.values()))) < 3:
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                taken[name].append(time.perf_counter() - start)
        return {name: Time.of(t) for name, t in taken.items()}


# What the machine could do, and what plain PyTorch does ---------------------------------------


class Limits(NamedTuple):
    """What the machine reaches: in products of large matrices, and in reading memory."""

    flops: float
    bytes: float
    width: int  # bytes of a number in the dtype

    def seconds(self, model: ImprovedVGG19, count: int, side: int) -> float:
        """The least time for so many views: their direct sums, or the weights once."""
        weights = self.width * sum(p.numel() for p in model.parameters())
        return max(count * view_flops(model, side) / self.flops, weights / self.bytes)


def view_flops(model: ImprovedVGG19, side: int) -> float:
    """Additions and multiplications in the convolutions for one view of that side."""
    products = 0
    for layer in model.features:
        if isinstance(layer, torch.nn.Conv2d):
            products += layer.weight.numel() * side * side
        elif isinstance(layer, torch.nn.MaxPool2d | torch.nn.AvgPool2d):
            side //= 2
    return 2 * products


def measure_limits(run: Run) -> Limits:
    """In the dtype that ``precision="auto"`` takes on this CPU."""
    dtype = torch.bfloat16 if prefers_bfloat16(torch.device("cpu")) else torch.float32
    a, memory = torch.randn(2048, 2048).to(dtype), torch.ones(2**26)
    times = run.time({"multiply matrices": lambda: a @ a, "read memory": memory.sum})
    multiply, read = times["multiply matrices"].median, times["read memory"].median
    limits = Limits(2 * 2048**3 / multiply, 2**28 / read, dtype.itemsize)
    run.machine += (
        f" Limits: matrices are multiplied at {limits.flops / 1e9:.0f} GFLOP/s, memory is read at "
        f"{limits.bytes / 1e9:.1f} GB/s."
    )
    return limits


def plain(model: ImprovedVGG19, x: Tensor, tta: TTA | None) -> Tensor:
    """Prepared images (N, 1, 48, 48) to probabilities, as one writes it without this package."""
    with torch.no_grad():
        crops = views(x, tta)
        parts = [model(part).softmax(1) for part in crops.flatten(0, 1).split(128)]
        mean: Tensor = torch.cat(parts).unflatten(0, crops.shape[:2]).mean(0)
        return mean


def plain_arrays(model: ImprovedVGG19, images: Image8, tta: TTA | None) -> Tensor:
    return plain(model, prepare(model, images), tta)


def ours_arrays(model: ImprovedVGG19, images: Image8, tta: TTA | None) -> Tensor:
    return predict_proba(model, list(images), tta=tta)


def plain_files(model: ImprovedVGG19, files: Sequence[str], tta: TTA | None) -> Tensor:
    return plain_arrays(model, np.stack([np.asarray(Image.open(file)) for file in files]), tta)


def random_faces(n: int) -> Image8:
    """Smooth gray noise, (n, 48, 48): the time does not depend on what is shown."""
    coarse = torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(coarse, size=(48, 48), mode="bilinear")
    images: Image8 = (255 * smooth[:, 0]).to(torch.uint8).numpy()
    return images


def compared(run: Run, limits: Limits, count: int, tta: TTA | None, calls: Calls) -> Row:
    """A row for ``count`` images: the calls "plain" and "ours" (and "other", ours in the other
    precision)."""
    times = run.time(calls)
    shape = views(torch.zeros(count, 1, 48, 48), tta).shape
    least = limits.seconds(run.model, shape[0] * shape[1], shape[-1])
    ours = times["ours"].median
    row: Row = {
        "plain, ms": times["plain"],
        "ours, ms": times["ours"],
        "ours, images/s": count / ours,
        "times as fast as plain": times["plain"].median / ours,
        "limit, ms": 1e3 * least,
        "ours / limit": ours / least,
    }
    if "other" in times:
        precision = _other(limits)
        row[f"times as fast, in {precision}"] = times["plain"].median / times["other"].median
    return row


def _other(limits: Limits) -> Precision:
    """The precision that ``"auto"`` does not take here."""
    return "float32" if limits.width == 2 else "bfloat16"


# The sections ---------------------------------------------------------------------------------


def forward(run: Run) -> list[Row]:
    """`predict_proba` on prepared images, beside plain eager float32"""
    limits, model = measure_limits(run), run.model
    rows: list[Row] = []
    cases: list[tuple[int, TTA | None]] = [(1, None), (1, "flip"), (1, "ten_crop"), (128, None)]
    for count, tta in cases:
        x = prepare(model, random_faces(min(count, run.largest)))
        ours = partial(predict_proba, model, x, tta=tta)
        calls: dict[str, Callable[[], object]] = {"plain": partial(plain, model, x, tta)}
        calls["ours"] = ours
        calls["other"] = partial(ours, precision=_other(limits))
        head = {"images": len(x), "tta": str(tta)}
        rows.append(head | compared(run, limits, len(x), tta, calls))
    return rows


def throughput(run: Run) -> list[Row]:
    """From 48x48 pictures, decoded and as JPEG files"""
    limits, model = measure_limits(run), run.model
    images = random_faces(run.largest)

    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder, f"{i}.jpg")) for i in range(run.largest)]
        for image, file in zip(images, files, strict=True):
            Image.fromarray(image).save(file, quality=95)
        cases: list[tuple[TTA | None, int]] = [(None, n) for n in (1, 10, 128, 1000)]
        cases += [("ten_crop", n) for n in (1, 10)]  # 10 already are a batch of 100 crops
        for tta, count in cases:
            if count > run.largest:
                continue
            arrays, paths = images[:count], files[:count]
            sources: dict[str, Calls] = {
                "arrays": {
                    "plain": partial(plain_arrays, model, arrays, tta),
                    "ours": partial(ours_arrays, model, arrays, tta),
                },
                "JPEG files": {
                    "plain": partial(plain_files, model, paths, tta),
                    "ours": partial(predict_proba, model, paths, tta=tta),
                },
            }
            for source, calls in sources.items():
                head = {"images": count, "tta": str(tta), "from": source}
                rows.append(head | compared(run, limits, count, tta, calls))
    return rows


_ANSWER = "import ferfacenet, numpy; m = ferfacenet.load_pretrained(WEIGHTS); "
_START = {
    "import torch": "import torch",
    "import ferfacenet": "import ferfacenet",
    "first answer, plain": _ANSWER + "import torch; m(torch.zeros(1, 1, 44, 44)).softmax(1)",
    "first answer, ours": _ANSWER
    + "ferfacenet.predict_proba(m, numpy.zeros((48, 48), numpy.uint8), tta=None)",
}

#: The most bytes that the process held so far. On Linux not getrusage's, which begins with the
#: peak of the process that started this one.
_PEAK = """
import os, resource, sys
def peak():
    if os.path.exists("/proc/self/status"):
        with open("/proc/self/status") as file:
            return 1024 * int(file.read().split("VmHWM:")[1].split()[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
"""

#: Prints the seconds and the bytes that loading adds; COPY says whether by plain copying.
_LOAD = """
import time, torch
from ferfacenet import hub
def copy():
    with open(FILE, "rb", buffering=0) as file:
        data = torch.empty(os.fstat(file.fileno()).st_size, dtype=torch.uint8)
        file.readinto(data.numpy().data)
    halves = data[: len(data) // 2 * 2].view(torch.float16)
    return [part.float() for part in halves.split(2_000_000)]
torch.empty(0).numpy()
before, start = peak(), time.perf_counter()
kept = copy() if COPY else hub.load_pretrained(WEIGHTS)
print(time.perf_counter() - start, peak() - before)
"""


def python(code: str, **names: object) -> str:
    """What a fresh interpreter with this one's threads prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    set_names = "".join(f"{name} = {value!r}\n" for name, value in names.items())
    command = [sys.executable, "-c", set_names + code]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def start(run: Run) -> list[Row]:
    """From the start of the process to the first answer, and loading alone"""
    weights = run.settings.weights
    times = run.time(
        {name: partial(python, code, WEIGHTS=weights) for name, code in _START.items()}
    )
    torch_alone = times["import torch"].median
    rows: list[Row] = [
        {"": name, "ms": taken, "/ import torch": taken.median / torch_alone}
        for name, taken in times.items()
    ]
    run.bar.set_postfix_str("load", refresh=True)
    file = _weights_file(weights)
    taken: dict[bool, list[float]] = {True: [], False: []}
    grown: list[float] = []
    for _ in range(9):
        for copies, seconds in taken.items():
            lasted, added = map(
                float, python(_PEAK + _LOAD, COPY=copies, WEIGHTS=weights, FILE=file).split()
            )
            seconds.append(lasted)
            if not copies:
                grown.append(added)
    copied, loaded = (Time.of(taken[kind]) for kind in (True, False))
    parameters = 4 * sum(p.numel() for p in run.model.parameters())
    rows += [
        {"": "reading the file and copying it into float32", "ms": copied},
        {
            "": "load_pretrained()",
            "ms": loaded,
            "/ reading and copying": loaded.median / copied.median,
            "peak memory / float32 parameters": max(grown) / parameters,
        },
    ]
    return rows


_MEMORY = """
import torch, ferfacenet
from ferfacenet.inference import views
def plain(model, x, tta):
    with torch.no_grad():
        return [model(part).softmax(1) for part in views(x, tta).flatten(0, 1).split(128)]
model = ferfacenet.load_pretrained(WEIGHTS)
x = torch.zeros(COUNT, 1, 48, 48)
if HOW == "plain":
    plain(model, x, TTA)
elif HOW == "ours":
    ferfacenet.predict_proba(model, x, tta=TTA)
print(peak() / 2**20)
"""


def memory(run: Run) -> list[Row]:
    """The most memory that a process held, MB"""
    parameters = 4 * sum(p.numel() for p in run.model.parameters()) / 2**20
    imports = float(python(_PEAK + "import ferfacenet, torch\nprint(peak() / 2**20)"))
    rows: list[Row] = [
        {"": "imports alone", "ours": imports},
        {"": "the float32 parameters, by themselves", "ours": parameters},
    ]
    cases: list[tuple[str, int, TTA | None]] = [
        ("one image, one crop", 1, None),
        ("one image, ten crops", 1, "ten_crop"),
        ("128 images, one crop", 128, None),
        ("1,000 images, one crop", 1000, None),
    ]
    for name, count, tta in cases:
        run.bar.set_postfix_str(name, refresh=True)
        peaks = {
            how: float(
                python(_PEAK + _MEMORY, HOW=how, COUNT=count, TTA=tta, WEIGHTS=run.settings.weights)
            )
            for how in ("plain", "ours")
        }
        own = (peaks["ours"] - imports) / parameters
        rows.append(
            {"": name, **peaks, "ours / plain": peaks["ours"] / peaks["plain"],
             "ours without imports / parameters": own}
        )  # fmt: skip
    return rows


def tta_modes(run: Run) -> list[Row]:
    """What each `tta` mode costs and gains"""
    limits, model = measure_limits(run), run.model
    evaluation = run.settings.evaluation
    found: dict[str, Any] = json.loads(evaluation.read_text()) if evaluation else {}
    x = prepare(model, random_faces(min(128, run.largest)))
    one, many = (
        run.time({name: partial(predict_proba, model, some, tta=tta) for name, tta in TTAS.items()})
        for some in (x[:1], x)
    )
    rows: list[Row] = []
    for name, tta in TTAS.items():
        shape = views(x[:1], tta).shape
        row: Row = {
            "tta": str(tta),
            "views": f"{shape[0]} of {shape[-1]}x{shape[-1]}",
            "one image, ms": one[name],
            "/ limit": one[name].median / limits.seconds(model, shape[0], shape[-1]),
            f"each of {len(x)} images, ms": 1e3 * many[name].median / len(x),
        }
        if found:
            row[f"{found['split']} accuracy, %"] = 100 * found["accuracy"][name]
        rows.append(row)
    return rows


def plot_trade(rows: Sequence[Row], path: Path) -> None:
    """The rows of the section tta, as benchmark.json has them, to a PNG: accuracy in % against
    milliseconds for one image."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    accuracy = next(name for name in rows[0] if name.endswith("accuracy, %"))
    for row in rows:
        place = row["one image, ms"]["median_ms"], row[accuracy]
        axes.scatter(*place, color="#4477aa")
        label = row["tta"] if row["tta"] == "None" else f"'{row['tta']}'"
        axes.annotate(f"tta={label}", place, xytext=(0, 8), textcoords="offset points", ha="center")
    axes.set(xlabel=f"ms for one image ({torch.get_num_threads()} threads)", ylabel=accuracy)
    axes.margins(0.2)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def training(run: Run) -> list[Row]:
    """tools/train.py's steps, beside the network's own forward and backward on fixed data"""
    rows: list[Row] = []
    for recipe, chosen in RECIPES.items():
        chosen = dict(chosen)
        weight = chosen.pop("votes_weight", 0.0)
        settings = Settings(**chosen)
        device, batch = settings.device_of(), settings.batch_size
        many = batch * (2 if device.type == "cpu" else 50)
        random = torch.Generator().manual_seed(0)
        votes = torch.rand(many, len(VOTES), generator=random).softmax(1).to(device)
        network = ImprovedVGG19(dropout=settings.dropout)
        trainer = Trainer(
            network,
            settings,
            torch.from_numpy(random_faces(many)).to(device),
            torch.randint(7, (many,), generator=random).to(device),
            votes=votes if weight else None,
            votes_weight=weight,
        )
        size = settings.size(0)
        x = torch.randn(batch, 1, size, size, generator=random).to(device)
        x = x.contiguous(memory_format=torch.channels_last)
        y = F.one_hot(trainer.labels[:batch], 7).float()
        side = 2048 if device.type == "cpu" else 8192
        a = torch.randn(side, side, device=device).to(
            torch.bfloat16 if trainer.bf16 else torch.float32
        )
        silent = tqdm(disable=True)

        def wait(device: torch.device = device) -> None:
            if device.type == "cuda":
                torch.cuda.synchronize()

        def multiply(a: Tensor = a, wait: Callable[[], None] = wait) -> None:
            a @ a
            wait()

        def fixed(
            trainer: Trainer = trainer, x: Tensor = x, y: Tensor = y, weight: float = weight,
            wait: Callable[[], None] = wait,
        ) -> None:  # fmt: skip
            trainer.trainee.train()
            for _ in range(trainer.steps_an_epoch):
                with torch.autocast(trainer.device.type, torch.bfloat16, enabled=trainer.bf16):
                    logits, vote_logits = trainer.model(x)
                loss = soft_loss(logits.float(), y, trainer.settings.loss)
                if vote_logits is not None and trainer.votes is not None:
                    v = trainer.votes[: len(x)]
                    loss = loss + weight * F.cross_entropy(vote_logits.float(), v)
                trainer.optimizer.zero_grad()
                loss.backward()
            wait()

        def epoch(trainer: Trainer = trainer, silent: tqdm[Any] = silent) -> None:
            trainer.train_epoch(0, silent, "")

        times = run.time(
            {"forward and backward": fixed, "training": epoch, "multiply matrices": multiply}
        )
        alone, whole = times["forward and backward"], times["training"]
        rate = 2 * side**3 / times["multiply matrices"].median
        work = 3 * many * view_flops(network, size)  # forward, and twice that backward
        rows.append(
            {
                "recipe": recipe,
                "device": str(device),
                "batch": batch,
                "forward and backward alone, images/s": many / alone.median,
                "training, images/s": many / whole.median,
                "training, ms a step": Time(*(t / trainer.steps_an_epoch for t in whole)),
                "ratio": alone.median / whole.median,
                "share of the product rate, %": 100 * work / whole.median / rate,
            }
        )
    return rows


def _onnxruntime(run: Run) -> Callable[[Image8], object]:
    import onnxruntime
    from export_onnx import export

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(export(run.model, None), options)
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: prepare(run.model, images).numpy()})


def _efficientnet(run: Run) -> Callable[[Image8], object]:
    from torchvision.models import efficientnet_b0

    network = efficientnet_b0(num_classes=run.model.num_classes).eval()

    def call(images: Image8) -> Tensor:
        x = prepare(run.model, images).expand(-1, 3, -1, -1)
        with torch.no_grad():
            logits: Tensor = network(F.interpolate(x, size=(224, 224), mode="bilinear"))
        return logits.softmax(1)

    return call


def _fer(run: Run) -> Callable[[Image8], object]:
    from fer.fer import FER

    detector, whole = FER(), [(0, 0, 48, 48)]  # the face is the whole picture: none is looked for
    return lambda images: [detector.detect_emotions(np.stack([i] * 3, 2), whole) for i in images]


PEERS: dict[str, Callable[[Run], Callable[[Image8], object]]] = {
    "onnxruntime, our export, one crop": _onnxruntime,
    "torchvision efficientnet_b0, 224x224": _efficientnet,
    "fer": _fer,
}


def peers(run: Run) -> list[Row]:
    """Other packages on the same 48x48 arrays, to probabilities"""
    images = random_faces(min(128, run.largest))
    calls: dict[str, Callable[[Image8], object]] = {
        f"ours, tta={tta!r}": partial(ours_arrays, run.model, tta=tta) for tta in TTAS.values()
    }
    calls["plain, one crop"] = partial(plain_arrays, run.model, tta=None)
    absent: list[Row] = []
    for name, make in PEERS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                calls[name] = make(run)
        except ImportError as error:
            absent.append({"images": "", "": f"{name}: not installed ({error})"})
    rows: list[Row] = []
    for n in dict.fromkeys((1, len(images))):
        times = run.time({name: partial(call, images[:n]) for name, call in calls.items()})
        ours = times["ours, tta=None"].median
        rows += [
            {"images": n, "": name, "ms": taken, "/ ours, tta=None": taken.median / ours}
            for name, taken in times.items()
        ]
    return rows + absent


def bfloat16(run: Run) -> list[Row]:
    """What bfloat16 changes in the answers on PublicTest"""
    public = load(run.settings.data).split("PublicTest")
    images, labels = prepare(run.model, public.images), torch.tensor(public.labels)
    rows: list[Row] = []
    for tta in TTAS.values():
        x = images[: run.settings.limit] if tta == "ten_crop" else images
        answers: dict[str, list[Tensor]] = {"float32": [], "bfloat16": []}
        for part in tqdm(x.split(120), desc=f"bfloat16, tta={tta!r}", leave=False):
            for precision, parts in answers.items():
                parts.append(predict_proba(run.model, part, tta=tta, precision=precision))  # type: ignore[arg-type]
        wide, narrow = (torch.cat(parts) for parts in answers.values())
        same = wide.argmax(1) == narrow.argmax(1)
        right = [
            100 * float((p.argmax(1) == labels[: len(x)]).double().mean()) for p in (wide, narrow)
        ]
        rows.append(
            {
                "tta": str(tta),
                "images": len(x),
                "float32, %": right[0],
                "bfloat16, %": right[1],
                "same decision, %": 100 * float(same.double().mean()),
                "largest difference of a probability": float((wide - narrow).abs().max()),
            }
        )  # fmt: skip
    return rows


def gpu(run: Run) -> list[Row]:
    """`predict_proba` on a GPU, beside plain eager float32 there"""
    model = copy.deepcopy(run.model).to("cuda")
    run.machine = f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}."
    rows: list[Row] = []
    cases: list[tuple[int, TTA | None]] = [
        (1, None), (1, "ten_crop"), (128, None), (1000, None), (1000, "ten_crop"),
    ]  # fmt: skip
    for count, tta in cases:
        x = prepare(model, random_faces(min(count, run.largest)))
        calls: dict[str, Callable[[], object]] = {
            "plain": lambda x=x, tta=tta: plain(model, x.cuda(), tta).cpu(),  # type: ignore[misc]
            "ours": partial(predict_proba, model, x, tta=tta),
            "float32": partial(predict_proba, model, x, tta=tta, precision="float32"),
        }
        times = run.time(calls)
        rows.append(
            {
                "images": len(x),
                "tta": str(tta),
                "plain, ms": times["plain"],
                "ours, ms": times["ours"],
                "ours, images/s": len(x) / times["ours"].median,
                "times as fast as plain": times["plain"].median / times["ours"].median,
                "times as fast, in float32": times["plain"].median / times["float32"].median,
            }
        )
    return rows


SECTIONS: dict[str, Callable[[Run], list[Row]]] = {
    "forward": forward,
    "gpu": gpu,
    "throughput": throughput,
    "start": start,
    "memory": memory,
    "tta": tta_modes,
    "training": training,
    "peers": peers,
    "bfloat16": bfloat16,
}


# Output ---------------------------------------------------------------------------------------


def markdown(report: Mapping[str, Any]) -> str:
    """The tables of a report, as benchmark.json holds it."""
    parts = []
    for section in report.values():
        rows = section["rows"]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        lines = [columns, ["---"] * len(columns)]
        lines += [[_cell(row.get(name, "")) for name in columns] for row in rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        parts.append(f"### {section['title']}\n\n{section['machine']}\n\n{body}\n")
    return "\n".join(parts)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return "{median_ms:.4g} ({low_ms:.4g} to {high_ms:.4g})".format(**value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain_value(value: Any) -> Any:
    """A row's value as JSON has it: times in milliseconds."""
    if isinstance(value, Time):
        return {f"{name}_ms": 1e3 * part for name, part in value._asdict().items()}
    return value


def _weights_file(weights: str) -> str:
    import ferfacenet

    bundled = Path(ferfacenet.__file__).parent / "weights" / weights
    folder = bundled if bundled.is_dir() else Path(weights)
    return str(folder / "model.safetensors" if folder.is_dir() else folder)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, IndexError):
        return platform.processor() or platform.machine()


def _machine() -> str:
    busy = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    dtype = "bfloat16" if prefers_bfloat16(torch.device("cpu")) else "float32"
    return (
        f"{torch.get_num_threads()} threads on {os.cpu_count()} cores ({_processor()}{busy}), "
        f'PyTorch {torch.__version__}, `precision="auto"` is {dtype}.'
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    # fmt: off
    add("--out", type=Path, required=True, help="folder for the two files")
    add("--only", nargs="+", choices=SECTIONS, metavar="SECTION",
        help="of the sections above, those to run; by default all")
    add("--weights", default="fer2013",
        help="a registered name, or the folder or file of weights (fer2013)")
    add("--evaluation", type=Path, metavar="JSON",
        help="evaluation.json of tools/evaluate.py, for the accuracies")
    add("--plot", type=Path, metavar="PNG", help="accuracy against time; needs --evaluation")
    add("--data", type=Path, help="FER2013, for the section bfloat16")
    add("--limit", type=int, help="bfloat16: with ten crops, so many PublicTest images only")
    add("--peers", action="store_true", help="time other packages too: those installed of fer, "
        "onnxruntime (with onnxscript), torchvision")
    add("--threads", type=int, help="of PyTorch; by default its own choice")
    add("--seconds", type=float, default=5, help="for each comparison (5)")
    add("--largest", type=int, default=1000, help="most images in a call (1000)")
    # fmt: on
    settings = parser.parse_args(arguments)
    if settings.plot and not settings.evaluation:
        parser.error("--plot needs --evaluation, which holds the accuracies")
    if "bfloat16" in (settings.only or ()) and not settings.data:
        parser.error("the section bfloat16 needs --data")
    for path in (settings.evaluation, settings.data):
        if path is not None and not path.exists():
            parser.error(f"there is no {path}")
    if min(settings.largest, settings.seconds) <= 0:
        parser.error("--largest and --seconds must be positive")
    chosen = settings.only or [
        name for name in SECTIONS
        if not (name == "peers" and not settings.peers)
        and not (name == "gpu" and not torch.cuda.is_available())
        and not (name == "bfloat16" and not settings.data)
    ]  # fmt: skip
    if settings.threads:
        torch.set_num_threads(settings.threads)
    settings.out.mkdir(parents=True, exist_ok=True)
    kept = settings.out / "benchmark.json"
    report: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    bar = tqdm(chosen, unit="section")
    run = Run(load_pretrained(settings.weights), settings.seconds, settings.largest, settings, bar)
    for name in bar:
        bar.set_description(name)
        run.machine, section = _machine(), SECTIONS[name]
        rows = [{key: _plain_value(v) for key, v in row.items()} for row in section(run)]
        done = {"title": section.__doc__, "machine": run.machine, "rows": rows}
        with bar.external_write_mode(file=sys.stdout):
            print(markdown({name: done}), flush=True)
        report[name] = done
        if name == "tta" and settings.plot:
            plot_trade(rows, settings.plot)
        report = {key: report[key] for key in SECTIONS if key in report}
        write_atomically(kept, json.dumps(report, indent=1).encode())
        write_atomically(settings.out / "benchmark.md", markdown(report).encode())


if __name__ == "__main__":
    main()
