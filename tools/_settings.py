"""How a network is trained: the settings, and the command line that gives them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from _augment import Augmentation

from ferfacenet import ImprovedVGG19, WeightsError, list_pretrained, load_pretrained
from ferfacenet.model import Pool


@dataclass(frozen=True)
class Settings(Augmentation):
    """How a network is trained. The defaults are the paper's for FER2013 (IV-C, V-A); where
    the paper is silent they follow the public VGG19 recipe (see docs/paper.md)."""

    width: float = 1.0  # all channels times this
    pool: Pool = "max"
    hidden_features: int = 0  # width of one more fully connected layer; 0 for none
    dropout: float = 0.5
    levels: bool = False  # each view is brought to one mean and deviation; as --init has it if off
    freeze: int = 0  # the first so many of the five blocks stay as they are
    loss: Literal["cross-entropy", "paper"] = "cross-entropy"  # paper: formula (1) of II-B
    label_smoothing: float = 0.0
    mixup: float = 0.0  # alpha of the Beta distribution; 0 for no mixup
    calm: float = 0.0  # share of the epochs, the last ones, with plainer images and no mixup
    epochs: int = 250
    batch_size: int = 128
    lr: float = 0.01
    schedule: Literal["step", "cosine"] = "step"  # step: times 0.9 every 5 epochs from epoch 80
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
    rounds: int = 0  # batches and draws of so many epochs come round again; 0: always new ones
    crop: bool = True  # only random crops and mirrors, or else the ranges of Augmentation
    seed: int = 0
    amp: Literal["auto", "on", "off"] = "auto"  # bf16, of teachers too; auto: if steps are faster
    device: str = "auto"
    ahead: bool = True  # on a GPU: all batches of an epoch are made at its start
    graph: bool = True  # on a GPU: the step is one CUDA graph
    compile: bool = False  # torch.compile: half as fast again on a GPU, 20 seconds at the start

    def __post_init__(self) -> None:
        for name, least in (("epochs", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not re.fullmatch(r"(\d+x\d+,)*\d+", self.sizes):
            raise ValueError(f"sizes must be as 44, or as 32x20,44, got {self.sizes}")

    def network(self) -> ImprovedVGG19:
        """A fresh network for seven classes."""
        hidden = self.hidden_features or None
        return ImprovedVGG19(
            dropout=self.dropout, pool=self.pool, hidden_features=hidden, width=self.width
        )

    def rate(self, epoch: int, done: float) -> float:
        """The learning rate in ``epoch``, counted from 0, with a share ``done`` of all steps."""
        if self.schedule == "step":
            return self.lr * 0.9 ** max(0, (epoch - 80) // 5)
        if done < self.warmup:
            return self.lr * (0.01 + 0.99 * done / self.warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (done - self.warmup) / (1 - self.warmup)))

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
        rotate, scale, shift = self.rotate / 3, self.scale / 3, self.shift / 3
        return dataclasses.replace(self, erase=0.0, rotate=rotate, scale=scale, shift=shift)

    def is_calm(self, epoch: int) -> bool:
        return epoch >= self.epochs * (1 - self.calm)

    def resolved(self: Config, names: Iterable[str]) -> Config:
        """With the folders and files of the fields ``names``, which commas part, as absolute paths:
        so that a run goes on as it began from anywhere."""
        # A name means what it says, also where a folder is called so.
        known, found = {"scratch", *list_pretrained()}, dict[str, Any]()
        for name in names:
            found[name] = ",".join(
                str(Path(part).resolve()) if part not in known and Path(part).exists() else part
                for part in filter(None, getattr(self, name).split(","))
            )
        return dataclasses.replace(self, **found)

    def device_of(self) -> torch.device:
        """Where to train."""
        found = "cuda:0" if torch.cuda.is_available() else "cpu"
        return torch.device(found if self.device == "auto" else self.device)


Config = TypeVar("Config", bound=Settings)


#: Files that several scripts are given.
INPUTS = {
    "data": "fer2013.csv or the folder",
    "votes": "FER+'s fer2013new.csv, for weights that have its classes",
    "ckplus": "the folder CK+48",
}


def make_parser(
    about: str | None, needed: tuple[str, ...] = (), optional: tuple[str, ...] = (), **own: Any
) -> argparse.ArgumentParser:
    """A command line that shows a script's docstring as it is, with flags for some ``INPUTS``."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=about, formatter_class=layout, **own)
    for name in needed + optional:
        parser.add_argument(f"--{name}", type=Path, required=name in needed, help=INPUTS[name])
    return parser


