"""Trains the paper's network on FER2013, by the paper's recipe or by ours.

  python tools/train.py --data fer2013.csv --recipe release --out runs/release
  python tools/train.py --resume runs/release [--epochs 120]
  python tools/train.py --data fer2013.csv --init fer2013 --epochs 0 --out runs/bn  # BatchNorm only
  torchrun --nproc-per-node 2 tools/train.py --data fer2013.csv --out runs/two

The folder --out gets config.json (every setting, resolved), metrics.jsonl (a line an epoch),
curves.png, checkpoint.safetensors (rewritten each epoch; --resume goes on from it) and, at the
end, weights/ (config.json and model.safetensors, which ferfacenet.load_pretrained reads) and
weights-float32/, the same before they were rounded to float16.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from engine import (
    Settings,
    Trainer,
    accuracy,
    load_init,
    parse_run,
    resume_from,
    save_checkpoint,
    stop_cleanly,
    uninterrupted,
)
from evaluate import predict, prepare
from fer2013 import Faces, hold_out, load, load_votes
from figures import plot_curves
from networks import build
from torch import Tensor
from tqdm import tqdm

from ferfacenet import ImprovedVGG19, save_pretrained
from ferfacenet.fast import fast_forward
from ferfacenet.hub import write_atomically


@dataclass(frozen=True)
class Config(Settings):
    """Every setting of a run."""

    data: str = ""  # fer2013.csv (or .gz, .xz, .zip, or the Kaggle folder)
    votes: str = ""  # ferplus.csv, needed when votes_weight is not 0
    votes_weight: float = 0.0  # weight of an auxiliary head's loss on the FER+ votes
    teachers: str = ""  # weights, as a,b, whose mean probabilities are learned besides the labels
    teacher_weight: float = 0.5  # their share; the labels have the rest
    consistent: bool = False  # they see each batch as it is trained on, not each face once
    arch: str = "improved"  # improved, or vgg19: torchvision's plain VGG19
    batch_norm: bool = True
    holdout: float = 0.0  # share of Training that is kept out of training, to report on
    limit: int = 0  # train on the first so many images only; 0 for all
    init: str = ""  # weights to start from, a name, folder or Hub id; fresh ones if empty


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
        "precise_bn": True,
        "crop": False,
        "rotate": 12.0,
        "scale": 0.12,
        "shift": 0.08,
        "brightness": 0.1,
        "contrast": 0.2,
        "erase": 0.3,
    },
}


def parse(arguments: list[str] | None = None) -> tuple[Config, Path, bool]:
    """The resolved config, the run's folder, and whether it is resumed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    config, out, resumed, _ = parse_run(
        parser, arguments, Config, RECIPES,
        choices={"arch": ("improved", "vgg19")},
        paths=("data", "votes"),
        # The length may change with the time that there is; metrics.jsonl says from when.
        changeable=("epochs", "sizes"),
    )  # fmt: skip
    if not resumed and config.votes_weight and not config.votes:
        parser.error("--votes ferplus.csv is needed by this recipe (or --votes-weight 0)")
    if config.consistent and not config.teachers:
        parser.error("--consistent says how the --teachers are asked, and there are none")
    return config, out, resumed


def start_from(name: str, network: torch.nn.Module) -> None:
    """Give the network the weights that ``name`` stands for."""
    weights = load_init(name).state_dict()
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise SystemExit(
            f"--init {name}: other layers than those asked for; --arch, --pool, --batch-norm and "
            f"--hidden-features must be those of the weights.\n{error}"
        ) from error


