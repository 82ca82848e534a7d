"""Trains the paper's network on FER2013, by the paper's recipe or by ours.

  python tools/train.py --data fer2013.csv --recipe release --out runs/release
  python tools/train.py --resume runs/release [--epochs 120]
  torchrun --nproc-per-node 2 tools/train.py --data fer2013.csv --out runs/two

The folder --out gets config.json (every setting, resolved), metrics.jsonl (a line an epoch),
curves.png, checkpoint.safetensors (rewritten each epoch; --resume goes on from it) and, at the
end, weights/ (config.json and model.safetensors, which ferfacenet.load_pretrained reads).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from augment import NUMBERS, Augmentation, augment
from fer2013 import VOTES, Faces, load, load_votes
from figures import plot_curves
from networks import PlainVGG19, build, share_batch_norm
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm
from winograd import keep_memory, use_winograd

from ferfacenet import ImprovedVGG19, save_pretrained
from ferfacenet.fast import has_bfloat16
from ferfacenet.hub import write_atomically
from ferfacenet.transforms import CROP, SIZE, normalise


@dataclass(frozen=True)
class Config(Augmentation):
    """Every setting of a run. The defaults are the paper's (its section 4); where the paper
    is silent they follow the public VGG19 recipe (see docs/paper.md)."""

    data: str = ""  # fer2013.csv (or .gz, .xz, .zip, or the Kaggle folder)
    votes: str = ""  # ferplus.csv, needed when votes_weight is not 0
    arch: str = "improved"  # improved, or vgg19: torchvision's plain VGG19
    pool: str = "max"  # max or avg
    hidden_features: int = 0  # width of one more fully connected layer; 0 for none
    batch_norm: bool = True
    dropout: float = 0.5
    loss: str = "cross-entropy"  # or paper: formula (1)
    label_smoothing: float = 0.0
    mixup: float = 0.0  # alpha of the Beta distribution; 0 for no mixup
    votes_weight: float = 0.0  # weight of an auxiliary head's loss on the FER+ votes
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
    sizes: str = "44"  # side of the training images, as 44, or 32x4,44 for 4 epochs at 32 first
    crop: bool = True  # only random crops and mirrors, or else the ranges of Augmentation
    holdout: float = 0.0  # share of Training that is kept out of training, to report on
    limit: int = 0  # train on the first so many images only; 0 for all
    seed: int = 0
    amp: str = "auto"  # bf16 autocast: auto (where the hardware has it), on, off
    conv: str = "auto"  # winograd, plain, or auto: winograd on a CPU without bf16
    device: str = "auto"

    def size(self, epoch: int) -> int:
        """Side of the training images in ``epoch``, counted from 0."""
        *early, last = self.sizes.split(",")
        for part in early:
            size, epochs = map(int, part.split("x"))
            if epoch < epochs:
                return size
            epoch -= epochs
        return int(last)


DATASET_LICENSE = (
    "FER2013 was published for the ICML 2013 representation learning challenge, its images found "
    "by web search; it may be used for research and not be redistributed. None of its images are "
    "in this repository."
)

RECIPES: dict[str, dict[str, Any]] = {
    "paper": {},
    "release": {
        "label_smoothing": 0.1,
        "votes_weight": 0.5,
        "epochs": 100,
        "batch_size": 64,
        "lr": 0.03,
        "schedule": "cosine",
        "warmup": 0.1,
        "nesterov": True,
        "decay_all": False,
        "clip_value": 0.0,
        "clip_norm": 1.0,
        "ema": 0.999,
        "crop": False,
        "rotate": 12.0,
        "scale": 0.12,
        "shift": 0.08,
        "brightness": 0.1,
        "contrast": 0.2,
        "erase": 0.3,
    },
}


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


def learning_rate(config: Config, step: int, steps: int, epoch: int) -> float:
    if config.schedule == "step":
        return config.lr * 0.9 ** max(0, (epoch - 80) // 5)
    done, warm = step / steps, config.warmup
    if done < warm:
        return config.lr * (0.01 + 0.99 * done / warm)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (done - warm) / (1 - warm)))


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
    for kept, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(new, 1 - decay)
        else:
            kept.copy_(new)


def save_checkpoint(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write so that a kill at any moment leaves the old file or the new one, whole."""
    temporary = path.with_suffix(".tmp")
    try:
        save_file(tensors, temporary, {"state": json.dumps(state)})
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise SystemExit(
            f"cannot write {path}: {error}\nThe checkpoint of the epoch before is whole; make "
            f"room and go on with: python tools/train.py --resume {path.parent}"
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


def parse(arguments: list[str] | None = None) -> tuple[Config, Path, bool]:
    """The resolved config, the run's folder, and whether it is resumed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", choices=RECIPES, default="release", help="where to start from")
    parser.add_argument("--out", type=Path, help="folder of the run, new or empty")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with the run in a folder")
    choices = {
        "arch": ("improved", "vgg19"),
        "pool": ("max", "avg"),
        "loss": ("cross-entropy", "paper"),
        "schedule": ("step", "cosine"),
        "amp": ("auto", "on", "off"),
        "conv": ("auto", "winograd", "plain"),
    }
    for field in dataclasses.fields(Config):
        flag = "--" + field.name.replace("_", "-")
        if field.type == "bool":
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None)
        else:
            parser.add_argument(
                flag, type=type(field.default), choices=choices.get(field.name), default=None
            )
    given = vars(parser.parse_args(arguments))
    recipe, out, resume = given.pop("recipe"), given.pop("out"), given.pop("resume")
    settings = {name: value for name, value in given.items() if value is not None}
    if resume:
        # The length may change with the time that there is; metrics.jsonl says from when.
        if out or settings.keys() - {"epochs", "sizes"}:
            parser.error("--resume takes its settings from the run, all but --epochs and --sizes")
        try:
            saved = json.loads((resume / "config.json").read_text())
        except FileNotFoundError:
            parser.error(f"{resume} holds no config.json, so it is no run of this script")
        return Config(**saved | settings), resume, True
    if not out or "data" not in settings:
        parser.error("--data and --out are needed (or --resume)")
    if out.exists() and any(out.iterdir()):
        parser.error(f"{out} is not empty: give another --out, or --resume {out}")
    for name in ("data", "votes"):  # --resume may be called from another folder
        if name in settings:
            settings[name] = str(Path(settings[name]).resolve())
    config = dataclasses.replace(Config(**RECIPES[recipe]), **settings)
    if config.votes_weight and not config.votes:
        parser.error("--votes ferplus.csv is needed by this recipe (or --votes-weight 0)")
    return config, out, False


def hold_out(faces: Faces, share: float) -> tuple[Faces, Faces]:
    """Split off ``share`` of the faces by the digest of their pixels, so that byte-identical
    images are on one side and every run holds out the same ones."""
    kept = [int.from_bytes(digest[:4], "big") / 2**32 >= share for digest in faces.hashes()]
    mask = np.array(kept)
    return faces.where(mask), faces.where(~mask)


def to_device(faces: Faces, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(faces.images, device=device), torch.tensor(faces.labels, device=device)


def main(arguments: list[str] | None = None) -> None:
    config, out, resumed = parse(arguments)
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if config.device == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    else:
        name = config.device
    device = torch.device(name)
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    # `kill` ends a run as cleanly as Ctrl-C does, also one that a shell put in the background.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    bf16 = config.amp == "on" or (config.amp == "auto" and has_bfloat16(device))

    faces = load(config.data)
    training = faces.split("Training")
    if config.limit:
        training = training.where(np.arange(len(training)) < config.limit)
    fingerprint = training.fingerprint()
    training, held = hold_out(training, config.holdout)
    images, labels = to_device(training, device)
    tests = {"public_accuracy": to_device(faces.split("PublicTest"), device)}
    if config.holdout:
        tests["holdout_accuracy"] = to_device(held, device)
    votes = None
    if config.votes_weight:
        votes = torch.tensor(load_votes(config.votes, training), device=device)
    steps_an_epoch = len(images) // config.batch_size
    if not steps_an_epoch:
        raise SystemExit(f"{len(images)} images do not fill one batch of {config.batch_size}")
    if config.batch_size % world:
        raise SystemExit(f"a batch of {config.batch_size} cannot be shared by {world} processes")
    steps = steps_an_epoch * config.epochs

    torch.manual_seed(config.seed)
    network = build(
        config.arch,
        "avg" if config.pool == "avg" else "max",
        config.hidden_features,
        config.batch_norm,
        config.dropout,
    )
    trainee = Trainee(network, votes is not None).to(device).to(memory_format=torch.channels_last)
    if config.conv == "winograd" or (config.conv == "auto" and device.type == "cpu" and not bf16):
        use_winograd(trainee)
    if device.type == "cpu":
        keep_memory()
    if world > 1:
        share_batch_norm(trainee)
    average = copy.deepcopy(network) if config.ema else network
    weights = [p for p in trainee.parameters() if p.ndim > 1]
    others = [p for p in trainee.parameters() if p.ndim == 1]
    optimizer = torch.optim.SGD(
        [
            {"params": weights, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": config.weight_decay * config.decay_all},
        ],
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
    )
    parameters = weights + others

    history: list[dict[str, Any]] = []
    checkpoint = out / "checkpoint.safetensors"
    if resumed and checkpoint.exists():
        tensors, state = load_checkpoint(checkpoint)
        if state["fingerprint"] != fingerprint:
            raise SystemExit(
                f"{config.data} has changed since {checkpoint} was written: go on with the data "
                "it was trained on, or start a new run"
            )
        history = state["history"]
        load_prefixed(trainee, tensors, "trainee.")
        if config.ema:
            load_prefixed(average, tensors, "average.")
        for index, parameter in enumerate(parameters):
            momentum = tensors[f"momentum.{index}"].to(device)
            optimizer.state[parameter]["momentum_buffer"] = momentum
    if rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(
            out / "config.json", json.dumps(dataclasses.asdict(config), indent=2).encode()
        )

    model: nn.Module = trainee
    if world > 1:
        model = nn.parallel.DistributedDataParallel(
            trainee, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False
        )
    bar = tqdm(
        total=config.epochs * steps_an_epoch * config.batch_size,
        initial=len(history) * steps_an_epoch * config.batch_size,
        unit="img", unit_scale=True, disable=rank > 0,
        mininterval=0.5 if sys.stderr.isatty() else 60,
    )  # fmt: skip
    try:
        for epoch in range(len(history), config.epochs):
            # All that is random in an epoch follows from the seed and the epoch, so a resumed
            # run needs no generator state, and all processes draw the same numbers.
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
            order = torch.randperm(len(images), generator=generator).to(device)
            numbers = torch.rand(len(images), NUMBERS, generator=generator).to(device)
            partners = torch.randint(len(images), (len(images),), generator=generator).to(device)
            torch.manual_seed((config.seed * 1_000_003 + epoch) * 97 + rank)
            lambdas = (
                torch.distributions.Beta(config.mixup, config.mixup).sample((steps_an_epoch,))
                if config.mixup
                else torch.ones(steps_an_epoch)
            )
            size, started = config.size(epoch), time.perf_counter()
            total_loss = torch.zeros((), device=device)
            right = torch.zeros((), device=device)
            trainee.train()
            for step in range(steps_an_epoch):
                begin = step * config.batch_size
                picked = order[begin : begin + config.batch_size][rank::world]
                done = epoch * steps_an_epoch + step
                lr = learning_rate(config, done, steps, epoch)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                x = augment(images[picked], numbers[picked], config, size, CROP)
                y = F.one_hot(labels[picked], 7).float()
                v = None if votes is None else votes[picked]
                if config.mixup:
                    other, keep = partners[picked], float(lambdas[step])
                    # Mirrored numbers give the partner an augmentation of its own.
                    x2 = augment(images[other], 1 - numbers[picked], config, size, CROP)
                    x = keep * x + (1 - keep) * x2
                    y = keep * y + (1 - keep) * F.one_hot(labels[other], 7).float()
                    if votes is not None and v is not None:
                        v = keep * v + (1 - keep) * votes[other]
                y = y * (1 - config.label_smoothing) + config.label_smoothing / 7
                x = normalise(x, network.mean, network.std)
                x = x.contiguous(memory_format=torch.channels_last)
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    logits, vote_logits = model(x)
                loss = soft_loss(logits.float(), y, config.loss)
                if vote_logits is not None and v is not None:
                    loss = loss + config.votes_weight * F.cross_entropy(vote_logits.float(), v)
                optimizer.zero_grad()
                loss.backward()
                if config.clip_norm:
                    nn.utils.clip_grad_norm_(parameters, config.clip_norm)
                if config.clip_value:
                    nn.utils.clip_grad_value_(parameters, config.clip_value)
                optimizer.step()
                if config.ema:
                    update_average(average, network, min(config.ema, (1 + done) / (10 + done)))
                total_loss += loss.detach()
                right += (logits.argmax(1) == labels[picked]).sum()
                if step % 10 == 9 or step == steps_an_epoch - 1:
                    current = float(total_loss) / (step + 1)
                    if not math.isfinite(current):
                        raise SystemExit(
                            f"the loss became {current} in epoch {epoch + 1}; "
                            f"the last good checkpoint is {checkpoint} (epoch {len(history)}). "
                            "Start again with a lower --lr or a --clip-norm."
                        )
                    seen = (step + 1) * len(picked)
                    bar.set_postfix(
                        epoch=epoch + 1, loss=f"{current:.3f}", acc=f"{float(right) / seen:.3f}",
                        refresh=False,
                    )  # fmt: skip
                bar.update(config.batch_size)
            sums = torch.stack((total_loss, right))
            if world > 1:
                dist.all_reduce(sums)
            seconds = time.perf_counter() - started
            line = {
                "epoch": epoch + 1,
                "epochs": config.epochs,
                "size": size,
                "lr": lr,
                "loss": float(sums[0]) / steps_an_epoch / world,
                "train_accuracy": float(sums[1]) / steps_an_epoch / config.batch_size,
            }
            for key, (test_images, test_labels) in tests.items():
                line[key] = accuracy(average, test_images, test_labels, size)
            line["seconds"] = seconds
            line["images_per_second"] = steps_an_epoch * config.batch_size / seconds
            history.append(line)
            if rank == 0:
                tensors = prefixed(trainee, "trainee.")
                if config.ema:
                    tensors |= prefixed(average, "average.")
                for index, parameter in enumerate(parameters):
                    buffer = optimizer.state[parameter]["momentum_buffer"]
                    tensors[f"momentum.{index}"] = buffer.contiguous()
                save_checkpoint(
                    checkpoint, tensors, {"fingerprint": fingerprint, "history": history}
                )
                write_atomically(
                    out / "metrics.jsonl",
                    "".join(json.dumps(item) + "\n" for item in history).encode(),
                )
                plot_curves(history, out / "curves.png")
                bar.write(json.dumps(line))
    except KeyboardInterrupt:
        bar.close()
        print(
            f"Stopped after {len(history)} whole epochs of {config.epochs}. Go on with:\n"
            f"  python tools/train.py --resume {out}",
            file=sys.stderr,
        )
        sys.exit(130)
    bar.close()
    if rank == 0 and isinstance(average, ImprovedVGG19) and config.batch_norm:
        save_pretrained(
            average,
            out / "weights",
            trained_on=f"The {len(images):,} Training images of FER2013, {config.epochs} epochs.",
            selected_on="The weights after the last epoch; no epoch was picked.",
            dataset_license=DATASET_LICENSE,
        )
        print(f"The weights are in {out / 'weights'}: python tools/evaluate.py --weights ...")
    if world > 1:
        dist.destroy_process_group()


def prefixed(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value.contiguous() for name, value in module.state_dict().items()}


def load_prefixed(module: nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    module.load_state_dict(
        {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    )


if __name__ == "__main__":
    main()
