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
from fer2013 import Faces, hold_out, load, load_votes, vote_odds
from figures import plot_curves
from networks import build
from torch import Tensor
from tqdm import tqdm

from ferfacenet import ImprovedVGG19, save_pretrained
from ferfacenet.fast import fast_forward, prefers_bfloat16
from ferfacenet.hub import write_atomically


@dataclass(frozen=True)
class Config(Settings):
    """Every setting of a run."""

    data: str = ""  # fer2013.csv (or .gz, .xz, .zip, or the Kaggle folder)
    votes: str = ""  # ferplus.csv, needed when votes_weight is not 0
    votes_weight: float = 0.0  # weight of an auxiliary head's loss on the FER+ votes
    teachers: str = ""  # weights, as a,b, whose mean probabilities are learned besides the labels
    teacher_weight: float = 0.5  # their share; the labels have the rest
    consistent: bool = False  # they see each batch as it is augmented, not each face once
    votes_correction: float = 0.0  # how far their answers are corrected by the face's FER+ votes
    arch: str = "improved"  # improved, or vgg19: torchvision's plain VGG19
    batch_norm: bool = True
    holdout: float = 0.0  # share of Training that is kept out of training, to report on
    limit: int = 0  # train on the first so many images only; 0 for all
    init: str = ""  # weights to start from, a name, folder or Hub id; fresh ones if empty
    every: int = 1  # epochs from one test and checkpoint to the next; the last is always tested
    minutes: float = 0.0  # as many epochs as fit into this time, whatever --epochs says


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
    if not resumed and (config.votes_weight or config.votes_correction) and not config.votes:
        parser.error("--votes ferplus.csv is needed by this recipe (or --votes-weight 0)")
    for flag in ("consistent", "votes_correction"):
        if getattr(config, flag) and not config.teachers:
            parser.error(f"--{flag.replace('_', '-')} is about the --teachers, and there are none")
    if config.every < 1:
        parser.error("--every counts epochs, from 1")
    if config.minutes and not resumed:
        config = dataclasses.replace(config, epochs=100)  # until the first are measured
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


