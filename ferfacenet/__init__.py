"""Facial expression recognition: every face of a photo, read offline.

>>> import ferfacenet
>>> model = ferfacenet.load_pretrained()
>>> for face in ferfacenet.predict_faces(model, "photo.jpg"):  # doctest: +SKIP
...     print(face.box, face.label, face.confidence)

Photos: ``predict_faces``, ``detect_faces``, ``plot_faces``, ``draw_faces``.
Videos and cameras: ``predict_video``, ``FaceTracker``.
One face in each picture: ``predict_proba``, ``preprocess``.
Weights: ``load_pretrained``, ``list_pretrained``, ``save_pretrained``.
The network: ``ImprovedVGG19``.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ferfacenet.faces import detect_faces
    from ferfacenet.faces.types import DetectedFace, Face, TrackedFace
    from ferfacenet.hub import list_pretrained, load_pretrained
    from ferfacenet.inference import predict_proba, preprocess
    from ferfacenet.model import ImprovedVGG19
    from ferfacenet.photos import predict_faces
    from ferfacenet.plots import draw_faces, plot_faces
    from ferfacenet.video.tracker import FaceTracker, VideoFrame, predict_video
    from ferfacenet.weights import WeightsError, save_pretrained

__version__ = "0.1.0"

__all__ = [
    "DetectedFace", "Face", "FaceTracker", "ImprovedVGG19", "TrackedFace", "VideoFrame",
    "WeightsError", "detect_faces", "draw_faces", "list_pretrained", "load_pretrained",
    "plot_faces", "predict_faces", "predict_proba", "predict_video", "preprocess",
    "save_pretrained",
]  # fmt: skip

_HOMES = {
    "faces": ("detect_faces",),
    "faces.types": ("DetectedFace", "Face", "TrackedFace"),
    "hub": ("list_pretrained", "load_pretrained"),
    "inference": ("predict_proba", "preprocess"),
    "model": ("ImprovedVGG19",),
    "photos": ("predict_faces",),
    "plots": ("draw_faces", "plot_faces"),
    "video.tracker": ("FaceTracker", "VideoFrame", "predict_video"),
    "weights": ("WeightsError", "save_pretrained"),
}


def __getattr__(name: str) -> object:
    """The public names, each imported when it is first used: torch takes seconds, which the
    command line's ``--help`` need not wait for."""
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"ferfacenet.{home}"), name)
            return value
    raise AttributeError(f"module 'ferfacenet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
