"""Pretrained weights by name: of this package, of a folder, or of the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import json
import os
import re
import textwrap
from pathlib import Path
from typing import Any

import torch

from ferfacenet.model import ImprovedVGG19
from ferfacenet.weights import (
    CONFIG_FILE,
    REINSTALL,
    WEIGHTS_FILE,
    DamagedError,
    WeightsError,
    as_weights_error,
    build_empty,
    printable,
    read_config,
    read_model,
)

#: The Hub namespace, here and nowhere else.
NAMESPACE = "ferfacenet"

_BUNDLED = Path(__file__).with_name("weights")
_HUB_ID = r"[\w-][\w.-]*/[\w-][\w.-]*(?<!\.safetensors)"
#: What the system says of a disk that is full or may not be written.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS}


@dataclasses.dataclass(frozen=True)
class PretrainedInfo:
    """One registered set of weights, as ``list_pretrained`` shows it."""

    categories: tuple[str, ...]  #: names of the output columns
    metrics: dict[str, float]  #: measured figures by name
    parameters: int  #: how many the network has
    size: int  #: bytes of the weights file
    repo_id: str  #: the Hub repository that holds it
    bundled: bool  #: whether it is in this installation, where it should be


def repo_id(name: str) -> str:
    """The Hub repository of the registered weights ``name``."""
    return f"{NAMESPACE}/improved-vgg19-{name}"


def read_registry(part: str) -> dict[str, Any]:
    """``"pretrained"``, by name: the config's sha256, the weights' size and maybe the Hub's commit
    of the files; or ``"yunet"``: the sha256 of the detector's weights."""
    path = _BUNDLED / "registry.json"
    with as_weights_error(path, REINSTALL):
        return dict(json.loads(path.read_bytes())[part])


