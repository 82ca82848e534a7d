"""What every training script here shares: the settings, the step, the checkpoint."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from augment import NUMBERS, Augmentation, augment
from fer2013 import VOTES
from networks import PlainVGG19, share_batch_norm
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, update_bn
from tqdm import tqdm
from winograd import keep_memory, use_winograd

from ferfacenet import ImprovedVGG19, WeightsError, load_pretrained
from ferfacenet.fast import prefers_bfloat16
from ferfacenet.transforms import CROP, SIZE, normalise


@dataclass(frozen=True)
class Settings(Augmentation):
    """How a network is trained. The defaults are the paper's for FER2013 (its section 4); where
    the paper is silent they follow the public VGG19 recipe (see docs/paper.md)."""

    width: float = 1.0  # all channels times this
    pool: str = "max"  # max or avg
    hidden_features: int = 0  # width of one more fully connected layer; 0 for none
    dropout: float = 0.5
    freeze: int = 0  # the first so many of the five blocks stay as they are
    loss: str = "cross-entropy"  # or paper: formula (1)
    label_smoothing: float = 0.0
    mixup: float = 0.0  # alpha of the Beta distribution; 0 for no mixup
    calm: float = 0.0  # share of the epochs, the last ones, with plainer images and no mixup
    epochs: int = 250
    batch_size: int = 128  # over all processes together
    lr: float = 0.01
    schedule: str = "step"  # step: times 0.9 every 5 epochs from epoch 80; or cosine
    warmup: float = 0.0  # share of all steps in which the cosine schedule climbs to lr
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    decay_all: bool = True  # biases and BatchNorm too, not the weights alone
    clip_value: float = 0.1  # each gradient entry is clipped to this; 0 for no clipping
    clip_norm: float = 0.0  # the whole gradient is clipped to this norm; 0 for no clipping
    ema: float = 0.0  # decay of the average of the weights that is kept and tested; 0 for none
    ema_every: int = 1  # update it every so many steps, by the decay to their power
    precise_bn: bool = False  # BatchNorm's statistics measured anew at the end, on plain crops
    sizes: str = "44"  # side of the training images, as 44, or 32x4,44 for 4 epochs at 32 first
    crop: bool = True  # only random crops and mirrors, or else the ranges of Augmentation
    seed: int = 0
    amp: str = "auto"  # bf16 autocast: auto (where it is faster), on, off
    conv: str = "auto"  # winograd, plain, or auto: winograd on a CPU, but not in bf16
    device: str = "auto"
    ahead: bool = True  # on a GPU: all batches of an epoch are made at its start
    graph: bool = True  # on a GPU: the step is one CUDA graph
    compile: bool = False  # torch.compile: half as long again on a GPU for 20 seconds at the start

    def size(self, epoch: int) -> int:
        """Side of the training images in ``epoch``, counted from 0."""
        *early, last = self.sizes.split(",")
        for part in early:
            size, epochs = map(int, part.split("x"))
            if epoch < epochs:
                return size
            epoch -= epochs
        return int(last)

    def augmented(self, epoch: int) -> Augmentation:
        """How images are changed in ``epoch``, counted from 0: in the calm end nothing is erased,
        and rotation, scale and shift have a third of their range (nor are images mixed)."""
        if not self.is_calm(epoch):
            return self
        third = {name: getattr(self, name) / 3 for name in ("rotate", "scale", "shift")}
        return dataclasses.replace(self, erase=0.0, **third)

    def is_calm(self, epoch: int) -> bool:
        return epoch >= self.epochs * (1 - self.calm)

    def device_of(self, rank: int = 0) -> torch.device:
        """Where to train; ``rank`` counts this machine's processes."""
        if self.device == "auto":
            return torch.device(f"cuda:{rank}" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)


Config = TypeVar("Config", bound=Settings)

CHOICES = {
    "pool": ("max", "avg"),
    "loss": ("cross-entropy", "paper"),
    "schedule": ("step", "cosine"),
    "amp": ("auto", "on", "off"),
    "conv": ("auto", "winograd", "plain"),
}


def add_settings(
    parser: argparse.ArgumentParser, kind: type[Settings], choices: Mapping[str, tuple[str, ...]]
) -> None:
    """A flag for every field of ``kind``; those not given are None."""
    for field in dataclasses.fields(kind):
        flag = "--" + field.name.replace("_", "-")
        if field.type == "bool":
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None)
        else:
            allowed = (CHOICES | dict(choices)).get(field.name)
            parser.add_argument(flag, type=type(field.default), choices=allowed, default=None)


