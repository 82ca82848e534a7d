"""predict_proba: images in, class probabilities out (the paper's ten-crop test, section 4)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from ferfacenet.fast import Precision, fast_forward
from ferfacenet.model import MEAN, STD
from ferfacenet.transforms import CROP, SIZE, preprocess, ten_crop

if TYPE_CHECKING:
    from ferfacenet.transforms import Image

TTA: TypeAlias = Literal["ten_crop", "flip"]

#: How many views of an image each ``tta`` mode averages.
_VIEWS = {"ten_crop": 10, "flip": 2, None: 1}

# Threads that prepare images while the model is busy with the ones before.
_WORKERS = min(16, 2 * (os.cpu_count() or 1))


_predicted = threading.Event()  # in this process, or in one that it was forked from


def _in_a_forked_process() -> None:
    """OpenMP's threads are not in the child of a process that used them, and it would wait for
    them for ever: one thread, as torch's own DataLoader has it in its workers."""
    if _predicted.is_set():
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_in_a_forked_process)


def predict_proba(
    model: nn.Module,
    images: Image | Iterable[Image] | Tensor,
    *,
    tta: TTA | None = "ten_crop",
    batch_size: int = 128,
    precision: Precision = "auto",
) -> Tensor:
    """The class probabilities of one image or many.

    The logits are divided by ``model.temperature``, put through a softmax, and the
    probabilities of an image's views averaged. The model's train mode, dtype, device and
    gradients, and the caller's grad mode, are afterwards what they were, also on an error.

    Args:
        model: an ``ImprovedVGG19``, or any module from (N, 1, H, W) to logits (N, C).
        images: one image of any kind that ``preprocess`` takes; an iterable of them, which
            is read lazily; or a float tensor (N, 1, 48, 48), which is taken as prepared by
            ``preprocess``. Any other tensor or array of four dimensions is a sequence of
            images, and one of three or two is a single image (so a single prepared tensor
            (1, 48, 48) needs ``[None]``).
        tta: the views of each image: ``"ten_crop"``, the paper's corners and centre at
            44x44 with their mirrors; ``"flip"``, the centre 44x44 and its mirror; None, the
            centre alone.
        batch_size: the most views (crops) that exist, and that the model is given, at once;
            with ten crops, those of ``batch_size // 10`` images (of one, in parts, if less).
        precision: ``"float32"``; ``"bfloat16"``; or ``"auto"``, the faster of the two on
            the device.

    Returns:
        (N, C) float32 on the CPU, in [0, 1], each row summing to 1, columns in the order of
        ``model.categories``; (0, C) for no images.

    Raises:
        ValueError: an unreadable image, or a bad ``tta``, ``batch_size`` or ``precision``.
        TypeError: something that is not an image, or not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if tta not in _VIEWS:
        raise ValueError(f"tta must be 'ten_crop', 'flip' or None, got {tta!r}")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision must be 'auto', 'float32' or 'bfloat16', got {precision!r}")
    _predicted.set()
    temperature = float(getattr(model, "temperature", 1.0))
    rows = []
    batches = _prepared(model, images, max(1, batch_size // _VIEWS[tta]))
    with torch.no_grad(), closing(batches), _forward(model, precision) as forward:
        for batch in batches:
            crops = views(batch, tta)
            logits = torch.cat([forward(part) for part in crops.flatten(0, 1).split(batch_size)])
            if logits.ndim != 2:
                raise ValueError(f"the model must return (N, C) logits, got {logits.ndim}-D")
            probabilities = torch.softmax(logits / temperature, dim=1)
            rows.append(probabilities.unflatten(0, crops.shape[:2]).mean(0))
        if not rows:
            # The model itself says how many columns its empty answer has.
            return forward(torch.zeros(0, 1, CROP, CROP, device="cpu")).cpu()
        return torch.cat(rows).cpu()


def views(batch: Tensor, tta: TTA | None) -> Tensor:
    """(N, 1, 48, 48) to the views of each image, (views, N, 1, 44, 44)."""
    if tta == "ten_crop":
        return ten_crop(batch)
    edge = (SIZE - CROP) // 2
    centre = batch[..., edge : edge + CROP, edge : edge + CROP]
    return torch.stack((centre, centre.flip(-1))) if tta == "flip" else centre[None]


@contextmanager
def _forward(model: nn.Module, precision: Precision) -> Iterator[Callable[[Tensor], Tensor]]:
    """The model in eval mode as a function of views on any device, to float32 logits."""
    fast = fast_forward(model, precision)
    if fast is not None:
        yield fast
        return
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(0))
    # The caller's own autocast must not change the answer behind ``precision``'s back.
    narrow = precision == "bfloat16"
    with _evaluating(model), torch.autocast(like.device.type, torch.bfloat16, enabled=narrow):
        yield lambda x: model(x.to(like.device, like.dtype)).float()


def _prepared(
    model: nn.Module, images: Image | Iterable[Image] | Tensor, size: int
) -> Generator[Tensor, None, None]:
    """The images as float32 tensors (n, 1, 48, 48) of at most ``size`` images each.

    Images that are yet to be prepared are so by threads, one batch ahead of the model.
    """
    if _is_prepared(images):
        assert isinstance(images, Tensor)
        # No images at all would split into one batch of none.
        yield from images.detach().float().split(size) if len(images) else ()
        return
    mean, std = float(getattr(model, "mean", MEAN)), float(getattr(model, "std", STD))

    def prepare(image: Image) -> Tensor:
        return preprocess(image, mean=mean, std=std)

    if _is_one(images):
        yield prepare(images)[None]  # type: ignore[arg-type]
        return
    source = iter(images)  # type: ignore[arg-type]
    with ThreadPoolExecutor(_WORKERS) as pool:

        def start() -> list[Future[Tensor]]:
            batch = []
            try:
                for image in islice(source, size):
                    batch.append(pool.submit(prepare, image))
            except Exception as error:  # of the caller's iterable; its turn is after these
                batch.append(Future())
                batch[-1].set_exception(error)
            return batch

        batch = start()
        try:
            while batch:
                following = start()
                yield torch.stack([future.result() for future in batch])
                batch = following
        finally:
            pool.shutdown(cancel_futures=True)


def _is_prepared(images: Any) -> bool:
    return (
        isinstance(images, Tensor)
        and images.is_floating_point()
        and images.ndim == 4
        and images.shape[1:] == (1, SIZE, SIZE)
    )


def _is_one(images: Any) -> bool:
    """Whether this is one image and not several (files and strings are iterable too)."""
    if isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike)):
        return True
    if hasattr(images, "read"):
        return True
    if hasattr(images, "ndim"):
        return int(images.ndim) < 4
    return not hasattr(images, "__iter__")


# Models that some call has put into eval mode, by id: how many calls still need it, and the modes
# to return to. Calls on one model from several threads share an entry, so that the first to
# finish does not put the model back into train mode under the others.
_evaluated: dict[int, tuple[int, list[tuple[nn.Module, bool]]]] = {}
_evaluated_lock = threading.Lock()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Hold the model in eval mode; then put every submodule back into the mode it had."""
    with _evaluated_lock:
        count, modes = _evaluated.get(id(model)) or (0, [(m, m.training) for m in model.modules()])
        if not count:
            model.eval()
        _evaluated[id(model)] = (count + 1, modes)
    try:
        yield
    finally:
        with _evaluated_lock:
            count, modes = _evaluated.pop(id(model))
            if count > 1:
                _evaluated[id(model)] = (count - 1, modes)
            else:
                for module, training in modes:
                    module.training = training