def list_pretrained() -> dict[str, PretrainedInfo]:
    """The registered names, each with what is to be said of it; asks no network.

    Raises:
        WeightsError: the installation is damaged.
    """
    found = {}
    for name, entry in read_registry("pretrained").items():
        config = read_config(_BUNDLED / name / CONFIG_FILE, entry["config_sha256"], REINSTALL)
        count = sum(p.numel() for p in build_empty(config.model_args).parameters())
        bundled = (_BUNDLED / name / WEIGHTS_FILE).is_file()
        found[name] = PretrainedInfo(
            config.categories, config.metrics, count, entry["size"], repo_id(name), bundled
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
    """The network with trained weights, ``categories`` and calibration: float32, in eval mode.

    Args:
        name: a registered name in any case (see :func:`list_pretrained`), a folder or
            ``.safetensors`` file (with ``config.json`` beside it), or a Hub id ``"org/repo"`` or
            ``"org/repo@revision"``. Where a folder and a Hub id have the same name, the folder is
            meant; registered names and their Hub ids, as they are spelled, come before both.
        revision: branch, tag or commit on the Hub; a full commit hash that is in the cache
            is loaded without a request. With it, a registered name too is fetched from the
            Hub, and still has to match its sha256.
        device: where the model goes; ``"auto"`` is a GPU (CUDA or MPS) if there is one.
        cache_dir: the Hub cache, in place of ``HF_HOME``'s.
        local_files_only: ask no network.
        token: Hub token, or True for the stored one.

    Raises:
        WeightsError: the files cannot be had, are damaged, or do not fit together. Only
            safetensors files are read; a pickle is refused unopened.
        ValueError: ``revision`` with a local path or twice, or no such ``device``.
        TypeError: ``name`` is no string or path.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(f"name must be a string or a path, not {type(name).__name__}")
    device, registry = pick_device(device), read_registry("pretrained")
    # A path object is neither a registered name nor a Hub id.
    base, _, tag = name.partition("@") if isinstance(name, str) else ("", "", "")
    here = os.path.exists(name)  # noqa: PTH110  # Path.exists raises for some names
    # A file, or a folder of weights, is meant as it is spelled; FER2013 may be one of photos.
    weights = here and (Path(name).is_file() or (Path(name) / CONFIG_FILE).exists())
    spelled = base if weights else base.lower()
    known = next((n for n in registry if spelled in (n, repo_id(n))), None)
    if known is None and here:
        if revision is not None:
            raise ValueError(f"revision={revision!r} is for the Hub, and {name} is a local path")
        path = Path(name) / WEIGHTS_FILE if Path(name).is_dir() else Path(name)
        if path.suffix != ".safetensors":
            raise WeightsError(
                f"{path}: only .safetensors files are opened, since a pickle can run any code; "
                "load it where you trust it and write it with ferfacenet.save_pretrained"
            )
        return read_model(path, read_config(path.with_name(CONFIG_FILE))).to(device)
    if tag and revision not in (None, tag):
        raise ValueError(f"two revisions are given, {tag!r} and {revision!r}")
    revision, sha256 = revision or tag or None, None
    if known:
        sha256 = registry[known]["config_sha256"]
        if spelled == known and revision is None:  # bundled, so never a download
            path = _BUNDLED / known / WEIGHTS_FILE
            config = read_config(path.with_name(CONFIG_FILE), sha256, REINSTALL)
            return read_model(path, config, REINSTALL).to(device)
        base, revision = repo_id(known), revision or registry[known].get("revision")
    elif not re.fullmatch(_HUB_ID, base):
        near = difflib.get_close_matches(spelled, registry, 1)
        raise WeightsError(
            f"{os.fspath(name)!r} is no file or folder here ({Path.cwd()}), no registered name "
            f"({', '.join(registry)}) and no Hub id like 'org/repo'; "
            + (f"did you mean {near[0]!r}?" if near else "correct it")
        )
    cache_dir = Path(cache_dir) if cache_dir else None
    options = {"cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
    return _load_from_hub(base, revision, sha256, **options).to(device)


def pick_device(device: str | torch.device) -> torch.device:
    """The device of this name, or for ``"auto"`` a GPU (CUDA or MPS) if there is one, else the CPU;
    a ValueError if it is unknown or not there."""
    if device == "auto":
        there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        device = next((name for name in there if there[name]), "cpu")
    try:
        return torch.zeros(0, device=torch.device(device)).device
    except Exception as error:  # each backend has its own, of several kinds
        why = textwrap.shorten(str(error), 80, placeholder="...")
        raise ValueError(f"no device {str(device)!r} here ({why}); use 'cpu' or 'auto'") from error


def _load_from_hub(
    repo: str, revision: str | None, sha256: str | None, **options: Any
) -> ImprovedVGG19:
    remedy = f"try again for a fresh copy, or tell the owners of {repo}"
    fetched = [_download(repo, CONFIG_FILE, revision, **options)]
    try:
        config = read_config(fetched[0], sha256, remedy)
        # snapshots/<commit>/config.json: both files of one commit, even if a branch moves.
        fetched.append(_download(repo, WEIGHTS_FILE, fetched[0].parent.name, **options))
        return read_model(fetched[1], config, remedy)
    except DamagedError:
        for path in fetched:  # the snapshot's link, and what it names if that is in the cache too
            cache, blob = path.parents[3].resolve(), path.resolve()
            with contextlib.suppress(OSError):
                path.unlink()
                if blob.is_relative_to(cache):
                    blob.unlink()
        raise


def _download(
    repo: str, file: str, revision: str | None,
    cache_dir: Path | None, local_files_only: bool, token: str | bool | None,
) -> Path:  # fmt: skip
    """Where the file is in the cache, or after a download; a WeightsError with what mends it."""
    from huggingface_hub import constants, errors, hf_hub_download, try_to_load_from_cache

    try:
        # Even for what is in the cache, hf_hub_download may ask the Hub what to call itself.
        if local_files_only or re.fullmatch("[0-9a-f]{40}", revision or ""):
            found = try_to_load_from_cache(repo, file, cache_dir, revision)
            if isinstance(found, str):
                return Path(found)
            if local_files_only:
                raise errors.LocalEntryNotFoundError("local_files_only is set")
        found = hf_hub_download(repo, file, revision=revision, cache_dir=cache_dir, token=token)
        return Path(found)
    except Exception as error:  # the client's own, and those of its transport
        # Of a refusal the client says "not in the cache", and keeps it as the cause.
        cause = error.__cause__ if isinstance(error.__cause__, errors.HfHubHTTPError) else error
        page, cache = f"{constants.ENDPOINT}/{repo}", cache_dir or constants.HF_HUB_CACHE
        login = "pass token=... or set HF_TOKEN"
        remedies: dict[type, str] = {
            errors.GatedRepoError: f"accept its terms at {page}, then {login}",
            errors.RepositoryNotFoundError: f"check the name or, if it is private, {login}",
            errors.HFValidationError: "correct the name",
            errors.RevisionNotFoundError: f"see {page}/commits/main",
            errors.LocalEntryNotFoundError: f"load it once with a network into {cache}"
            f" (and there is no folder of this name in {Path.cwd()})",
            errors.EntryNotFoundError: f"name one with {CONFIG_FILE} and {WEIGHTS_FILE}",
        }
        remedy = next(
            (text for kind, text in remedies.items() if isinstance(cause, kind)), "try again"
        )
        if getattr(error, "errno", None) in _NO_ROOM:
            remedy = f"make room in {cache}, or name another cache_dir=... or HF_HOME"
        at = f"{repo}@{revision}" if revision else repo
        raise WeightsError(f"{at}: {file}: {printable(cause)}; {remedy}") from error