def parse_run(
    description: str | None, arguments: list[str] | None, kind: type[Config],
    recipes: Mapping[str, Mapping[str, Any]], *,
    paths: tuple[str, ...], weights: tuple[str, ...], changeable: tuple[str, ...] = (),
) -> tuple[Config, Path]:  # fmt: skip
    """The settings, resolved, and the folder of a run, by a command line that has a flag for each
    field of ``kind``. Those that are ``paths`` are made absolute, and so are folders and files
    among the ``weights``; --resume may change those that are ``changeable``. SystemExit says what
    is wrong."""
    parser = make_parser(description, argument_default=argparse.SUPPRESS)
    add = parser.add_argument
    add("--recipe", choices=recipes, default="release", help="where to start from")
    help = "folder of the run: a new one, or with the same settings one that goes on"
    add("--out", type=Path, default=None, help=help)
    add("--resume", type=Path, default=None, metavar="RUN", help="go on with the run in a folder")
    for name, hint in get_type_hints(kind).items():
        flag = "--" + name.replace("_", "-")
        if hint is bool:
            add(flag, action=argparse.BooleanOptionalAction)
        elif get_origin(hint) is Literal:
            add(flag, choices=get_args(hint))
        else:
            add(flag, type=hint)
    given = vars(parser.parse_args(arguments))
    recipe, out, resume = given.pop("recipe"), given.pop("out"), given.pop("resume")
    if resume:
        if out or given.keys() - set(changeable):
            flags = ", ".join(f"--{name}" for name in changeable) or "no other flag"
            raise SystemExit(f"--resume takes {flags}: the settings are those of the run")
        try:
            saved = json.loads((resume / "config.json").read_text())
            return kind(**saved | given).resolved(weights), resume
        except (OSError, ValueError, TypeError) as error:
            raise SystemExit(f"--resume {resume}: no run of this script: {error}") from error
    if not out or "data" not in given:
        raise SystemExit("--data and --out are needed (or --resume)")
    for name in given.keys() & set(paths):  # --resume may be called from another folder
        given[name] = str(Path(given[name]).resolve())
    try:
        config = kind(**{**recipes[recipe], **given})
        asked = config.resolved(weights)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    # A name with a dot is that of a file which a kill left half-written.
    if not out.exists() or all(path.name.startswith(".") for path in out.iterdir()):
        return asked, out
    try:
        saved = kind(**json.loads((out / "config.json").read_text())).resolved(weights)
    except (OSError, ValueError, TypeError) as error:
        raise SystemExit(f"{out} is not empty and holds no run: give another --out") from error
    # What --resume or the run itself may have changed is as given, or else as the run has it.
    kept = {name: getattr(saved, name) for name in set(changeable) - given.keys()}
    if config.amp == "auto":
        kept["amp"] = saved.amp
    config = dataclasses.replace(asked, **kept)
    if config != saved:
        other = sorted(dict(vars(config).items() - vars(saved).items()))
        raise SystemExit(
            f"{out} is not empty, and its run has another {', another '.join(other)}: "
            f"give another --out, or --resume {out}"
        )
    return config, out


def load_init(name: str, flag: str = "--init") -> ImprovedVGG19:
    """The network of the name, folder or Hub id that ``flag`` gives."""
    try:
        return load_pretrained(name)
    except (WeightsError, ValueError) as error:
        raise SystemExit(f"{flag} {name}: {error}") from error


def name_of(weights: str) -> str:
    """What to call weights: those of a run by the run, not by where it lay."""
    path = Path(weights)
    if not path.is_absolute() and not path.exists():
        return weights
    path = path.absolute()
    folder = path.parent if path.suffix == ".safetensors" else path
    return folder.parent.name if folder.name.startswith("weights") else folder.name
