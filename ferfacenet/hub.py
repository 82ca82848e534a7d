"""Pretrained weights: found, verified and loaded; and saved in the same form.

A set of weights is a folder (or a Hub repository) of two files: ``config.json``, which is a
:class:`WeightsConfig`, and ``model.safetensors``, whose sha256 the config states. The sets
that this package names are trusted by the sha256s in ``_REGISTRY``, wherever they come from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ferfacenet.model import ImprovedVGG19

#: The Hub namespace, here and nowhere else.
NAMESPACE = "ferfacenet"

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"

FORMAT_VERSION = 1


class WeightsError(RuntimeError):
    """Weights cannot be had or do not match; the message says which file and what mends it."""


@dataclasses.dataclass(frozen=True)
class _Registered:
    sha256: str
    size: int
    config_sha256: str
    #: The commit that holds these files on the Hub, once they are published: with it, this
    #: version of the package goes on finding them when the repository gets better ones.
    revision: str | None = None


#: The named weights; ``python tools/publish.py register FOLDER`` prints such an entry.
_REGISTRY: dict[str, _Registered] = {
    "fer2013": _Registered(
        sha256="8f78e9e88e654018e8c2d51b138e76ab0919369c496063ebc99e5541f62c91c1",
        size=40162340,
        config_sha256="e1f3cfcffafa79566aa62d471f8a0fc5acc79c35b628d60549c948db414ffb8f",
    ),
    "fer2013-small": _Registered(
        sha256="8b54dfb1c0dac2b0d8c8d7189fe643a939667082024fe263ef1f0c49fdd50a63",
        size=2541228,
        config_sha256="a183e40b1c58ade2d3a45c622a3d8b956fc91885d4484a7cc927553e112884fe",
    ),
    "ckplus": _Registered(
        sha256="d5476ea9000a9f5f4df98d4e6401e5374a2643a7ab6bc866c2ccedbe93f95a05",
        size=40162340,
        config_sha256="6590f545f6072a2484322f6d9865e95a377c46f911ed8122653facafacb1babb",
    ),
}
_BUNDLED = Path(__file__).with_name("weights")

_ELSEWHERE = "name another place with cache_dir=... or HF_HOME"
_REINSTALL = "reinstall it: pip install --force-reinstall ferfacenet"
_LONGEST = 1000  # characters of an error that quotes a file
_CHUNK = 1 << 20  # bytes read, hashed and copied at a time, from the processor's cache
_PICKLES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".tar"}


def repo_id(name: str) -> str:
    """The Hub repository of the registered weights ``name``."""
    return f"{NAMESPACE}/improved-vgg19-{name}"


@dataclasses.dataclass(frozen=True)
class WeightsConfig:
    """All there is to say about a weights file; what ``config.json`` holds, key for key.

    Attributes:
        format_version: 1; another number is refused.
        architecture: ``"ImprovedVGG19"``.
        model_args: the arguments of :class:`~ferfacenet.ImprovedVGG19`.
        weights_sha256: of ``model.safetensors``, 64 hex digits.
        categories: names of the output columns, one for each class.
        input_size, crop_size: side of the prepared image and of its ten crops, in pixels.
        mean, std: normalisation of pixels in [0, 1].
        temperature: what the logits are divided by before the softmax.
        metrics: measured figures by name, for instance ``"PublicTest ten_crop accuracy"``.
        license: of the weights, as the Hub abbreviates it.
        trained_on, selected_on, dataset_license: sentences for the model card.
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
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Raises ValueError naming the first value that is not as it must be."""
        for key in ("mean", "std", "temperature"):
            value = getattr(self, key)
            if not _is_number(value) or (key != "mean" and value <= 0):
                raise ValueError(f"{key} is {value!r}")
        for key, fixed in (
            ("architecture", "ImprovedVGG19"),
            ("input_size", 48),
            ("crop_size", 44),
        ):
            if getattr(self, key) != fixed:
                raise ValueError(f"{key} is {getattr(self, key)!r}; this version reads {fixed!r}")
        for key in ("license", "trained_on", "selected_on", "dataset_license"):
            if not isinstance(getattr(self, key), str):
                raise ValueError(f"{key} is {getattr(self, key)!r}, not a text")
        if not isinstance(self.weights_sha256, str) or not re.fullmatch(
            "[0-9a-f]{64}", self.weights_sha256
        ):
            raise ValueError(f"weights_sha256 is {self.weights_sha256!r}, not 64 hex digits")
        if not isinstance(self.metrics, dict) or not all(map(_is_number, self.metrics.values())):
            raise ValueError("metrics is not a table of finite numbers")
        _check_model_args(self.model_args)
        names = self.categories
        if not isinstance(names, tuple) or not all(
            isinstance(n, str) and n and n.isprintable() for n in names
        ):
            raise ValueError("categories is not a list of names that can be printed")
        if len(set(names)) != len(names) or len(names) != self.model_args["num_classes"]:
            raise ValueError(
                f"categories has {len(set(names))} different names, "
                f"model_args says num_classes={self.model_args['num_classes']}"
            )

    @classmethod
    def from_json(cls, data: bytes) -> WeightsConfig:
        """The checked config that ``data`` holds; ValueError saying what is wrong with it."""
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise _DamagedError(f"it is not JSON ({error})") from None
        if not isinstance(raw, dict):
            raise ValueError("it is not a JSON object")
        version = raw.get("format_version")
        if type(version) is not int or version != FORMAT_VERSION:
            raise ValueError(
                f"format_version is {version!r}, this ferfacenet reads {FORMAT_VERSION}; "
                "a newer one may read it: pip install --upgrade ferfacenet"
            )
        _check_keys(raw, {field.name for field in dataclasses.fields(cls)})
        if isinstance(raw["categories"], list):
            raw["categories"] = tuple(raw["categories"])
        return cls(**raw)

    def to_json(self) -> bytes:
        """The bytes of ``config.json``."""
        return (json.dumps(dataclasses.asdict(self), indent=2) + "\n").encode()


@dataclasses.dataclass(frozen=True)
class PretrainedInfo:
    """One registered set of weights, as ``list_pretrained`` shows it.

    Attributes:
        categories: names of the output columns.
        metrics: measured figures by name.
        size: bytes of the weights file.
        repo_id: the Hub repository that holds it.
        bundled: whether it is in this installation, so that loading needs no network.
    """

    categories: tuple[str, ...]
    metrics: dict[str, float]
    size: int
    repo_id: str
    bundled: bool


def list_pretrained() -> dict[str, PretrainedInfo]:
    """The registered names, each with its categories, metrics and size; asks no network.

    Raises:
        WeightsError: the installation is damaged.
    """
    found = {}
    for name, entry in _REGISTRY.items():
        source = _Folder(_BUNDLED / name, _REINSTALL)
        config = _read_config(source, entry)
        bundled = (source.folder / WEIGHTS_FILE).is_file()
        found[name] = PretrainedInfo(
            config.categories, config.metrics, entry.size, repo_id(name), bundled
        )
    return found


def load_pretrained(
    name: str | os.PathLike[str] = "fer2013",
    *,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> ImprovedVGG19:
    """The network with trained weights, float32, in eval mode.

    Args:
        name: a registered name (see :func:`list_pretrained`), a folder or ``.safetensors``
            file (with ``config.json`` beside it), or a Hub id ``"org/repo"`` or
            ``"org/repo@revision"``. Where a folder and a Hub id have the same name, the
            folder is meant; registered names and their Hub ids come before both.
        revision: branch, tag or commit on the Hub; a full commit hash that is in the cache
            is loaded without a request. A registered name is then fetched from the Hub even
            if it is bundled, and still has to match its sha256.
        device: where the model goes.
        cache_dir: the Hub cache, in place of ``HF_HOME``'s.
        local_files_only: ask no network.
        token: Hub token, or True for the stored one.

    Returns:
        The model with ``categories``, ``mean``, ``std`` and ``temperature`` set.

    Raises:
        WeightsError: the files cannot be had, are damaged, or do not fit together. Only
            safetensors files are read; a pickle is refused unopened.
        ValueError: ``revision`` with a local path or twice.
        TypeError: ``name`` is no string or path.
    """
    source, entry = _locate(
        name,
        revision,
        cache_dir=None if cache_dir is None else os.fspath(cache_dir),
        local_files_only=local_files_only,
        token=token,
    )
    config = _read_config(source, entry)
    path = source.fetch(WEIGHTS_FILE)
    expected = entry.sha256 if entry else config.weights_sha256
    try:
        model = _read_model(path, config, expected)
    except (ValueError, OSError) as error:
        _refuse(source, path, error)
    return model.to(device)


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

    Convolution and linear weights are stored as ``dtype``, all else (biases, BatchNorm) as
    float32. Each file appears whole or not at all, and an interruption between the two
    leaves a pair that ``load_pretrained`` refuses. The model is left as it is.

    Args:
        model: with ``categories``, ``mean``, ``std`` and ``temperature`` as they are to be.
        folder: made if it is not there.
        metrics, license, trained_on, selected_on, dataset_license: see WeightsConfig.
        dtype: float16, bfloat16 or float32.

    Returns:
        The config that was written.

    Raises:
        ValueError: the model has no categories, or a weight is not finite in ``dtype``.
    """
    import safetensors.torch

    if model.categories is None:
        raise ValueError("model.categories is None; set it to the names of the classes")
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(f"dtype must be float16, bfloat16 or float32, got {dtype}")
    tensors = {}
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            value = value.detach().to("cpu", dtype if value.ndim > 1 else torch.float32)
            if not value.isfinite().all():
                raise ValueError(f"{key} has values that are not finite as {value.dtype}")
        tensors[key] = value.to("cpu").contiguous()
    data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    config = WeightsConfig(
        model_args=_model_args(model),
        weights_sha256=hashlib.sha256(data).hexdigest(),
        categories=tuple(model.categories),
        mean=model.mean,
        std=model.std,
        temperature=model.temperature,
        metrics=dict(metrics or {}),
        license=license,
        trained_on=trained_on,
        selected_on=selected_on,
        dataset_license=dataset_license,
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS_FILE, data)
    write_atomically(folder / CONFIG_FILE, config.to_json())
    return config


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` beside ``path`` and move it there, so that it is never seen half-written."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        # mkstemp makes private files; these are to be read by whoever reads their folder.
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class _DamagedError(ValueError):
    """The bytes are not those that were saved, so that a fresh copy may mend it."""


class _Source(Protocol):
    """Where the files of one set of weights are."""

    @property
    def remedy(self) -> str:
        """What to do about files that are whole and yet do not fit."""

    def fetch(self, file: str) -> Path:
        """The path of ``file`` here on this machine."""

    def discard(self) -> str:
        """Forget damaged copies so that the next try gets fresh ones; says what to do then."""


@dataclasses.dataclass
class _Folder:
    folder: Path
    remedy: str = "save it again with ferfacenet.save_pretrained, or fetch a whole copy"
    weights: str = WEIGHTS_FILE

    def fetch(self, file: str) -> Path:
        path = self.folder / (self.weights if file == WEIGHTS_FILE else file)
        if not path.is_file():
            raise WeightsError(f"{path}: there is no such file; {self.remedy}")
        return path

    def discard(self) -> str:
        return self.remedy


@dataclasses.dataclass
class _HubRepo:
    repo: str
    revision: str | None
    cache_dir: str | None
    local_files_only: bool
    token: str | bool | None
    remedy: str = "name another revision, or tell the owner of the repository"
    fetched: list[Path] = dataclasses.field(default_factory=list)

    def fetch(self, file: str) -> Path:
        try:
            import huggingface_hub
            from huggingface_hub.errors import LocalEntryNotFoundError
        except ImportError as error:
            message = f"{self.repo} is on the Hub; pip install huggingface_hub ({error})"
            raise WeightsError(message) from error
        try:
            found = None
            # hf_hub_download may send a request (for its user agent) even then.
            if self.local_files_only or re.fullmatch("[0-9a-f]{40}", self.revision or ""):
                found = huggingface_hub.try_to_load_from_cache(
                    self.repo, file, revision=self.revision, cache_dir=self.cache_dir
                )
            if self.local_files_only and not isinstance(found, str):
                raise LocalEntryNotFoundError("local_files_only is set")
            if not isinstance(found, str):
                with _checked_answers():
                    found = huggingface_hub.hf_hub_download(
                        self.repo,
                        file,
                        revision=self.revision,
                        cache_dir=self.cache_dir,
                        token=self.token,
                    )
            path = Path(found)
        # The client lets errors of its transport through, and which transport that is
        # (requests, httpx, httpx2) depends on its version: so all are caught, none is hidden.
        except Exception as error:
            if type(error) is OSError and error.errno is None:
                self._forget_partial()
            at = f"@{self.revision}" if self.revision else ""
            message = " ".join(self._explain(error).split())  # the client's have several lines
            raise WeightsError(f"{self.repo}{at}: {file}: {message}") from error
        # The cache keeps snapshots/<commit>/<file>: one commit for both files, even if the
        # branch moves in between.
        self.revision = path.parent.name
        self.fetched.append(path)
        return path

    def discard(self) -> str:
        for path in self.fetched:
            blob, cache = path.resolve(), path.parents[2].resolve()
            try:
                if cache in blob.parents:
                    blob.unlink(missing_ok=True)
                path.unlink(missing_ok=True)
            except OSError:
                return f"delete {path.parents[2]} and try again"
        return (
            "the damaged copy has been removed from the cache: try again to fetch a new one; "
            "if that is the same, the repository itself does not match, so " + self.remedy
        )

    def _forget_partial(self) -> None:
        """After a file of a wrong length: older clients would try to resume it for ever."""
        from huggingface_hub import constants

        cache = Path(self.cache_dir or constants.HF_HUB_CACHE)
        for part in cache.glob(f"models--{self.repo.replace('/', '--')}/blobs/*.incomplete"):
            with contextlib.suppress(OSError):
                part.unlink()

    def _explain(self, error: Exception) -> str:
        """What went wrong, and the one line that mends it."""
        from huggingface_hub import constants, errors

        cache = self.cache_dir or constants.HF_HUB_CACHE
        answer = getattr(error.__cause__ or error, "response", None)
        status = getattr(answer, "status_code", None)
        login = "pass token=... or set HF_TOKEN to a token that may read it"
        if isinstance(error, _UnsafeAnswerError):
            return f"{error}; do not trust {constants.ENDPOINT}"
        if isinstance(error, errors.GatedRepoError):
            return (
                f"it is gated; accept its terms at {constants.ENDPOINT}/{self.repo}, then {login}"
            )
        if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
            return f"there is no such repository, or it is private; check the name, or {login}"
        if isinstance(error, errors.RevisionNotFoundError):
            return f"there is no such revision; see {constants.ENDPOINT}/{self.repo}/commits/main"
        if isinstance(error, errors.LocalEntryNotFoundError) and status is None:
            why = (
                f"cannot be reached ({error.__cause__})" if error.__cause__ else "may not be asked"
            )
            return (
                f"it is not in the cache ({cache}) and the Hub {why}; run this once with a "
                f"network: {self._download_line()}"
            )
        if isinstance(error, errors.EntryNotFoundError) and status in (None, 404):
            return (
                "the repository has no such file; only config.json with model.safetensors, as "
                "ferfacenet.save_pretrained writes them, are read, never a pickle"
            )
        if status == 403:
            return f"the Hub answered 403, forbidden; {login}"
        if status is not None:
            return f"the Hub answered {status}; try again later"
        if isinstance(error, errors.HFValidationError):
            return f"that is no Hub id ({error})"
        code = error.errno if isinstance(error, OSError) else None
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return f"the disk of the cache ({cache}) is full ({error}); make room, or {_ELSEWHERE}"
        if code in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"the cache ({cache}) cannot be written ({error}); {_ELSEWHERE}"
        return f"the download failed ({type(error).__name__}: {error}); try again"

    def _download_line(self) -> str:
        asked = {"revision": self.revision, "cache_dir": self.cache_dir}
        arguments = [repr(self.repo), *(f"{k}={v!r}" for k, v in asked.items() if v is not None)]
        code = f"import ferfacenet; ferfacenet.load_pretrained({', '.join(arguments)})"
        return f'python -c "{code}"'


class _UnsafeAnswerError(Exception):
    """A Hub's answer that could lead outside of the cache."""


_answers_lock = threading.Lock()


@contextlib.contextmanager
def _checked_answers() -> Iterator[None]:
    """While inside, the client takes no answer whose etag or commit is not one plain file name.

    It names files of its cache by them as they come (huggingface_hub 2.4.0), also in a refusal,
    so that a server's ``../`` would lead outside. Asking once more beforehand would not do: the
    server may then answer otherwise. Other threads' downloads are checked too meanwhile.
    """
    from huggingface_hub import file_download

    def checked(*arguments: Any, **settings: Any) -> Any:
        try:
            answer = asked(*arguments, **settings)
        except Exception as error:
            headers = getattr(getattr(error, "response", None), "headers", {})
            _check_names(commit=headers.get("X-Repo-Commit"))
            raise
        _check_names(etag=answer.etag, commit=answer.commit_hash)
        return answer

    with _answers_lock:
        asked = file_download.get_hf_file_metadata
        file_download.get_hf_file_metadata = checked
        try:
            yield
        finally:
            file_download.get_hf_file_metadata = asked


def _check_names(**names: str | None) -> None:
    for what, name in names.items():
        if name is not None and not re.fullmatch(r"\w[\w.-]{0,127}", name, re.ASCII):
            raise _UnsafeAnswerError(f"the answer's {what} is {name[:100]!a}, no plain name")


def _locate(
    name: str | os.PathLike[str], revision: str | None, **hub: Any
) -> tuple[_Source, _Registered | None]:
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(f"name must be a string or a path, not {type(name).__name__}")
    base, _, tag = name.partition("@") if isinstance(name, str) else ("", "", "")
    registered = next((n for n in _REGISTRY if base in (n, repo_id(n))), None)
    if registered is None and os.fspath(name) and _exists(Path(name)):
        if revision is not None:
            raise ValueError(f"revision={revision!r} is for the Hub, and {name} is a local path")
        return _local(Path(name)), None
    _refuse_pickle(Path(base))
    hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", base) and not base.endswith(".safetensors")
    if registered is None and not hub_id:
        raise WeightsError(
            f"{os.fspath(name)!r} is no file or folder here ({Path.cwd()}), no registered name "
            f"({', '.join(_REGISTRY)}) and no Hub id like 'org/repo'; correct it"
        )
    if tag and revision is not None and tag != revision:
        raise ValueError(f"two revisions are given, {tag!r} and {revision!r}")
    revision = tag or revision
    if revision and (".." in revision or revision.startswith("/")):  # Git has no such names
        raise WeightsError(f"{revision!a} is no revision; name a branch, a tag or a commit")
    if registered is None:
        return _HubRepo(base, revision, **hub), None
    entry = _REGISTRY[registered]
    folder = _BUNDLED / registered
    if base == registered and revision is None and (folder / WEIGHTS_FILE).exists():
        return _Folder(folder, _REINSTALL), entry
    return _HubRepo(repo_id(registered), revision or entry.revision, **hub), entry


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _local(path: Path) -> _Folder:
    if path.is_dir():
        return _Folder(path)
    _refuse_pickle(path)
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path}: only folders and .safetensors files are read")
    return _Folder(path.parent, weights=path.name)


def _refuse_pickle(path: Path) -> None:
    if path.suffix in _PICKLES:
        raise WeightsError(
            f"{path}: a {path.suffix} file may be a pickle, which can run any code, and is not "
            "opened; load it where you trust it and write it with ferfacenet.save_pretrained"
        )


def _refuse(source: _Source, path: Path, error: Exception) -> NoReturn:
    # It may quote the file, whose words are not to reach a terminal as they are.
    said = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(error)[:_LONGEST])
    message = f"{path}: {said}"
    if isinstance(error, ValueError):
        damaged = isinstance(error, _DamagedError)
        message += f"; {source.discard() if damaged else source.remedy}"
    raise WeightsError(message) from error


def _read_config(source: _Source, entry: _Registered | None) -> WeightsConfig:
    path = source.fetch(CONFIG_FILE)
    try:
        with path.open("rb") as file:
            data = file.read(_CHUNK + 1)
        if len(data) > _CHUNK:
            raise _DamagedError(f"it is larger than {_CHUNK >> 20} MiB")
        if entry:
            _check_sha256(hashlib.sha256(data).hexdigest(), entry.config_sha256)
        return WeightsConfig.from_json(data)
    except (ValueError, OSError) as error:
        _refuse(source, path, error)


def _read_model(path: Path, config: WeightsConfig, sha256: str) -> ImprovedVGG19:
    # Any device or dtype that the caller has made the default is not meant for this.
    on_cpu = contextlib.nullcontext() if torch.empty(0).is_cpu else torch.device("cpu")
    try:
        with on_cpu, _SkipInit():
            model = ImprovedVGG19(**config.model_args).float()
    except (RuntimeError, TypeError, OverflowError, MemoryError) as error:
        raise ValueError(f"no network can be built from model_args ({error})") from None
    problem = None
    with path.open("rb", buffering=0) as file:
        reader = _HashingReader(file)
        try:
            _fill(model.state_dict(), reader.read, os.fstat(file.fileno()).st_size)
        except ValueError as error:
            problem = error
        while len(reader.read(_CHUNK)):
            pass
    _check_sha256(reader.sha256.hexdigest(), sha256)
    if problem:
        raise problem
    model.categories = config.categories
    model.mean, model.std, model.temperature = config.mean, config.std, config.temperature
    return model.eval()


def _check_sha256(found: str, expected: str) -> None:
    if found != expected:
        raise _DamagedError(
            f"its sha256 is {found}, not {expected}: the file is damaged or changed"
        )


class _HashingReader:
    """Reads a file once, piece by piece, and hashes the pieces that it hands out.

    So what is hashed is what is loaded, while it is in the processor's cache, and the file is
    never in memory as a whole.
    """

    def __init__(self, file: io.FileIO) -> None:
        self.file, self.sha256 = file, hashlib.sha256()
        self.buffer = torch.empty(_CHUNK, dtype=torch.uint8, device="cpu")

    def read(self, count: int) -> Tensor:
        """The next ``count`` bytes (at most ``_CHUNK``), fewer at the end; valid for one call."""
        view, done = self.buffer.numpy().data, 0
        while done < count and (got := self.file.readinto(view[done:count])):
            done += got
        self.sha256.update(view[:done])
        return self.buffer[:done]


class _SkipInit(TorchFunctionMode):
    """Leaves random initialisation out: it costs time, and draws from the global generator."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _RANDOM:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


_RANDOM = {"normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_"}


_DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "I64": torch.int64,
}


def _fill(state: Mapping[str, Tensor], read: Callable[[int], Tensor], size: int) -> None:
    """Copy the tensors of a safetensors file of ``size`` bytes into those of ``state``.

    The safetensors package would open the file by itself, so that what is hashed need not be
    what is loaded, or else hold it in memory twice; hence the format's few lines here.
    """
    length = int.from_bytes(_bytes(read(8)), "little")
    try:
        header = json.loads(_bytes(read(min(length, _CHUNK))))
        header.pop("__metadata__", None)
        stored = {
            key: (*entry["data_offsets"], _DTYPES[entry["dtype"]], list(entry["shape"]))
            for key, entry in header.items()
        }
        order = sorted(stored.items(), key=lambda item: item[1][:2])
        layout = [(key, begin, end, dtype, shape) for key, (begin, end, dtype, shape) in order]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise _DamagedError(f"it is not a safetensors file ({error!r})") from None
    _check_keys(stored, set(state))
    position = 0
    for key, begin, end, dtype, shape in layout:
        target = state[key]
        if shape != list(target.shape):
            raise ValueError(
                f"{key} has shape {shape}, and model_args in {CONFIG_FILE} ask for "
                f"{list(target.shape)}"
            )
        if dtype.is_floating_point != target.is_floating_point():
            raise ValueError(f"{key} is stored as {dtype}, not as {target.dtype}")
        if begin != position or end - begin != target.numel() * dtype.itemsize:
            raise _DamagedError(f"{key} is at {begin}:{end}, where it cannot be")
        position = end
        for part in target.view(-1).split(_CHUNK // dtype.itemsize):
            data = read(part.numel() * dtype.itemsize)
            if len(data) < part.numel() * dtype.itemsize:
                raise _DamagedError(f"it ends within {key}")
            part.copy_(data.view(dtype))
    if size != 8 + length + position:
        raise _DamagedError(f"it has {size} bytes, not {8 + length + position}")


def _bytes(data: Tensor) -> bytes:
    return data.numpy().tobytes()


def _model_args(model: ImprovedVGG19) -> dict[str, Any]:
    first = model.features[0].weight
    assert isinstance(first, Tensor)
    average = any(isinstance(module, nn.AvgPool2d) for module in model.features)
    args = {
        "num_classes": model.num_classes,
        "in_channels": first.shape[1],
        "dropout": model.dropout.p,
        "pool": "avg" if average else "max",
        "hidden_features": model.hidden_features,
    }
    return args if model.width == 1 else args | {"width": model.width}


def _check_model_args(args: object) -> None:
    if not isinstance(args, dict):
        raise ValueError("model_args is not a table")
    _check_keys(
        {"width": 1.0} | args,
        {"num_classes", "in_channels", "dropout", "pool", "hidden_features", "width"},
    )
    for key in ("num_classes", "in_channels", "hidden_features"):
        value = args[key]
        if value is None and key == "hidden_features":
            continue
        if type(value) is not int or value < 1:
            raise ValueError(f"model_args.{key} is {value!r}")
    if not _is_number(args["dropout"]) or not 0 <= args["dropout"] <= 1:
        raise ValueError(f"model_args.dropout is {args['dropout']!r}")
    width = args.get("width", 1.0)
    if not _is_number(width) or not 0 < width <= 16:
        raise ValueError(f"model_args.width is {width!r}")
    if args["pool"] not in ("max", "avg"):
        raise ValueError(f"model_args.pool is {args['pool']!r}")


def _check_keys(found: Mapping[str, object], expected: set[str]) -> None:
    missing, extra = sorted(expected - found.keys()), sorted(found.keys() - expected)
    problems = []
    if missing:
        problems.append("lacks " + ", ".join(missing[:5]) + (", ..." if missing[5:] else ""))
    if extra:
        problems.append("has unknown " + ", ".join(extra[:5]) + (", ..." if extra[5:] else ""))
    if problems:
        raise ValueError("it " + " and ".join(problems))


def _is_number(value: object) -> bool:
    # An int compared with a float is compared exactly, where math.isfinite would overflow.
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max
    )