def parse_run(
    parser: argparse.ArgumentParser,
    arguments: list[str] | None,
    kind: type[Config],
    recipes: Mapping[str, Mapping[str, Any]],
    *,
    choices: Mapping[str, tuple[str, ...]],
    paths: tuple[str, ...],
    changeable: tuple[str, ...] = (),
) -> tuple[Config, Path, bool, dict[str, Any]]:
    """The command line of a script that trains, or goes on with --resume.

    Args:
        parser: with what the script takes besides, all None where not given.
        kind: its settings, one flag each, with the ``choices`` of some.
        recipes: settings by the name that --recipe gives.
        paths: the settings that are paths.
        changeable: the settings that --resume may change.

    Returns:
        The resolved settings, the run's folder, whether it is resumed, and what the script takes
        besides. What is wrong ends the process with one line.
    """
    add = parser.add_argument
    add("--recipe", choices=recipes, default="release", help="where to start from")
    add("--out", type=Path, help="folder of the run, new or empty")
    add("--resume", type=Path, metavar="RUN", help="go on with the run in a folder")
    add_settings(parser, kind, choices)
    given = vars(parser.parse_args(arguments))
    recipe, out, resume = given.pop("recipe"), given.pop("out"), given.pop("resume")
    own = {field.name for field in dataclasses.fields(kind)}
    besides = {name: given.pop(name) for name in given.keys() - own}
    settings = {name: value for name, value in given.items() if value is not None}
    if resume:
        if out or any(besides.values()) or settings.keys() - set(changeable):
            which = "all its settings from the run"
            if changeable:
                flags = " and ".join(f"--{name}" for name in changeable)
                which = f"its settings from the run, all but {flags}"
            parser.error(f"--resume takes {which}")
        try:
            saved = json.loads((resume / "config.json").read_text())
        except FileNotFoundError:
            parser.error(f"{resume} holds no config.json, so it is no run of this script")
        return kind(**saved | settings), resume, True, besides
    if not out or "data" not in settings:
        parser.error("--data and --out are needed (or --resume)")
    if out.exists() and any(out.iterdir()):
        parser.error(f"{out} is not empty: give another --out, or --resume {out}")
    for name in paths:  # --resume may be called from another folder
        if name in settings:
            settings[name] = str(Path(settings[name]).resolve())
    return dataclasses.replace(kind(**recipes[recipe]), **settings), out, False, besides


