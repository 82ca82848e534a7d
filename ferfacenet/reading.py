"""One image or many: the latter are opened and searched by threads, ahead of who asks."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice, repeat, takewhile
from threading import Event
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
from torch import Tensor

from ferfacenet.images import Photo

T = TypeVar("T")
Errors: TypeAlias = Literal["raise", "coerce"]
Open: TypeAlias = Callable[[Any], Photo]
Search: TypeAlias = Callable[[list[tuple[Any, Photo]]], Sequence[T | Exception]]

#: What an image that cannot be used raises, in lists the first of these that it is.
UNREADABLE = (ValueError, FileNotFoundError, OSError, TypeError)

# Each thread opens a few images and searches them together: by eights, 60 photos of 200 to 1600
# pixels take 0.52 of the time of one by one on two cores, and by fours or sixteens 0.60. The first
# are fewer, so that there is an answer soon, and work for several threads in a short list.
_THREADS, _FIRST, _TOGETHER = min(8, os.cpu_count() or 1), (1, 2, 4), 8
# A thread searches what it has when it has decoded so many pixels, which bounds the memory. Photos
# of that size gain nothing from being searched together.
_PIXELS = 4 << 20


def search_ahead(
    images: Iterable[Any], open_one: Open, search: Search[T], batch: int | None = None
) -> Generator[list[T | Exception], None, None]:
    """What ``search`` finds in images, a few at a time, in their order, which threads work on while
    the caller is busy with those before.

    Args:
        images: read lazily, in the caller's thread; an error of its own is raised after what was
            found in the images before it.
        open_one: decodes an image.
        search: of some images and what they were decoded to, what is found in each, or why nothing.
        batch: how many the caller needs at once, which are then worked on ahead; None: as few as
            keep the threads busy.

    Yields:
        For each image what was found, or the error by which it cannot be used.
    """
    failed, stop = list[Exception](), Event()

    def given() -> Iterator[Any]:
        try:
            yield from images
        except Exception as error:
            failed.append(error)

    source, started = given(), deque[Future[list[T | Exception]]]()
    size = min(batch or _TOGETHER, _TOGETHER)
    sizes = repeat(size) if batch else chain(_FIRST, repeat(size))
    ahead = 1 - (-batch // size) if batch else _THREADS
    pool = ThreadPoolExecutor(_THREADS)
    try:
        while True:
            while len(started) < ahead and (few := list(islice(source, next(sizes)))):
                left = takewhile(lambda _: not stop.is_set(), few)
                started.append(pool.submit(_search_all, left, open_one, search))
            if not started:
                break
            yield started.popleft().result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
    if failed:
        raise failed.pop()


def _search_all(images: Iterator[Any], open_one: Open, search: Search[T]) -> list[T | Exception]:
    results: list[T | Exception] = []
    while some := _search_some(images, open_one, search):
        results += some
    return results


def _search_some(images: Iterator[Any], open_one: Open, search: Search[T]) -> list[T | Exception]:
    """Of the images that are next, as many as may be decoded at once."""
    opened, pixels = list[tuple[Any, Photo | Exception]](), 0
    for image in images:
        photo = attempt(open_one, image)
        opened.append((image, photo))
        pixels += photo.pixels[0].numel() if isinstance(photo, Photo) else 0
        if pixels >= _PIXELS:
            break
    found = iter(search([(image, one) for image, one in opened if isinstance(one, Photo)]))
    return [next(found) if isinstance(one, Photo) else one for _, one in opened]


def attempt(function: Callable[..., T], *arguments: Any) -> T | Exception:
    """What a function returns, or by what error an image cannot be used: a new one, since the error
    itself keeps alive all that its functions and their callers hold, pictures above all."""
    try:
        return function(*arguments)
    except UNREADABLE as error:
        kind = next(kind for kind in UNREADABLE if isinstance(error, kind))
        return kind(str(error))


def result(found: T | Exception, position: int, errors: Errors) -> T | None:
    """What was found, or in place of an error None, or the error with the image's position."""
    if not isinstance(found, Exception):
        return found
    if errors == "coerce":
        return None
    raise type(found)(f"images[{position}]: {found}")


def is_one(images: Any) -> bool:
    """Whether this is one image and not several (files and strings are iterable too)."""
    files = str, bytes, bytearray, memoryview, os.PathLike
    if isinstance(images, files) or hasattr(images, "read"):
        return True
    if isinstance(images, np.ndarray) and images.dtype.kind in "OUST":  # objects and strings
        return False
    if isinstance(images, (Tensor, np.ndarray)):
        return images.ndim < 4
    return not (hasattr(images, "__iter__") or hasattr(images, "__getitem__"))
