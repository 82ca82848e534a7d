"""Weights as a folder holds them: ``config.json`` and ``model.safetensors``, read and written."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ferfacenet.model import CALIBRATION, ImprovedVGG19

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
_SAVE_AGAIN = "save it again with ferfacenet.save_pretrained, or fetch a whole copy"

_MODEL_ARGS = {"num_classes", "in_channels", "dropout", "pool", "hidden_features", "width"}
#: What JSON may hold for a field of each type, and the range of some.
_TYPES: dict[Any, Any] = {"str": str, "int": int, "float": (int, float), "tuple[str, ...]": tuple}
_RANGES = {"mean": (-1e6, 1e6), "std": (1e-6, 1e6), "temperature": (1e-6, 1e6)}


#: What mends a file that belongs to the package.
REINSTALL = "reinstall ferfacenet: `pip install --force-reinstall .` in a fresh checkout"


class WeightsError(RuntimeError):
    """Weights cannot be had or do not match; the message says which file and what mends it."""


class DamagedError(WeightsError, ValueError):
    """A file is not as it was saved, so that a fresh copy may mend it."""


@dataclasses.dataclass(frozen=True)
class WeightsConfig:
    """All there is to say about a weights file; what ``config.json`` holds, key for key. A value
    that is not as it must be raises a ValueError that names it.

    Attributes:
        model_args: the arguments of :class:`~ferfacenet.ImprovedVGG19`, ``width`` only if not 1.
        weights_sha256: of ``model.safetensors``, 64 hex digits.
        categories: names of the output columns, one for each class.
        mean, std, temperature: the model's buffers.
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
            if not isinstance(value, _TYPES.get(field.type, dict)) or isinstance(value, bool):
                raise ValueError(f"{key} is {value!r}, not of type {field.type}")
            if field.default not in (dataclasses.MISSING, value):
                raise ValueError(f"{key} is {value!r}; this version reads {field.default!r}")
            if key in _RANGES and not _RANGES[key][0] <= value <= _RANGES[key][1]:
                raise ValueError(f"{key} is {value!r}, not from {_RANGES[key]}")
        if not re.fullmatch("[0-9a-f]{64}", self.weights_sha256):
            raise ValueError(f"weights_sha256 is {self.weights_sha256!r}, not 64 hex digits")
        if wrong := sorted({"width", *self.model_args} ^ _MODEL_ARGS):
            raise ValueError(f"model_args lacks or does not know {', '.join(wrong)}")
        count = self.model_args["num_classes"]
        names = {n for n in self.categories if isinstance(n, str) and n and n.isprintable()}
        if not len(names) == len(self.categories) == count:
            raise ValueError(f"categories is {self.categories}, not {count!r} different names")

    @classmethod
    def from_json(cls, data: bytes) -> WeightsConfig:
        """The checked config that ``data`` holds; ValueError saying what is wrong with it."""
        try:
            raw = dict(json.loads(data))
        except (ValueError, TypeError, RecursionError) as error:
            raise DamagedError(f"it is no JSON object ({error})") from None
        if raw.get("format_version", 1) != 1:  # first, since another version has other keys
            raise ValueError(f"format_version is {raw['format_version']!r}; this version reads 1")
        if wrong := sorted(raw.keys() ^ {field.name for field in dataclasses.fields(cls)}):
            raise ValueError(f"these keys are missing or unknown: {', '.join(wrong)}")
        if isinstance(raw["categories"], list):
            raw["categories"] = tuple(raw["categories"])
        return cls(**raw)

    def to_json(self) -> bytes:
        """The bytes of ``config.json``."""
        return (json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n").encode()


def read_config(path: Path, sha256: str | None = None, remedy: str = _SAVE_AGAIN) -> WeightsConfig:
    """The checked ``config.json`` at ``path``; a WeightsError, which ends with ``remedy``, if it
    is missing or wrong, a DamagedError if its sha256 is not the given one or it is no JSON."""
    with as_weights_error(path, remedy):
        data = path.read_bytes()
        _check_sha256(hashlib.sha256(data).hexdigest(), sha256)
        return WeightsConfig.from_json(data)


def read_model(path: Path, config: WeightsConfig, remedy: str = _SAVE_AGAIN) -> ImprovedVGG19:
    """The model of ``config`` with the tensors at ``path``, float32, on the CPU, in eval mode; a
    WeightsError, which ends with ``remedy``, if they are missing or do not fit, a DamagedError if
    the file's sha256 is not the config's."""
    import safetensors.torch

    # Any device or dtype that the caller has made the default is not meant for this.
    with as_weights_error(path, remedy), torch.device("cpu"):
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        _check_sha256(digest.hexdigest(), config.weights_sha256)
        model = build_empty(config.model_args, "cpu").float()
        model.load_state_dict(safetensors.torch.load_file(path))
        model.categories = config.categories
        for name in CALIBRATION:
            getattr(model, name).fill_(getattr(config, name))
        return model.eval()


def build_empty(model_args: Mapping[str, Any], device: str) -> ImprovedVGG19:
    """The network of these arguments, its weights not initialised."""
    with torch.device(device), _SkipInit():
        return ImprovedVGG19(**model_args)


class _SkipInit(TorchFunctionMode):
    """Leaves random initialisation out: it costs time, and draws from the global generator."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "").endswith(("normal_", "uniform_")):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _check_sha256(found: str, expected: str | None) -> None:
    if expected not in (None, found):
        raise DamagedError(f"its sha256 is {found}, not {expected}: it is damaged or changed")


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
    model: ImprovedVGG19,
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

    The config, which is returned, gets the model's ``categories``, ``mean``, ``std`` and
    ``temperature`` and what is given here (see WeightsConfig). Weights of convolutions and linear
    layers are stored as ``dtype`` (float16, bfloat16 or float32), all else as float32. Each file
    appears whole or not at all, and an interruption leaves a pair that is not loaded.

    Raises:
        ValueError: the model has no categories, a weight is not finite in ``dtype``, or layers
            are not the constructor's, so that the files could not be loaded.
    """
    import safetensors.torch

    if model.categories is None:
        raise ValueError("model.categories is None; set it to the names of the classes")
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(f"dtype must be float16, bfloat16 or float32, got {dtype}")
    tensors = {key: value for key, value in model.state_dict().items() if key not in CALIBRATION}
    for key, value in tensors.items():
        if value.is_floating_point():
            value = value.to(dtype if value.ndim > 1 else torch.float32)
            if not value.isfinite().all():
                raise ValueError(f"{key} has values that are not finite as {value.dtype}")
        tensors[key] = value.cpu().contiguous()
    data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    model_args: dict[str, Any] = {
        "num_classes": model.num_classes,
        "in_channels": next(model.parameters()).shape[1],
        "dropout": model.dropout.p,
        "pool": "avg" if isinstance(model.features[6], nn.AvgPool2d) else "max",
        "hidden_features": model.hidden_features,
    }
    if model.width != 1:
        model_args["width"] = model.width
    built = build_empty(model_args, "meta").state_dict()
    if {key: t.shape for key, t in tensors.items()} != {
        key: t.shape for key, t in built.items() if key not in CALIBRATION
    }:
        raise ValueError(f"the model's layers are not those of ImprovedVGG19(**{model_args})")
    # As many digits as a float32 has, so that 0.5077 stays 0.5077.
    calibration: dict[str, Any] = {n: float(f"{getattr(model, n):.7g}") for n in CALIBRATION}
    config = WeightsConfig(
        model_args=model_args,
        weights_sha256=hashlib.sha256(data).hexdigest(),
        categories=tuple(model.categories),
        **calibration,
        metrics={key: float(value) for key, value in (metrics or {}).items()},
        license=license,
        trained_on=trained_on,
        selected_on=selected_on,
        dataset_license=dataset_license,
    )
    text = config.to_json()  # before anything is written over
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS_FILE, data)
    write_atomically(folder / CONFIG_FILE, text)
    return config


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` beside ``path`` and move it there, so that it is never seen half-written."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
