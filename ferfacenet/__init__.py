"""Facial expression recognition: seven probabilities for a face, offline.

>>> import ferfacenet
>>> model = ferfacenet.load_pretrained()
>>> ferfacenet.predict_proba(model, "photo.jpg")  # doctest: +SKIP
"""

from ferfacenet.faces import Face, detect_faces
from ferfacenet.hub import list_pretrained, load_pretrained
from ferfacenet.inference import predict_proba, preprocess
from ferfacenet.model import ImprovedVGG19
from ferfacenet.weights import WeightsError, save_pretrained

__version__ = "0.1.0"

__all__ = [
    "Face",
    "ImprovedVGG19",
    "WeightsError",
    "detect_faces",
    "list_pretrained",
    "load_pretrained",
    "predict_proba",
    "preprocess",
    "save_pretrained",
]
