"""Weights as a folder holds them: ``config.json`` and ``model.safetensors``, read and written."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from ferfacenet.model import CALIBRATION, ImprovedVGG19, unwrap

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"

#: What mends a file that belongs to the package, and one that somebody saved.
REINSTALL = "run `pip install --force-reinstall --no-deps` with what ferfacenet was installed from"
_SAVE_AGAIN = "save it again with ferfacenet.save_pretrained, or fetch a whole copy"

_MODEL_ARGS = {"num_classes", "in_channels", "dropout", "pool", "hidden_features", "width"}
_RANGES = {"mean": (-1e6, 1e6), "std": (1e-6, 1e6), "temperature": (1e-6, 1e6), "levels": (0, 1)}


class WeightsError(RuntimeError):
    """Weights cannot be had or do not match; the message says which file and what mends it."""


class DamagedError(WeightsError, ValueError):
    """A file is not as it was saved, so that a fresh copy may mend it."""


@dataclasses.dataclass(frozen=True)
class WeightsConfig:
    """All there is to say about a weights file; what ``config.json`` holds, key for key. A value
    with which the model would not be the one that was saved raises a ValueError that names it.

    Attributes:
        model_args: the arguments of :class:`~ferfacenet.ImprovedVGG19`, ``width`` only if not 1.
        weights_sha256: of ``model.safetensors``, 64 hex digits.
        categories: names of the output columns, one for each class.
        mean, std, temperature, levels: the model's buffers; a config without levels has 0.
        metrics: measured figures by name, for instance ``"PublicTest flip accuracy"``.
        license: of the weights, as the Hub abbreviates it.
        trained_on, selected_on, dataset_license: sentences for the model card.
        input_size, crop_size: side of the prepared image and of its crops, in pixels.
        architecture, format_version: these and the two sizes have one value each so far.
    """

    model_args: dict[str, Any]
    weights_sha256: str
    categories: tuple[str, ...]
    mean: float
    std: float
    temperature: float
    levels: float
    metrics: dict[str, float]
    license: str
    trained_on: str
    selected_on: str
    dataset_license: str
    input_size: int = 48
    crop_size: int = 44
    architecture: str = "ImprovedVGG19"
    format_version: int = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            key, value = field.name, getattr(self, field.name)
            if field.default not in (dataclasses.MISSING, value):
                raise ValueError(f"{key} is {value!r}; this version reads {field.default!r}")
            low, high = _RANGES.get(key, (0, 0))
            if key in _RANGES and not (isinstance(value, (int, float)) and low <= value <= high):
                raise ValueError(f"{key} is {value!r}, not a number from {low} to {high}")
        if {"width", *self.model_args} != _MODEL_ARGS:
            raise ValueError(f"model_args is {self.model_args}, without all of {_MODEL_ARGS}")
        count = self.model_args["num_classes"]
        names = {n for n in self.categories if isinstance(n, str) and n and n.isprintable()}
        if not len(names) == len(self.categories) == count:
            raise ValueError(f"categories is {self.categories}, not {count!r} different names")

    @classmethod
    def from_json(cls, data: bytes) -> WeightsConfig:
        """The checked config that ``data`` holds; an error that says what is wrong with it."""
        try:
            raw: dict[str, Any] = {"levels": 0.0} | dict(json.loads(data))
        except (ValueError, TypeError, RecursionError) as error:
            raise DamagedError(f"it is no JSON object ({error})") from None
        if raw.get("format_version", 1) != 1:  # first, since another version has other keys
            raise ValueError(f"format_version is {raw['format_version']!r}; this version reads 1")
        return cls(**raw | {"categories": tuple(raw.get("categories", ()))})

    def to_json(self) -> bytes:
        """The bytes of ``config.json``."""
        return (json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n").encode()


def read_config(path: Path, sha256: str | None = None, remedy: str = _SAVE_AGAIN) -> WeightsConfig:
    """The checked ``config.json`` at ``path``; a WeightsError, which ends with ``remedy``, if it
    is missing or wrong, a DamagedError if its sha256 is not the given one or it is no JSON."""
    with as_weights_error(path, remedy):
        check_file(path, sha256)
        return WeightsConfig.from_json(path.read_bytes())


def read_model(path: Path, config: WeightsConfig, remedy: str = _SAVE_AGAIN) -> ImprovedVGG19:
    """The model of ``config`` with the tensors at ``path``, float32, on the CPU, in eval mode; a
    WeightsError, which ends with ``remedy``, if they are missing or do not fit, a DamagedError if
    the file's sha256 is not the config's."""
    import safetensors.torch

    with as_weights_error(path, remedy):
        check_file(path, config.weights_sha256)
        tensors = safetensors.torch.load_file(path)
        for key, value in tensors.items():  # copied, since the file may be written over
            if value.is_floating_point():
                tensors[key] = value.to(torch.float32, copy=True)
        _check_values(tensors)
        for name in CALIBRATION:
            tensors[name] = torch.tensor(getattr(config, name), dtype=torch.float32, device="cpu")
        model = build_empty(config.model_args)
        model.load_state_dict(tensors, assign=True)
        model.categories = config.categories
        return model.eval()


def build_empty(model_args: Mapping[str, Any]) -> ImprovedVGG19:
    """The network of these arguments on the meta device, where no time is spent on weights."""
    with torch.device("meta"):
        return ImprovedVGG19(**model_args)


def check_file(path: Path, sha256: str | None) -> None:
    """A DamagedError if this is no file (a FIFO would be waited for, and a device may have no end)
    or has another sha256."""
    if path.exists() and not path.is_file():
        raise DamagedError("it is no file")
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    if sha256 not in (None, found := digest.hexdigest()):
        raise DamagedError(f"its sha256 is {found}, not {sha256}: it is damaged or changed")


def _check_values(tensors: Mapping[str, Tensor]) -> None:
    for key, value in tensors.items():
        low, high = value.aminmax()
        if not (low.isfinite() and high.isfinite()):
            raise ValueError(f"{key} has values that are not finite as {value.dtype}")
        if low < 0 and key.endswith("running_var"):
            raise ValueError(f"{key} has values below 0")


@contextlib.contextmanager
def as_weights_error(path: Path, remedy: str) -> Iterator[None]:
    """Whatever a strange file makes json, safetensors or torch raise is one WeightsError."""
    try:
        yield
    except Exception as error:
        kind = DamagedError if isinstance(error, DamagedError) else WeightsError
        raise kind(f"{path}: {printable(error)}; {remedy}") from error


def printable(error: Exception) -> str:
    """The error on one line, without control characters that it may quote from a file."""
    text = " ".join(str(error).split())[:1000] or type(error).__name__
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def save_pretrained(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    metrics: Mapping[str, float] | None = None,
    license: str = "mit",
    trained_on: str = "",
    selected_on: str = "",
    dataset_license: str = "",
    dtype: torch.dtype = torch.float16,
) -> WeightsConfig:
    """Write ``config.json`` and ``model.safetensors``, so that ``load_pretrained`` reads them.

    The model may be in a wrapper (``DataParallel``, ``AveragedModel``, ``torch.compile``'s). The
    config, which is returned, gets its ``categories``, ``mean``, ``std``, ``temperature`` and
    ``levels`` and what is given here (see WeightsConfig). Weights of convolutions and linear layers
    are stored as ``dtype`` (float16, bfloat16 or float32), all else as float32. Files that are
    there are replaced when both new ones are written.

    Raises:
        TypeError: the model is no ImprovedVGG19.
        ValueError: the model has no categories, a weight is not finite in ``dtype``, or layers are
            not the constructor's, so that the files could not be loaded.
    """
    import safetensors.torch

    model = unwrap(model)
    if not isinstance(model, ImprovedVGG19):
        raise TypeError(f"model must be an ImprovedVGG19, got {type(model).__name__}")
    if not model.categories:
        raise ValueError("model.categories is empty; set it to the names of the classes")
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(f"dtype must be float16, bfloat16 or float32, got {dtype}")
    model_args: dict[str, Any] = {
        "num_classes": model.num_classes,
        "in_channels": next(p for p in model.parameters() if p.ndim == 4).shape[1],
        "dropout": model.dropout.p,
        "pool": "avg" if isinstance(model.features[6], nn.AvgPool2d) else "max",
        "hidden_features": model.hidden_features,
    }
    if model.width != 1:
        model_args["width"] = model.width
    tensors, built = model.state_dict(), build_empty(model_args).state_dict()
    shapes = {key: getattr(value, "shape", None) for key, value in tensors.items()}
    if shapes != {key: value.shape for key, value in built.items()}:
        raise ValueError(
            f"the model's layers are not those of ImprovedVGG19(**{model_args}); "
            "where they are pruned, call torch.nn.utils.prune.remove(layer, 'weight') first"
        )
    tensors = {key: value for key, value in tensors.items() if key not in CALIBRATION}
    for key, value in tensors.items():
        if value.is_floating_point():
            value = value.to(dtype if value.ndim > 1 else torch.float32)
        tensors[key] = value.cpu().contiguous()
    _check_values(tensors)
    data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    # As many digits as a float32 has, so that 0.5077 stays 0.5077.
    calibration: dict[str, Any] = {n: float(f"{getattr(model, n):.7g}") for n in CALIBRATION}
    config = WeightsConfig(
        model_args, hashlib.sha256(data).hexdigest(), tuple(model.categories), **calibration,
        metrics={key: float(value) for key, value in (metrics or {}).items()}, license=license,
        trained_on=trained_on, selected_on=selected_on, dataset_license=dataset_license,
    )  # fmt: skip
    folder, text = Path(folder), config.to_json()
    folder.mkdir(parents=True, exist_ok=True)
    # In the end both are moved to their places at once, the weights first.
    with (
        open_atomically(folder / CONFIG_FILE) as config_file,
        open_atomically(folder / WEIGHTS_FILE) as weights_file,
    ):
        config_file.write(text)
        config_file.flush()
        weights_file.write(data)
    return config


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` as ``open_atomically`` does."""
    with open_atomically(path) as file:
        file.write(data)


@contextlib.contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file beside ``path`` that is moved there in the end, so that it is never seen half-written,
    nor found so after a power cut."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
