"""A network in training: the loss, the step and the epoch."""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from _augment import NUMBERS, Augmentation, augment
from _columns import use_columns
from _fer2013 import VOTES
from _settings import Config, Settings
from _winograd import keep_memory, use_winograd
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, update_bn
from tqdm import tqdm

from ferfacenet import ImprovedVGG19
from ferfacenet.fast import prefers_bfloat16
from ferfacenet.transforms import CROP, views

#: What networks say of a batch as it is learned, (B, 1, S, S): the mean of their probabilities,
#: (B, C), and their embeddings, one beside the other, (B, D), both float32.
Teacher: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]


class Trainee(nn.Module):
    """The network with, in training only, a head that predicts the FER+ votes and one that predicts
    its teachers' embeddings, of so many numbers."""

    def __init__(self, network: ImprovedVGG19, votes: bool, embeddings: int) -> None:
        super().__init__()
        self.network = network
        width = network.num_features
        self.votes = nn.Linear(width, len(VOTES)) if votes else None
        self.embeddings = nn.Linear(width, embeddings) if embeddings else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        features = self.network.forward_features(x)
        logits = self.network.forward_head(features)
        own = self.network.forward_head(features, pre_logits=True)
        votes = self.votes(own) if self.votes is not None else None
        return logits, votes, self.embeddings(own) if self.embeddings is not None else None


def soft_loss(logits: Tensor, targets: Tensor, kind: str) -> Tensor:
    """Mean over the batch of the loss between (N, C) logits and target distributions (II-B)."""
    if kind == "cross-entropy":
        return F.cross_entropy(logits, targets)
    # Formula (1): the binary cross-entropy of each softmax output, averaged over the m
    # categories. log(1 - h) is taken from the other categories' sum, which stays exact at h = 1.
    log_h = logits.log_softmax(1)
    own = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
    others = log_h[:, None].expand(-1, len(own), -1).masked_fill(own, -torch.inf).logsumexp(2)
    return -(targets * log_h + (1 - targets) * others).mean()


def unexplained(found: Tensor, wanted: Tensor) -> Tensor:
    """The mean square error of (N, D) numbers as a share of the variance of those wanted."""
    return F.mse_loss(found, wanted) / wanted.var(0, correction=0).mean()


@torch.no_grad()
def accuracy(model: ImprovedVGG19, images: Tensor, labels: Tensor, size: int) -> float:
    """Share of (N, 48, 48) uint8 images that one centre crop gets right; one that is of one gray
    throughout shows no expression that could be."""
    model.eval()
    right = torch.zeros((), device=images.device)
    for part, truth in zip(images.split(256), labels.split(256), strict=True):
        x = views(part[:, None].float() / 255, None)[0]
        if size != CROP:
            x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
        varied = (part != part[:, :1, :1]).flatten(1).any(1)
        right += ((model(x).argmax(1) == truth) & varied).sum()
    return float(right) / len(labels)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    states = (module.state_dict().values() for module in (average, model))
    kept, new = ([t for t in tensors if t.is_floating_point()] for tensors in states)
    # All at once: on a GPU a call for each tensor takes longer than the averaging.
    get_ema_multi_avg_fn(decay)(kept, new, 0)


def first_blocks(network: ImprovedVGG19, count: int) -> nn.Sequential:
    """The layers of the first ``count`` blocks, a block ending with its pooling."""
    pools = (nn.MaxPool2d, nn.AvgPool2d)
    ends = [0, *(i for i, layer in enumerate(network.features, 1) if isinstance(layer, pools))]
    if not 0 <= count < len(ends):
        raise SystemExit(f"--freeze {count}: there are 5 blocks")
    return network.features[: ends[count]]


def corrected(answers: Tensor, odds: Tensor) -> Tensor:
    """Probabilities (N, C) times e to the power of ``odds`` (N, C), normalised."""
    return (answers.clamp_min(1e-12).log() + odds).softmax(1)


def progress(total: int, done: int) -> tqdm[Any]:
    """A bar that counts images, slowly where it goes into a file."""
    return tqdm(
        total=total, initial=done, unit="img", unit_scale=True,
        mininterval=0.5 if sys.stderr.isatty() else 60,
    )  # fmt: skip


