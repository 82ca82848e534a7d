"""What processes that fork and threads that share a model need."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

#: Guards what threads share; held over a fork, so that no thread that the child lacks has it.
lock = threading.RLock()


def _enter_child() -> None:
    """OpenMP's threads are not in the child, which would wait for them for ever: it gets one, as
    torch's own DataLoader has it."""
    lock.release()
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(
        before=lock.acquire, after_in_parent=lock.release, after_in_child=_enter_child
    )

# By a model's id: how many threads need it in eval mode (the last to finish puts it back), and its
# modules that were in training.
_evaluated: dict[int, tuple[int, list[nn.Module]]] = {}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Hold the model in eval mode; then put every submodule back into the mode it had."""
    with lock:
        count, trained = _evaluated.get(id(model), (0, [m for m in model.modules() if m.training]))
        if not count and trained:
            try:
                model.eval()
            except NotImplementedError as error:  # of what torch.export made
                raise ValueError("the model is exported: give the one it is made of") from error
        _evaluated[id(model)] = (count + 1, trained)
    try:
        yield
    finally:
        with lock:
            count, trained = _evaluated.pop(id(model))
            if count > 1:
                _evaluated[id(model)] = (count - 1, trained)
            else:
                for module in trained:
                    module.training = True
