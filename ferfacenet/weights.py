"""Weights as a folder holds them: ``config.json`` and ``model.safetensors``, read and written."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ferfacenet.model import CALIBRATION, ImprovedVGG19, unwrap

CONFIG_FILE, WEIGHTS_FILE, _STAGE = "config.json", "model.safetensors", ".save_pretrained"
_SAVE_AGAIN = "save it again with ferfacenet.save_pretrained, or fetch a whole copy"

_MODEL_ARGS = {"num_classes", "in_channels", "dropout", "pool", "hidden_features", "width"}
#: What JSON may hold for a field of each type, and the range of some.
_TYPES: dict[Any, Any] = {"str": str, "int": int, "float": (int, float), "tuple[str, ...]": tuple}
_RANGES = {"mean": (-1e6, 1e6), "std": (1e-6, 1e6), "temperature": (1e-6, 1e6)}


#: What mends a file that belongs to the package.
REINSTALL = "run `pip install --force-reinstall --no-deps` with what ferfacenet was installed from"


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
            if not isinstance(value, _TYPES.get(field.type, dict)) or isinstance(value, bool):
                raise ValueError(f"{key} is {value!r}, not of type {field.type}")
            if field.default not in (dataclasses.MISSING, value):
                raise ValueError(f"{key} is {value!r}; this version reads {field.default!r}")
            if isinstance(value, dict) and {"nan", "inf", "-inf"} & set(map(repr, value.values())):
                raise ValueError(f"{key} is {value!r}, where a number is not finite")
            if key in _RANGES and not _RANGES[key][0] <= value <= _RANGES[key][1]:
                raise ValueError(f"{key} is {value!r}, not from {_RANGES[key]}")
        if self.levels not in (0, 1):
            raise ValueError(f"levels is {self.levels!r}, neither 0 nor 1")
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
            raw: dict[str, Any] = {"levels": 0.0} | dict(json.loads(data))
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
        check_file(path, sha256, limit=1 << 20)
        return WeightsConfig.from_json(path.read_bytes())


def read_model(path: Path, config: WeightsConfig, remedy: str = _SAVE_AGAIN) -> ImprovedVGG19:
    """The model of ``config`` with the tensors at ``path``, float32, on the CPU, in eval mode; a
    WeightsError, which ends with ``remedy``, if they are missing or do not fit, a DamagedError if
    the file's sha256 is not the config's."""
    import safetensors.torch

    # Any device or dtype that the caller has made the default is not meant for this.
    with as_weights_error(path, remedy), torch.device("cpu"):
        staged = path.parent / _STAGE / path.name  # where a save was killed at its last step
        with contextlib.suppress(DamagedError, OSError):
            check_file(staged, config.weights_sha256)
            path = staged
        check_file(path, config.weights_sha256)
        model = build_empty(config.model_args, "cpu").float()
        model.load_state_dict(safetensors.torch.load_file(path))
        _check_values(model.state_dict())
        model.categories = config.categories
        for name in CALIBRATION:
            getattr(model, name).fill_(getattr(config, name))
        return model.eval()


def build_empty(model_args: Mapping[str, Any], device: str) -> ImprovedVGG19:
    """The network of these arguments, its weights not initialised."""
    with torch.device(device), SkipInit():
        return ImprovedVGG19(**model_args)


class SkipInit(TorchFunctionMode):
    """Leaves random initialisation out: it costs time, and draws from the global generator."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "").endswith(("normal_", "uniform_")):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def check_file(path: Path, sha256: str | None, limit: int = 32 << 30) -> None:
    """A DamagedError if this is no file (a FIFO would be waited for, and a device may have no end),
    has more bytes than ``limit`` (the widest network has 20 GB) or another sha256."""
    if path.stat().st_size > limit or not path.is_file():
        raise DamagedError(f"it is no file of at most {limit:,} bytes")
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
    are stored as ``dtype`` (float16, bfloat16 or float32), all else as float32. Wherever it is
    interrupted, the folder is loaded as it was before, or as it is saved here.

    Raises:
        TypeError: the model is no ImprovedVGG19.
        ValueError: the model has no categories, a weight has no value or is not finite in
            ``dtype``, or layers are not the constructor's, so that the files could not be loaded.
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
    tensors, built = model.state_dict(), build_empty(model_args, "meta").state_dict()
    shapes = {key: getattr(value, "shape", None) for key, value in tensors.items()}
    if shapes != {key: value.shape for key, value in built.items()}:
        raise ValueError(
            f"the model's layers are not those of ImprovedVGG19(**{model_args}); "
            "where they are pruned, call torch.nn.utils.prune.remove(layer, 'weight') first"
        )
    tensors = {key: value for key, value in tensors.items() if key not in CALIBRATION}
    for key, value in tensors.items():
        if value.is_meta:
            raise ValueError(f"{key} has no values, on the meta device: load the model whole first")
        if value.is_floating_point():
            value = value.to(dtype if value.ndim > 1 else torch.float32)
        tensors[key] = value.cpu().contiguous()
    _check_values(tensors)
    data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    # As many digits as a float32 has, so that 0.5077 stays 0.5077.
    calibration: dict[str, Any] = {n: float(f"{getattr(model, n):.7g}") for n in CALIBRATION}
    figures = {key: float(value) for key, value in (metrics or {}).items()}
    config = WeightsConfig(
        model_args, hashlib.sha256(data).hexdigest(), tuple(model.categories), **calibration,
        metrics=figures, license=license, trained_on=trained_on, selected_on=selected_on,
        dataset_license=dataset_license,
    )  # fmt: skip
    text = config.to_json()  # before anything is written over
    _replace_files(Path(folder), data, text)
    return config


def _replace_files(folder: Path, weights: bytes, config: bytes) -> None:
    """By way of a folder in it, whose weights move to their place when the config is there. Others
    who save into the folder wait, where the system can lock it (Windows cannot)."""
    folder.mkdir(parents=True, exist_ok=True)
    stage = folder / _STAGE
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            stack.callback(os.close, descriptor := os.open(folder, os.O_RDONLY))
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            stack.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)  # in forked processes, too
        _clear_stage(folder)  # of a save that was killed
        stack.callback(_clear_stage, folder)
        stage.mkdir()
        write_atomically(stage / WEIGHTS_FILE, weights)
        write_atomically(folder / CONFIG_FILE, config, stage)
        (stage / WEIGHTS_FILE).replace(folder / WEIGHTS_FILE)


def _clear_stage(folder: Path) -> None:
    """Take the weights there to their place, if the config is theirs, and remove what is left."""
    staged = folder / _STAGE / WEIGHTS_FILE
    try:
        check_file(staged, read_config(folder / CONFIG_FILE).weights_sha256)
    except (WeightsError, OSError):
        pass
    else:
        staged.replace(folder / WEIGHTS_FILE)
    shutil.rmtree(folder / _STAGE, ignore_errors=True)


def write_atomically(path: Path, data: bytes, stage: Path | None = None) -> None:
    """Write ``data`` as ``open_atomically`` does."""
    with open_atomically(path, stage) as file:
        file.write(data)


@contextlib.contextmanager
def open_atomically(path: Path, stage: Path | None = None) -> Iterator[BinaryIO]:
    """A file beside ``path``, or in another folder, which in the end is moved there: so that it is
    never seen half-written, nor found so after a power cut."""
    temporary = (stage or path.parent) / f".{path.name}.{uuid.uuid4().hex}"
    try:
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:  # not on Windows
            stack.callback(os.close, descriptor := os.open(path.parent, os.O_RDONLY))
            os.fsync(descriptor)
    finally:
        temporary.unlink(missing_ok=True)