def consistent_teacher(
    teachers: str, device: torch.device, compiled: bool = False
) -> Callable[[Tensor], Tensor]:
    """What the networks say of a batch, on average, as a function: (N, 1, S, S) to (N, C) float32.

    A teacher that sees the very batch, cut and turned as it is, teaches more than one that saw each
    face once (Beyer et al., "Knowledge distillation: A good teacher is patient and consistent").
    """
    models = [load_init(name, "--teachers").to(device) for name in teachers.split(",")]
    forwards: list[Callable[[Tensor], Tensor]] = []
    for model in models:
        if compiled:
            model.compile()
        forwards.append(model if compiled else fast_forward(model, "auto") or model)
    bf16 = compiled and prefers_bfloat16(device)

    @torch.no_grad()
    def ask(x: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = [forward(x).float() for forward in forwards]
        answers = [
            (found / model.temperature).softmax(1)
            for found, model in zip(logits, models, strict=True)
        ]
        return torch.stack(answers).mean(0)

    return ask


def name_of(weights: str) -> str:
    """What to call the weights of a run's folder: by the run, not by where it lay."""
    path = Path(weights)
    if not path.is_dir():
        return weights
    return path.parent.name if path.name in ("weights", "weights-float32") else path.name


def trained_on(config: Config, images: int, held: int) -> str:
    """The sentence of the model card."""
    text = f"{images:,} Training images of FER2013"
    if held:
        text += f", of {images + held:,}"
    text += f", {config.epochs} epochs"
    if config.init:
        text += f", from the weights {name_of(config.init)}"
    if config.teachers:
        text += ", taught by " + " and ".join(map(name_of, config.teachers.split(",")))
    if config.votes_weight or config.votes_correction:
        text += "; the FER+ votes on the same images were used in training"
    return text + "."


def fit_epochs(config: Config, done: int, elapsed: float, marks: list[float]) -> Config:
    """``config`` with as many epochs as ``config.minutes`` leave time for.

    ``done`` are over, ``elapsed`` seconds after the start; ``marks`` are the moments at which those
    of this process ended. The first three, in which a GPU tries its kernels, count only where they
    take long. One epoch more or less is no change, so that the rate falls to zero smoothly.
    """
    total = 60 * config.minutes
    if len(marks) > 3:
        each = (marks[-1] - marks[2]) / (len(marks) - 3)
    elif elapsed > total / 4:
        each = elapsed / done
    else:
        return config
    epochs = done + max(1, int((total - elapsed) / each))
    if done >= config.epochs or abs(epochs - config.epochs) <= 1:
        return config
    return dataclasses.replace(config, epochs=epochs)


def to_device(faces: Faces, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(faces.images, device=device), torch.tensor(faces.labels, device=device)


def main(arguments: list[str] | None = None) -> None:
    config, out, resumed = parse(arguments)
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    device = config.device_of(int(os.environ.get("LOCAL_RANK", 0)))
    if world > 1 and config.minutes:
        raise SystemExit("--minutes is for one process; give --epochs with torchrun")
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
    votes = odds = None
    if config.votes_weight or config.votes_correction:
        counts = load_votes(config.votes, training)
        if config.votes_weight:
            # A row of zeros weighs nothing in a cross-entropy.
            shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
            votes = torch.tensor(shares, device=device)
        if config.votes_correction:
            odds = torch.tensor(vote_odds(counts, training.labels, 7), device=device)
            odds *= config.votes_correction

    checkpoint = out / "checkpoint.safetensors"
    torch.manual_seed(config.seed)
    network = build(
        config.arch,
        "avg" if config.pool == "avg" else "max",
        config.hidden_features,
        config.batch_norm,
        config.dropout,
        config.width,
    )
    if config.init and not checkpoint.exists():
        start_from(config.init, network)
    teacher: Tensor | Callable[[Tensor], Tensor] | None = None
    if config.teachers and config.consistent:
        teacher = consistent_teacher(config.teachers, device, config.compile)
    elif config.teachers and not checkpoint.exists():  # a checkpoint has what they said
        teacher = taught(config.teachers, training.images, device)
    trainer = Trainer(
        network, config, images, labels,
        votes=votes, votes_weight=config.votes_weight,
        teacher=teacher, teacher_weight=config.teacher_weight, odds=odds, world=world, rank=rank,
    )  # fmt: skip
    history: list[dict[str, Any]] = []
    drawn = -math.inf
    again = f"python tools/train.py --resume {out}"
    if resumed and checkpoint.exists():
        tensors, state = resume_from(checkpoint, fingerprint, config.data)
        history = state["history"]
        trainer.load(tensors)
    saved, marks, started = len(history), list[float](), time.monotonic()
    before = history[-1]["elapsed"] if history and config.minutes else 0.0

    def write_config() -> None:
        text = json.dumps(dataclasses.asdict(config), indent=2)
        write_atomically(out / "config.json", text.encode())

    if rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        write_config()

    if not config.epochs and config.precise_bn:  # else train_epoch does it, after the last one
        trainer.measure_batch_norm()
    images_an_epoch = trainer.steps_an_epoch * config.batch_size
    bar = tqdm(
        total=config.epochs * images_an_epoch, initial=len(history) * images_an_epoch,
        unit="img", unit_scale=True, disable=rank > 0,
        mininterval=0.5 if sys.stderr.isatty() else 60,
    )  # fmt: skip
    try:
        while (epoch := len(history)) < config.epochs:
            line = trainer.train_epoch(
                epoch, bar,
                f"the last good checkpoint is {checkpoint} (epoch {saved}). "
                "Start again with a lower --lr or a --clip-norm.",
            )  # fmt: skip
            due = (epoch + 1) % config.every == 0 or epoch + 1 == config.epochs
            for key, (test_images, test_labels) in tests.items() if due else ():
                size = config.size(epoch)
                line[key] = accuracy(trainer.average, test_images, test_labels, size)
            with uninterrupted():
                history.append(line)
                marks.append(time.monotonic())
                if config.minutes:
                    line["elapsed"] = before + marks[-1] - started
                    config = fit_epochs(config, len(history), line["elapsed"], marks)
                    trainer.settings = config
                    bar.total = config.epochs * images_an_epoch
                if rank == 0 and due:
                    write_config()
                    state = {"fingerprint": fingerprint, "history": history}
                    save_checkpoint(checkpoint, trainer.tensors(), state, again)
                    saved = len(history)
                    write_atomically(
                        out / "metrics.jsonl",
                        "".join(json.dumps(item) + "\n" for item in history).encode(),
                    )
                    # A drawing takes as long as half an epoch on a large GPU.
                    if time.monotonic() - drawn > 10 or len(history) == config.epochs:
                        plot_curves(history, out / "curves.png")
                        drawn = time.monotonic()
                    bar.write(json.dumps(line))
    except KeyboardInterrupt:
        bar.close()
        print(
            f"Stopped after {saved} whole epochs of {config.epochs}. Go on with:\n  {again}",
            file=sys.stderr,
        )
        sys.exit(130)
    bar.close()
    if rank == 0 and isinstance(trainer.average, ImprovedVGG19) and config.batch_norm:
        for folder, dtype in (("weights", torch.float16), ("weights-float32", torch.float32)):
            save_pretrained(
                trainer.average,
                out / folder,
                trained_on=trained_on(config, len(images), len(held)),
                selected_on="The weights after the last epoch; no epoch was picked.",
                dataset_license=DATASET_LICENSE,
                dtype=dtype,
            )
        print(f"The weights are in {out / 'weights'}: python tools/evaluate.py --weights ...")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