class Batches(NamedTuple):
    """What a number of steps S learn from, B images each."""

    x: Tensor  # (S, B, 1, side, side) float32 in [0, 1]
    targets: Tensor  # (S, B, C) float32
    labels: Tensor  # (S, B) int64
    votes: Tensor  # (S, B, len(VOTES), or 0 without votes) float32
    embeddings: Tensor  # (S, B, D, or 0 without a Teacher) float32

    def map(self, change: Callable[[Tensor], Tensor]) -> Batches:
        return Batches(*map(change, self))


class Trainer:
    """A network in training on images that lie on its device.

    ``network`` is trained in place; ``average`` is its moving average where there is one, else
    the network itself, and is what a run is for. ``images`` (N, 48, 48) uint8, ``labels`` (N,)
    int64, ``shares`` (N, C) float32, which are learned in place of the labels if there are any,
    ``votes`` (N, len(VOTES)) float32. ``teacher`` are probabilities that are learned with
    the share ``teacher_weight``, the labels with the rest: those of the images, (N, C) float32, or
    a ``Teacher`` that is asked about each batch as it is augmented and mixed. What it says is
    ``corrected`` by the images' ``odds`` (N, C), if there are any. Its embeddings, of
    ``embeddings`` numbers, are predicted by a linear head from the network's own, if
    ``embedding_weight`` is the weight of that.
    """

    def __init__(
        self, network: ImprovedVGG19, settings: Settings, images: Tensor, labels: Tensor, *,
        shares: Tensor | None = None, votes: Tensor | None = None, votes_weight: float = 0.0,
        teacher: Tensor | Teacher | None = None, teacher_weight: float = 0.0,
        odds: Tensor | None = None, embeddings: int = 0, embedding_weight: float = 0.0,
    ) -> None:  # fmt: skip
        self.settings, self.network = settings, network
        self.images, self.labels, self.device = images, labels, images.device
        self.votes = images.new_empty(len(images), 0) if votes is None else votes
        self.votes_weight = votes_weight
        self.teacher, self.teacher_weight, self.odds = None, teacher_weight, odds
        self.embedding_weight = embedding_weight
        smoothing, classes = settings.label_smoothing, network.num_classes
        known = F.one_hot(labels, classes) if shares is None else shares
        self.targets = known * (1 - smoothing) + smoothing / classes
        if isinstance(teacher, Tensor):
            answers = teacher if odds is None else corrected(teacher, odds)
            self.targets.lerp_(answers, teacher_weight)
        else:
            self.teacher = teacher
        self.steps_an_epoch = len(images) // settings.batch_size
        if not self.steps_an_epoch:
            raise SystemExit(f"--batch-size {settings.batch_size}: there are {len(images)} images")
        on_gpu = self.device.type == "cuda"
        torch.backends.cudnn.benchmark = True  # all batches have one shape
        self.bf16 = settings.amp == "on"
        embeddings = embeddings if embedding_weight else 0
        self.trainee = Trainee(network, votes is not None, embeddings).to(self.device)
        self.trainee.to(memory_format=torch.channels_last)
        if not on_gpu:
            keep_memory()
            (use_columns if self.bf16 else use_winograd)(self.trainee)
        self.frozen = first_blocks(network, settings.freeze).requires_grad_(False)
        self.average = copy.deepcopy(network) if settings.ema else network
        self.kept = nn.ModuleDict({"trainee": self.trainee})  # in a checkpoint
        if settings.ema:
            self.kept["average"] = self.average
        self.parameters = [p for p in self.trainee.parameters() if p.requires_grad]
        weights, others = ([p for p in self.parameters if (p.ndim > 1) == w] for w in (True, False))
        decay = settings.weight_decay
        self.optimizer = torch.optim.SGD(
            [
                {"params": weights, "weight_decay": decay},
                {"params": others, "weight_decay": decay * settings.decay_all},
            ],
            lr=torch.tensor(settings.lr, device=self.device),  # a CUDA graph reads it anew
            momentum=settings.momentum, nesterov=settings.nesterov, fused=True,
        )  # fmt: skip
        self.ahead = settings.ahead and on_gpu
        self.graph = settings.graph and on_gpu
        self.graphs: dict[torch.Size, Graph] = {}
        self.total_loss = torch.zeros((), device=self.device)
        self.right = torch.zeros((), device=self.device)
        if settings.compile:
            self.trainee.compile()

    def tensors(self) -> dict[str, Tensor]:
        """All that an epoch leaves for the next, for ``save_checkpoint``."""
        tensors = self.kept.state_dict() | {"targets": self.targets}
        for index, parameter in enumerate(self.parameters):
            tensors[f"momentum.{index}"] = self.optimizer.state[parameter]["momentum_buffer"]
        return {name: tensor.contiguous() for name, tensor in tensors.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from the ``tensors`` of a checkpoint."""
        # What lacks a buffer that a network has since got leaves it as it is.
        kept = self.kept.state_dict()
        self.kept.load_state_dict({n: tensor for n, tensor in tensors.items() if n in kept})
        self.targets = tensors["targets"].to(self.device)
        for index, parameter in enumerate(self.parameters):
            # In the parameter's own layout, which the fused optimizer takes for granted.
            momentum = torch.empty_like(parameter).copy_(tensors[f"momentum.{index}"])
            self.optimizer.state[parameter]["momentum_buffer"] = momentum

    def measure_batch_norm(self) -> None:
        """Set the statistics of ``average``'s BatchNorm to those over random crops and mirrors.

        Those of training are of images that were rotated, erased and mixed, which is not what
        the network is used on. Those of frozen blocks stay.
        """
        size, crops = self.settings.batch_size, Augmentation(crop=True)
        count = self.steps_an_epoch * size
        generator = torch.Generator().manual_seed(self.settings.seed)
        order = torch.randperm(len(self.images), generator=generator)[:count].to(self.device)
        numbers = torch.rand(count, NUMBERS, generator=generator).to(self.device)
        parts = zip(order.split(size), numbers.split(size), strict=True)
        frozen = first_blocks(self.average.eval(), self.settings.freeze)
        batches = (
            frozen(self.average.normalise(augment(self.images[picked], drawn, crops), torch.inf))
            for picked, drawn in parts
        )
        update_bn(batches, self.average.features[len(frozen) :])
        self.average.eval()

    @torch.no_grad()
    def make(
        self, picked: Tensor, numbers: Tensor, kept: Tensor, how: Augmentation, size: int
    ) -> Batches:
        """The images ``picked`` (S, B), augmented as ``numbers`` say and mixed with the one before
        them in the batch, of which the share 1 - ``kept`` (S,) is taken."""
        flat = picked.flatten()

        def mix(values: Tensor) -> Tensor:
            values = values.unflatten(0, picked.shape)
            share = kept.view(-1, *[1] * (values.ndim - 1))
            return (share * values + (1 - share) * values.roll(1, 1)).flatten(0, 1)

        x = mix(augment(self.images[flat], numbers[flat], how, size))
        y, embeddings = mix(self.targets[flat]), x.new_empty(len(x), 0)
        if self.teacher is not None:
            said = zip(*map(self.teacher, x.split(4096)), strict=True)
            answers, embeddings = map(torch.cat, said)
            if self.odds is not None:
                answers = corrected(answers, mix(self.odds[flat]))
            y = y.lerp(answers, self.teacher_weight)
        batches = Batches(x, y, self.labels[flat], mix(self.votes[flat]), embeddings)
        return batches.map(lambda values: values.unflatten(0, picked.shape))

    def step(self, batch: Batches) -> None:
        settings = self.settings
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits, vote_logits, embeddings = self.trainee(batch.x)
        loss = soft_loss(logits.float(), batch.targets, settings.loss)
        if vote_logits is not None:
            loss = loss + self.votes_weight * F.cross_entropy(vote_logits.float(), batch.votes)
        if embeddings is not None:
            loss = loss + self.embedding_weight * unexplained(embeddings.float(), batch.embeddings)
        self.optimizer.zero_grad()
        loss.backward()
        if settings.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, settings.clip_norm)
        if settings.clip_value:
            nn.utils.clip_grad_value_(self.parameters, settings.clip_value)
        self.optimizer.step()
        self.total_loss += loss.detach()
        self.right += (logits.argmax(1) == batch.labels).sum()

    def train_epoch(self, epoch: int, bar: tqdm[Any]) -> dict[str, Any]:
        """Train ``epoch``, counted from 0, and return its line of metrics.jsonl; SystemExit where
        the loss is not finite."""
        settings, steps = self.settings, self.steps_an_epoch
        # All that is random in an epoch follows from the seed and the epoch, so a resumed
        # run needs no generator state.
        drawn = epoch % settings.rounds if settings.rounds else epoch
        seed = settings.seed * 1_000_003 + drawn
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.images), generator=generator).to(self.device)
        numbers = torch.rand(len(self.images), NUMBERS, generator=generator).to(self.device)
        torch.manual_seed(seed * 97)
        kept = torch.ones(steps)
        if settings.mixup and not settings.is_calm(epoch):
            kept = torch.distributions.Beta(settings.mixup, settings.mixup).sample((steps,))
        kept = kept.to(self.device)
        size, started, lr = settings.size(epoch), time.perf_counter(), 0.0
        order = order[: steps * settings.batch_size].view(steps, -1)
        self.total_loss.zero_()
        self.right.zero_()
        self.trainee.train()
        self.frozen.eval()  # BatchNorm's statistics stay too
        ahead = steps if self.ahead else 1
        for step in range(steps):
            if step % ahead == 0:
                part = slice(step, step + ahead)
                made = self.make(order[part], numbers, kept[part], settings.augmented(epoch), size)
            done = epoch * steps + step
            lr = settings.rate(epoch, done / (steps * settings.epochs))
            for group in self.optimizer.param_groups:
                group["lr"].fill_(lr)
            batch = made.map(itemgetter(step % ahead))
            if self.graph:
                self.graphs.setdefault(batch.x.shape, Graph()).run(self.step, batch)
            else:
                self.step(batch)
            if settings.ema and (done + 1) % settings.ema_every == 0:
                decay = min(settings.ema, (1 + done) / (10 + done)) ** settings.ema_every
                update_average(self.average, self.network, decay)
            # A GPU is not waited for inside an epoch.
            if step == steps - 1 or (step % 10 == 9 and self.device.type == "cpu"):
                loss = float(self.total_loss) / (step + 1)
                if not math.isfinite(loss):
                    raise SystemExit(
                        f"the loss became {loss} in epoch {epoch + 1}: start again with a lower "
                        "--lr or a --clip-norm (the last checkpoint is whole)"
                    )
                right = float(self.right) / (step + 1) / order.shape[1]
                bar.set_postfix_str(f"epoch={epoch + 1}, loss={loss:.3f}, acc={right:.3f}", False)
            bar.update(settings.batch_size)
        if settings.precise_bn and epoch == settings.epochs - 1:
            self.measure_batch_norm()
        loss, right = (torch.stack((self.total_loss, self.right)) / steps).tolist()
        seconds = time.perf_counter() - started
        return {
            "epoch": epoch + 1, "epochs": settings.epochs, "size": size, "lr": lr,
            "loss": loss, "train_accuracy": right / settings.batch_size,
            "seconds": seconds, "images_per_second": steps * settings.batch_size / seconds,
        }  # fmt: skip


def with_precision(settings: Config, device: torch.device) -> Config:
    """The settings with "on" or "off" in place of amp's "auto": on a CPU that by which a step of
    training, on noise, takes less time here."""
    if settings.amp != "auto":
        return settings
    own_forms = device.type == "cpu" and torch.backends.mkldnn.is_available()
    has = torch.cpu.get_capabilities() if own_forms else {}
    if not any(map(has.get, ("avx512_bf16", "amx_bf16", "bf16"))):
        # A GPU, or a chip without the instructions, on which one step may take a minute.
        return dataclasses.replace(settings, amp="on" if prefers_bfloat16(device) else "off")
    few = min(settings.batch_size, 16)  # which say what many would
    own = dataclasses.replace(settings, batch_size=few, epochs=1, lr=0.0, precise_bn=False)
    images = torch.randint(256, (few, 48, 48), dtype=torch.uint8)
    kinds: tuple[Literal["off", "on"], ...] = ("off", "on")
    ways = [dataclasses.replace(own, amp=amp, compile=False) for amp in kinds]
    trainers = [Trainer(way.network(), way, images, images[:, 0, 0].long() % 7) for way in ways]
    turns = [
        [trainer.train_epoch(0, tqdm(disable=True))["seconds"] for trainer in trainers]
        for _ in range(3)
    ]
    plain, narrow = map(min, zip(*turns[1:], strict=True))  # the first has what comes once
    amp = kinds[narrow < plain]
    print(f"--amp {amp}: a step in bfloat16 takes {narrow / plain:.2f} times as long")
    return dataclasses.replace(settings, amp=amp)


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
            self.batch = batch.map(torch.clone)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                step(self.batch)
        for held, new in zip(self.batch, batch, strict=True):
            held.copy_(new)
        self.graph.replay()
