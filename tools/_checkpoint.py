"""A run's files: written so that a kill, a full disk or Ctrl-C loses at most the epoch at work."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _settings import Settings
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ferfacenet.weights import write_atomically

CHECKPOINT = "checkpoint.safetensors"


@contextmanager
def claimed(run: Path) -> Iterator[None]:
    """Keep other processes from writing ``run``, where the system can lock files (Windows cannot);
    SystemExit if one does it already."""
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("w") as file:
        try:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass
        except (BlockingIOError, PermissionError) as error:
            raise SystemExit(f"another process is at work on {run}: let it, or end it") from error
        yield


def save_config(run: Path, config: Settings) -> None:
    write_atomically(run / "config.json", json.dumps(dataclasses.asdict(config), indent=2).encode())


def save_checkpoint(run: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Replace ``run``'s metrics.jsonl by the lines of ``state["history"]``, then its checkpoint. A
    kill at any moment leaves whole files, the old or the new ones, or metrics of one epoch more,
    which a resumed run trains and writes again; SystemExit on a full disk."""
    path = run / CHECKPOINT
    temporary = path.with_suffix(".tmp")
    for left in run.glob(".tmp*"):  # safetensors' own, where it was killed while writing
        left.unlink()
    try:
        save_file(tensors, temporary, {"state": json.dumps(state)})
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        lines = "".join(json.dumps(line) + "\n" for line in state["history"])
        write_atomically(run / "metrics.jsonl", lines.encode())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise SystemExit(
            f"cannot write {path}: {error}\n"
            f"The last checkpoint is whole: make room, and go on with --resume {run}"
        ) from error


def load_checkpoint(
    run: Path, fingerprint: str, data: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the state that ``save_checkpoint`` wrote; nothing where there are none yet.
    SystemExit where the file is torn, or ``data`` has another ``fingerprint`` than it had."""
    path = run / CHECKPOINT
    if not path.exists():
        return {}, {}
    try:
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise SystemExit(f"{path} is torn or not a checkpoint: {error}") from error
    if state["fingerprint"] != fingerprint:
        raise SystemExit(f"{data} has changed since {path} was written: start a new run")
    return tensors, state


def _on_stop(handler: Any) -> None:
    """Ctrl-C, also where a shell put the run in the background and ignores it, and `kill`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


@contextmanager
def stoppable(again: str) -> Iterator[None]:
    """Let Ctrl-C and `kill` end the process with ``again``, the command that goes on."""
    _on_stop(signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nStopped. Go on after the last checkpoint with:\n  {again}", file=sys.stderr)
        sys.exit(130)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Inside ``stoppable``, keep Ctrl-C and `kill` waiting: between a checkpoint and its metrics
    they would cost an epoch, and inside matplotlib's callbacks a KeyboardInterrupt is dropped, or
    turned into another error."""
    waiting: list[int] = []
    _on_stop(lambda number, _: waiting.append(number))
    yield
    _on_stop(signal.default_int_handler)
    if waiting:
        raise KeyboardInterrupt