def stop_cleanly() -> None:
    """Let `kill` raise KeyboardInterrupt, as Ctrl-C does, also where a shell put the run in the
    background and Ctrl-C is ignored."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Keep Ctrl-C and `kill` waiting while an epoch is written down: a KeyboardInterrupt inside
    matplotlib's callbacks is dropped, or turned into another error."""
    waiting = []
    before = {
        number: signal.signal(number, lambda number, _: waiting.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if waiting:
        raise KeyboardInterrupt


def load_init(name: str, flag: str = "--init") -> ImprovedVGG19:
    """The network of the name, folder or Hub id that ``flag`` gives; one line ends the process if
    it is bad."""
    try:
        return load_pretrained(name)
    except (WeightsError, ValueError) as error:
        raise SystemExit(f"{flag} {name}: {error}") from error


class Trainee(nn.Module):
    """The network with, in training only, a second head that predicts the FER+ votes."""

    def __init__(self, network: ImprovedVGG19 | PlainVGG19, votes: bool) -> None:
        super().__init__()
        if votes and isinstance(network, PlainVGG19):
            raise SystemExit("--arch vgg19 has no place for the votes' head: --votes-weight 0")
        self.network = network
        self.votes = None
        if votes and isinstance(network, ImprovedVGG19):
            self.votes = nn.Linear(network.num_features, len(VOTES))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.votes is None or not isinstance(self.network, ImprovedVGG19):
            return self.network(x), None
        features = self.network.forward_features(x)
        embedding = self.network.forward_head(features, pre_logits=True)
        return self.network.forward_head(features), self.votes(embedding)


def soft_loss(logits: Tensor, targets: Tensor, kind: str) -> Tensor:
    """Mean over the batch of the loss between (N, C) logits and target distributions."""
    if kind == "cross-entropy":
        return F.cross_entropy(logits, targets)
    # Formula (1): the binary cross-entropy of each softmax output, averaged over the m
    # categories. log(1 - h) is taken from the other categories' sum, which stays exact at h = 1.
    log_h = logits.log_softmax(1)
    others = torch.stack(
        [log_h[:, [j for j in range(log_h.shape[1]) if j != i]].logsumexp(1)
         for i in range(log_h.shape[1])], dim=1
    )  # fmt: skip
    return -(targets * log_h + (1 - targets) * others).mean()


def learning_rate(settings: Settings, step: int, steps: int, epoch: int) -> float:
    if settings.schedule == "step":
        return settings.lr * 0.9 ** max(0, (epoch - 80) // 5)
    done, warm = step / steps, settings.warmup
    if done < warm:
        return settings.lr * (0.01 + 0.99 * done / warm)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (done - warm) / (1 - warm)))


@torch.no_grad()
def accuracy(model: ImprovedVGG19 | PlainVGG19, images: Tensor, labels: Tensor, size: int) -> float:
    """Share of (N, 48, 48) uint8 images that one centre crop gets right."""
    model.eval()
    edge = (SIZE - CROP) // 2
    right = 0
    for part, truth in zip(images.split(256), labels.split(256), strict=True):
        x = part[:, None, edge : edge + CROP, edge : edge + CROP].float() / 255
        if size != CROP:
            x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
        x = normalise(x, model.mean, model.std).to(memory_format=torch.channels_last)
        right += int((model(x).argmax(1) == truth).sum())
    return right / len(labels)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    kept, new = ([*m.state_dict().values()] for m in (average, model))
    floats = [index for index, tensor in enumerate(kept) if tensor.is_floating_point()]
    # All at once: on a GPU a call for each tensor takes longer than the averaging.
    get_ema_multi_avg_fn(decay)([kept[i] for i in floats], [new[i] for i in floats], 0)
    for index in set(range(len(kept))) - set(floats):
        kept[index].copy_(new[index])


def frozen_layers(network: ImprovedVGG19 | PlainVGG19, blocks: int) -> list[nn.Module]:
    """The layers of the first ``blocks`` blocks, a block ending with its pooling."""
    if not 0 <= blocks <= 5 or (blocks and isinstance(network, PlainVGG19)):
        raise SystemExit(f"--freeze {blocks}: 0 to 5 blocks of --arch improved can be frozen")
    layers: list[nn.Module] = []
    if isinstance(network, ImprovedVGG19):
        for layer in network.features:
            if not blocks:
                break
            layers.append(layer)
            blocks -= isinstance(layer, nn.MaxPool2d | nn.AvgPool2d)
    return layers


class Batches(NamedTuple):
    """What a number of steps S learn from, B images each."""

    x: Tensor  # (S, B, 1, side, side) float32, normalised
    targets: Tensor  # (S, B, C) float32
    votes: Tensor | None  # (S, B, len(VOTES)) float32
    labels: Tensor  # (S, B) int64

    def one(self, index: int) -> Batches:
        """Those of one step, without the first axis."""
        x, targets, votes, labels = self
        return Batches(
            x[index], targets[index], None if votes is None else votes[index], labels[index]
        )


def corrected(answers: Tensor, odds: Tensor) -> Tensor:
    """Probabilities (N, C) times e to the power of ``odds`` (N, C), normalised."""
    return (answers.clamp_min(1e-12).log() + odds).softmax(1)


class Trainer:
    """A network in training on images that lie on its device.

    ``network`` is trained in place; ``average`` is its moving average where there is one, else
    the network itself, and is what a run is for. ``images`` (N, 48, 48) uint8, ``labels`` (N,)
    int64, ``votes`` (N, len(VOTES)) float32. ``teacher`` are probabilities that are learned with
    the share ``teacher_weight``, the labels with the rest: those of the images, (N, C) float32, or
    a function that is asked about each batch as it is augmented, (B, 1, S, S) to (B, C) float32.
    What it says of an image is ``corrected`` by the image's ``odds`` (N, C), if there are any,
    before images are mixed.
    """

    def __init__(
        self,
        network: ImprovedVGG19 | PlainVGG19,
        settings: Settings,
        images: Tensor,
        labels: Tensor,
        *,
        votes: Tensor | None = None,
        votes_weight: float = 0.0,
        teacher: Tensor | Callable[[Tensor], Tensor] | None = None,
        teacher_weight: float = 0.0,
        odds: Tensor | None = None,
        world: int = 1,
        rank: int = 0,
    ) -> None:
        self.settings, self.world, self.rank = settings, world, rank
        self.images, self.labels = images, labels
        self.votes, self.votes_weight = votes, votes_weight
        smoothing, classes = settings.label_smoothing, network.num_classes
        self.targets = F.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
        self.teacher, self.teacher_weight = None, teacher_weight
        self.odds = odds
        if isinstance(teacher, Tensor):
            known = teacher if odds is None else corrected(teacher, odds)
            self.targets.lerp_(known, teacher_weight)
        else:
            self.teacher = teacher
        self.device = images.device
        # On a GPU: try cuDNN's convolutions and keep the fastest, as all batches have one shape.
        torch.backends.cudnn.benchmark = True
        self.steps_an_epoch = len(images) // settings.batch_size
        if not self.steps_an_epoch:
            raise SystemExit(f"{len(images)} images do not fill one batch of {settings.batch_size}")
        if settings.batch_size % world:
            raise SystemExit(
                f"a batch of {settings.batch_size} cannot be shared by {world} processes"
            )
        on_cpu, on_gpu = (self.device.type == kind for kind in ("cpu", "cuda"))
        self.bf16 = settings.amp == "on" or (
            settings.amp == "auto" and prefers_bfloat16(self.device)
        )
        self.network = network
        self.trainee = Trainee(network, votes is not None).to(self.device)
        self.trainee.to(memory_format=torch.channels_last)
        self.frozen = frozen_layers(network, settings.freeze)
        for layer in self.frozen:
            layer.requires_grad_(False)
        if settings.conv == "winograd" or (settings.conv == "auto" and on_cpu and not self.bf16):
            use_winograd(self.trainee)
        if on_cpu:
            keep_memory()
        if world > 1:
            share_batch_norm(self.trainee)
        self.average = copy.deepcopy(network) if settings.ema else network
        learning = [p for p in self.trainee.parameters() if p.requires_grad]
        weights = [p for p in learning if p.ndim > 1]
        others = [p for p in learning if p.ndim == 1]
        self.parameters = weights + others
        self.optimizer = torch.optim.SGD(
            [
                {"params": weights, "weight_decay": settings.weight_decay},
                {"params": others, "weight_decay": settings.weight_decay * settings.decay_all},
            ],
            # On a GPU a number that a CUDA graph reads anew each time it runs.
            lr=torch.tensor(settings.lr, device=self.device) if on_gpu else settings.lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            fused=on_gpu,
        )
        self.ahead = settings.ahead and on_gpu
        self.graphs: dict[torch.Size, Graph] | None = None
        if settings.graph and on_gpu and world == 1:
            self.graphs = {}
        self.total_loss = torch.zeros((), device=self.device)
        self.right = torch.zeros((), device=self.device)
        if settings.compile:
            self.trainee.compile()
        self.model: nn.Module = self.trainee
        if world > 1:
            self.model = nn.parallel.DistributedDataParallel(
                self.trainee,
                device_ids=None if on_cpu else [self.device],
                broadcast_buffers=False,
            )

    def tensors(self) -> dict[str, Tensor]:
        """All that an epoch leaves for the next, for ``save_checkpoint``."""
        tensors = prefixed(self.trainee, "trainee.") | {"targets": self.targets}
        if self.settings.ema:
            tensors |= prefixed(self.average, "average.")
        for index, parameter in enumerate(self.parameters):
            buffer = self.optimizer.state[parameter]["momentum_buffer"]
            tensors[f"momentum.{index}"] = buffer.contiguous()
        return tensors

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from the ``tensors`` of a checkpoint."""
        load_prefixed(self.trainee, tensors, "trainee.")
        if self.settings.ema:
            load_prefixed(self.average, tensors, "average.")
        if "targets" in tensors:  # runs that are older have no teachers either
            self.targets = tensors["targets"].to(self.device)
        for index, parameter in enumerate(self.parameters):
            # In the parameter's own layout, which the fused optimizer takes for granted.
            momentum = torch.empty_like(parameter).copy_(tensors[f"momentum.{index}"])
            self.optimizer.state[parameter]["momentum_buffer"] = momentum

    def measure_batch_norm(self) -> None:
        """Set the statistics of ``average``'s BatchNorm to those over random crops and mirrors.

        Those of training are of images that were rotated, erased and mixed, which is not what
        the network is used on.
        """
        settings, count = self.settings, self.steps_an_epoch * self.settings.batch_size
        generator = torch.Generator().manual_seed(settings.seed)
        order = torch.randperm(len(self.images), generator=generator)[:count].to(self.device)
        numbers = torch.rand(count, NUMBERS, generator=generator).to(self.device)
        crops = Augmentation(crop=True)

        def batches() -> Iterator[Tensor]:
            for picked, drawn in zip(
                order.split(settings.batch_size), numbers.split(settings.batch_size), strict=True
            ):
                x = augment(self.images[picked], drawn, crops, CROP, CROP)
                x = normalise(x, self.network.mean, self.network.std)
                yield x.contiguous(memory_format=torch.channels_last)

        update_bn(batches(), self.average)
        self.average.eval()

    @torch.no_grad()
    def make(
        self, picked: Tensor, numbers: Tensor, kept: Tensor, how: Augmentation, size: int
    ) -> Batches:
        """The images ``picked`` (S, B), augmented as ``numbers`` say, and mixed with the one before
        them in the batch where ``kept`` (S,), the share that stays, is not 1."""
        flat = picked.flatten()
        x = augment(self.images[flat], numbers[flat], how, size, CROP)
        x = normalise(x, self.network.mean, self.network.std)
        y = self.targets[flat]
        if self.teacher is not None:
            parts = x.contiguous(memory_format=torch.channels_last).split(4096)
            answers = torch.cat([self.teacher(part) for part in parts])
            if self.odds is not None:
                answers = corrected(answers, self.odds[flat])
            y = y.lerp(answers, self.teacher_weight)
        mixed = bool((kept != 1).any())
        kept = kept.to(self.device)

        def mix(values: Tensor) -> Tensor:
            values = values.unflatten(0, picked.shape)
            if not mixed:
                return values
            share = kept.view(-1, *[1] * (values.ndim - 1))
            return share * values + (1 - share) * values.roll(1, 1)

        votes = None if self.votes is None else mix(self.votes[flat])
        return Batches(mix(x), mix(y), votes, self.labels[flat].view(picked.shape))

    def step(self, batch: Batches) -> None:
        x, targets, votes, labels = batch
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits, vote_logits = self.model(x)
        loss = soft_loss(logits.float(), targets, self.settings.loss)
        if vote_logits is not None and votes is not None:
            loss = loss + self.votes_weight * F.cross_entropy(vote_logits.float(), votes)
        self.optimizer.zero_grad()
        loss.backward()
        if self.settings.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm)
        if self.settings.clip_value:
            nn.utils.clip_grad_value_(self.parameters, self.settings.clip_value)
        self.optimizer.step()
        self.total_loss += loss.detach()
        self.right += (logits.argmax(1) == labels).sum()

    def set_rate(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def train_epoch(self, epoch: int, bar: tqdm[Any], after_nan: str) -> dict[str, Any]:
        """Train ``epoch``, counted from 0, and return its line of metrics.jsonl.

        ``after_nan`` ends the message of the SystemExit that a loss which is not finite raises.
        """
        settings, device, steps = self.settings, self.device, self.steps_an_epoch
        # All that is random in an epoch follows from the seed and the epoch, so a resumed
        # run needs no generator state, and all processes draw the same numbers.
        seed = settings.seed * 1_000_003 + epoch
        generator = torch.Generator().manual_seed(seed)
        count = len(self.images)
        order = torch.randperm(count, generator=generator).to(device)
        numbers = torch.rand(count, NUMBERS, generator=generator).to(device)
        torch.manual_seed(seed * 97 + self.rank)
        kept = torch.ones(steps)
        if settings.mixup and not settings.is_calm(epoch):
            kept = torch.distributions.Beta(settings.mixup, settings.mixup).sample((steps,))
        size, started = settings.size(epoch), time.perf_counter()
        order = order[: steps * settings.batch_size].view(steps, -1)[:, self.rank :: self.world]
        self.total_loss.zero_()
        self.right.zero_()
        lr = settings.lr
        self.trainee.train()
        for layer in self.frozen:
            layer.eval()  # BatchNorm's statistics stay too
        ahead = steps if self.ahead else 1
        for step in range(steps):
            if step % ahead == 0:
                part = slice(step, step + ahead)
                made = self.make(order[part], numbers, kept[part], settings.augmented(epoch), size)
            done = epoch * steps + step
            lr = learning_rate(settings, done, steps * settings.epochs, epoch)
            self.set_rate(lr)
            batch = made.one(step % ahead)
            if self.graphs is None:
                self.step(batch)
            else:
                self.graphs.setdefault(batch.x.shape, Graph()).run(self.step, batch)
            if settings.ema and (done + 1) % settings.ema_every == 0:
                decay = min(settings.ema, (1 + done) / (10 + done)) ** settings.ema_every
                update_average(self.average, self.network, decay)
            # A GPU is not waited for inside an epoch.
            if step == steps - 1 or (step % 10 == 9 and device.type == "cpu"):
                current = float(self.total_loss) / (step + 1)
                if not math.isfinite(current):
                    raise SystemExit(f"the loss became {current} in epoch {epoch + 1}; {after_nan}")
                seen = (step + 1) * order.shape[1]
                bar.set_postfix(
                    epoch=epoch + 1, loss=f"{current:.3f}", acc=f"{float(self.right) / seen:.3f}",
                    refresh=False,
                )  # fmt: skip
            bar.update(settings.batch_size)
        if settings.precise_bn and epoch == settings.epochs - 1:
            self.measure_batch_norm()
        sums = torch.stack((self.total_loss, self.right))
        if self.world > 1:
            dist.all_reduce(sums)
        seconds = time.perf_counter() - started
        images = steps * settings.batch_size
        return {
            "epoch": epoch + 1,
            "epochs": settings.epochs,
            "size": size,
            "lr": lr,
            "loss": float(sums[0]) / steps / self.world,
            "train_accuracy": float(sums[1]) / images,
            "seconds": seconds,
            "images_per_second": images / seconds,
        }


class Graph:
    """A training step on a GPU: captured as a CUDA graph after a few that are run as they are."""

    def __init__(self) -> None:
        self.graph: torch.cuda.CUDAGraph | None = None
        self.eager = 0
        self.batch: Batches

    def run(self, step: Callable[[Batches], None], batch: Batches) -> None:
        """Do ``step`` with ``batch``, of the same shape each time."""
        if self.eager < 3:  # cuDNN tries its kernels, and the optimizer makes its momentum
            self.eager += 1
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                step(batch)
            torch.cuda.current_stream().wait_stream(stream)
            return
        if self.graph is None:
            x, targets, votes, labels = batch
            self.batch = Batches(
                x.clone(), targets.clone(), None if votes is None else votes.clone(), labels.clone()
            )
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                step(self.batch)
        for held, new in zip(self.batch, batch, strict=True):
            if held is not None and new is not None:
                held.copy_(new)
        self.graph.replay()


def save_checkpoint(
    path: Path, tensors: dict[str, Tensor], state: dict[str, Any], again: str
) -> None:
    """Write so that a kill at any moment leaves the old file or the new one, whole. ``again`` is
    the command that goes on, for the message where the disk is full."""
    temporary = path.with_suffix(".tmp")
    for left in path.parent.glob(".tmp*"):  # safetensors' own, where it was killed while writing
        left.unlink()
    try:
        save_file(tensors, temporary, {"state": json.dumps(state)})
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise SystemExit(
            f"cannot write {path}: {error}\nThe checkpoint of the epoch before is whole; make "
            f"room and go on with: {again}"
        ) from error


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, state
    except FileNotFoundError:
        raise SystemExit(f"{path.parent} holds no checkpoint to resume from") from None
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise SystemExit(f"{path} is torn or not a checkpoint: {error}") from error


def resume_from(
    path: Path, fingerprint: str, data: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The checkpoint ``path``, if it was trained on the data with this ``fingerprint``."""
    tensors, state = load_checkpoint(path)
    if state["fingerprint"] != fingerprint:
        raise SystemExit(
            f"{data} has changed since {path} was written: go on with the data "
            "it was trained on, or start a new run"
        )
    return tensors, state


def prefixed(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value.contiguous() for name, value in module.state_dict().items()}


def load_prefixed(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    module.load_state_dict(
        {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    )
