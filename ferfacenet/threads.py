"""What processes that fork and threads that share a model need."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

#: Guards what threads share. It is held over a fork, or a child could get it locked by a thread
#: that the child does not have.
lock = threading.RLock()


def _enter_child() -> None:
    """OpenMP's threads are not in the child of a process that has used them, and it would wait for
    them for ever: one thread, as torch's own DataLoader has it in its workers."""
    lock.release()
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(
        before=lock.acquire, after_in_parent=lock.release, after_in_child=_enter_child
    )

# By a model's id: how many calls need it in eval mode, and its modules that were in training.
# Threads share an entry, so that the first to finish does not put them back under the others.
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
                raise ValueError("an exported model has no modes: give what it is of") from error
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