def taught(teachers: str, images: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    """The mean of what the networks say of each face and its mirror: (N, C) float32."""
    answers = []
    for name in teachers.split(","):
        model = load_init(name, "--teachers").to(device)
        answers.append(predict(model, prepare(model, images), "flip", name))
    return torch.stack(answers).mean(0).to(device)


def consistent_teacher(teachers: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    """What the networks say of a batch, on average, as a function: (N, 1, S, S) to (N, C) float32.

    A teacher that sees the very batch, cut and mixed as it is, teaches more than one that saw each
    face once (Beyer et al., "Knowledge distillation: A good teacher is patient and consistent").
    """
    models = [load_init(name, "--teachers").to(device) for name in teachers.split(",")]
    forwards = [fast_forward(model, "auto") or model for model in models]

    @torch.no_grad()
    def ask(x: Tensor) -> Tensor:
        answers = [
            (forward(x) / model.temperature).softmax(1)
            for forward, model in zip(forwards, models, strict=True)
        ]
        return torch.stack(answers).mean(0)

    return ask


def to_device(faces: Faces, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(faces.images, device=device), torch.tensor(faces.labels, device=device)


def main(arguments: list[str] | None = None) -> None:
    config, out, resumed = parse(arguments)
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    device = config.device_of(int(os.environ.get("LOCAL_RANK", 0)))
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    stop_cleanly()

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

    checkpoint = out / "checkpoint.safetensors"
    torch.manual_seed(config.seed)
    network = build(
        config.arch,
        "avg" if config.pool == "avg" else "max",
        config.hidden_features,
        config.batch_norm,
        config.dropout,
    )
    if config.init and not checkpoint.exists():
        start_from(config.init, network)
    teacher: Tensor | Callable[[Tensor], Tensor] | None = None
    if config.teachers and config.consistent:
        teacher = consistent_teacher(config.teachers, device)
    elif config.teachers and not checkpoint.exists():  # a checkpoint has what they said
        teacher = taught(config.teachers, training.images, device)
    trainer = Trainer(
        network, config, images, labels,
        votes=votes, votes_weight=config.votes_weight,
        teacher=teacher, teacher_weight=config.teacher_weight, world=world, rank=rank,
    )  # fmt: skip
    history: list[dict[str, Any]] = []
    drawn = -math.inf
    again = f"python tools/train.py --resume {out}"
    if resumed and checkpoint.exists():
        tensors, state = resume_from(checkpoint, fingerprint, config.data)
        history = state["history"]
        trainer.load(tensors)
    if rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(
            out / "config.json", json.dumps(dataclasses.asdict(config), indent=2).encode()
        )

    if not config.epochs and config.precise_bn:  # else train_epoch does it, after the last one
        trainer.measure_batch_norm()
    images_an_epoch = trainer.steps_an_epoch * config.batch_size
    bar = tqdm(
        total=config.epochs * images_an_epoch, initial=len(history) * images_an_epoch,
        unit="img", unit_scale=True, disable=rank > 0,
        mininterval=0.5 if sys.stderr.isatty() else 60,
    )  # fmt: skip
    try:
        for epoch in range(len(history), config.epochs):
            line = trainer.train_epoch(
                epoch, bar,
                f"the last good checkpoint is {checkpoint} (epoch {epoch}). "
                "Start again with a lower --lr or a --clip-norm.",
            )  # fmt: skip
            for key, (test_images, test_labels) in tests.items():
                size = config.size(epoch)
                line[key] = accuracy(trainer.average, test_images, test_labels, size)
            with uninterrupted():
                history.append(line)
                if rank == 0:
                    state = {"fingerprint": fingerprint, "history": history}
                    save_checkpoint(checkpoint, trainer.tensors(), state, again)
                    write_atomically(
                        out / "metrics.jsonl",
                        "".join(json.dumps(item) + "\n" for item in history).encode(),
                    )
                    # A drawing takes as long as half an epoch on a large GPU.
                    if time.monotonic() - drawn > 10 or epoch == config.epochs - 1:
                        plot_curves(history, out / "curves.png")
                        drawn = time.monotonic()
                    bar.write(json.dumps(line))
    except KeyboardInterrupt:
        bar.close()
        print(
            f"Stopped after {len(history)} whole epochs of {config.epochs}. Go on with:\n  {again}",
            file=sys.stderr,
        )
        sys.exit(130)
    bar.close()
    if rank == 0 and isinstance(trainer.average, ImprovedVGG19) and config.batch_norm:
        whole = f", of {len(images) + len(held):,}" if len(held) else ""
        begun = f", from the weights {config.init}" if config.init else ""
        for folder, dtype in (("weights", torch.float16), ("weights-float32", torch.float32)):
            save_pretrained(
                trainer.average,
                out / folder,
                trained_on=f"{len(images):,} Training images of FER2013{whole}, "
                f"{config.epochs} epochs{begun}.",
                selected_on="The weights after the last epoch; no epoch was picked.",
                dataset_license=DATASET_LICENSE,
                dtype=dtype,
            )
        print(f"The weights are in {out / 'weights'}: python tools/evaluate.py --weights ...")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
