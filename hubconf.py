"""Entry points for ``torch.hub``; each is imported only when it is called.

>>> import torch
>>> model = torch.hub.load(".", "improved_vgg19", source="local")
>>> predict_faces = torch.hub.load(".", "predict_faces", source="local")
>>> faces = predict_faces(model, "photo.jpg")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from torch import Tensor

    from ferfacenet import ImprovedVGG19

dependencies = ["torch", "torchvision", "numpy", "PIL", "safetensors"]


def improved_vgg19(weights: str = "fer2013", **options: object) -> ImprovedVGG19:
    """The improved VGG19 with trained weights, in eval mode: faces to expressions.

    Args:
        weights: a bundled name (``"fer2013"``), a local folder or ``.safetensors`` file, or
            a Hugging Face Hub id ``"org/repo"``, which needs huggingface_hub.
        options: ``revision``, ``device``, ``cache_dir``, ``local_files_only`` and ``token``,
            as ``ferfacenet.load_pretrained`` takes them.

    Returns:
        A module that takes pixels in [0, 1], (N, 1, 48, 48) as ``preprocess`` makes them (or
        another size, H, W >= 32), and returns logits (N, 7) in the order of its ``categories``;
        ``model(x).softmax(1)`` is calibrated.
    """
    from ferfacenet import load_pretrained

    return load_pretrained(weights, **options)  # type: ignore[arg-type]


def preprocess() -> Callable[..., Tensor]:
    """The function that turns an image of any kind into pixels in [0, 1], (1, 48, 48) float32.

    Returns:
        ``ferfacenet.preprocess``: ``preprocess(image)`` takes a path, bytes, an open file, a
        PIL image, a numpy array or a tensor.
    """
    from ferfacenet import preprocess

    return preprocess


def predict_proba() -> Callable[..., Tensor]:
    """The function that turns images into probabilities.

    Returns:
        ``ferfacenet.predict_proba``: ``predict_proba(model, images)`` returns (N, 7)
        probabilities, each row summing to 1.
    """
    from ferfacenet import predict_proba

    return predict_proba


def predict_faces() -> Callable[..., Any]:
    """The function that reads every face of a photo, or of each of many.

    Returns:
        ``ferfacenet.predict_faces``: ``predict_faces(model, image)`` returns a list of faces with
        ``box``, ``label``, ``confidence`` and ``probabilities``; an empty one if there are none. Of
        an iterable of images, a generator of such lists.
    """
    from ferfacenet import predict_faces

    return predict_faces
