"""Facial expression recognition: seven probabilities for a face, offline.

>>> import ferfacenet
>>> model = ferfacenet.load_pretrained()
>>> ferfacenet.predict_proba(model, "photo.jpg")  # doctest: +SKIP
"""

from ferfacenet.faces import Face, detect_faces
from ferfacenet.hub import WeightsError, list_pretrained, load_pretrained, save_pretrained
from ferfacenet.inference import predict_proba
from ferfacenet.model import ImprovedVGG19
from ferfacenet.transforms import preprocess

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
