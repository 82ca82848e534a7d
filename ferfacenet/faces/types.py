"""What is known of a face in a picture: plain data."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from torch import Tensor

#: A face has this score.
MIN_SCORE = 0.6


@dataclass(frozen=True)
class Limits:
    """``detect_faces``'s arguments; a ValueError where one is out of range."""

    min_size: float | None = None
    min_score: float = MIN_SCORE
    max_faces: int | None = None

    # The default of ``min_size``: so many pixels, or so much of the root of the picture's area.
    LEAST, SHARE = 19.0, 80

    def __post_init__(self) -> None:
        if self.min_size is not None and not self.min_size >= 1:
            raise ValueError(f"min_size must be at least 1 pixel, got {self.min_size!r}")
        if not 0 < self.min_score <= 1:
            raise ValueError(f"min_score must be above 0 and at most 1, got {self.min_score!r}")
        most = self.max_faces
        if most is not None and (not isinstance(most, int) or most < 1):
            raise ValueError(f"max_faces must be an integer of at least 1, got {most!r}")

    def smallest(self, height: int, width: int, scale: float) -> float:
        """The longer side of the smallest box in a picture of so many pixels, in these, each of
        which is ``scale`` of the photo's own wide."""
        if self.min_size is not None:
            return self.min_size / scale
        return max(self.LEAST / scale, math.sqrt(height * width) / self.SHARE)


@dataclass(frozen=True, eq=False, repr=False)
class DetectedFace:
    """One face of a photo, not read; all coordinates in pixels of the EXIF-turned picture.

    Attributes:
        box: (x0, y0, x1, y1), within the picture.
        landmarks: (5, 2) float32, x and y of the eye, the eye, the nose and the two mouth
            corners, of each pair the one at the left of the upright face first.
        score: the detector's confidence, in [0, 1].
        crop: (1, 48, 48) float32 gray in [0, 1]: the face levelled and framed as FER2013's
            are, which is what the network takes.
    """

    box: tuple[float, float, float, float]
    landmarks: Tensor
    score: float
    crop: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts of them, as ``ferfacenet --json`` prints them: without
        landmarks and crop, probabilities with the likeliest first."""
        score = None if math.isnan(self.score) else round(self.score, 4)
        return {"box": [round(end, 1) for end in self.box], "score": score}

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}={value}" for name, value in self._shown().items())
        return f"{type(self).__name__}({parts})"

    def _shown(self) -> dict[str, object]:
        return {"box": tuple(map(round, self.box)), "score": f"{self.score:.2f}"}

    def _repr_html_(self) -> str:
        """The crop, as a notebook shows it at a cell's end."""
        import PIL.Image

        data = io.BytesIO()
        PIL.Image.fromarray((self.crop[0] * 255).round().byte().numpy()).save(data, "PNG")
        source = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
        return f'<img width="96" src="{source}" alt="{escape(repr(self))}">'


@dataclass(frozen=True, eq=False, repr=False)
class Face(DetectedFace):
    """One face of a photo, read.

    Attributes:
        box, landmarks, score, crop: as ``DetectedFace`` has them.
        label: the likeliest expression.
        confidence: its probability, in [0, 1].
        probabilities: of each expression by its name, summing to 1.
    """

    label: str
    confidence: float
    probabilities: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        read = {"label": self.label, "confidence": round(self.confidence, 6)}
        return super().to_dict() | read | {"probabilities": ranked(self.probabilities)}

    def _shown(self) -> dict[str, object]:
        read = {"label": repr(self.label), "confidence": f"{self.confidence:.2f}"}
        return super()._shown() | read

    def _repr_html_(self) -> str:
        """The crop, and the probabilities as bars."""
        rows = (
            f"<tr><td>{escape(name)}<td><meter value={chance}></meter><td>{chance:.2f}"
            for name, chance in self.probabilities.items()
        )
        return f"{super()._repr_html_()}<table>{''.join(rows)}</table>"


@dataclass(frozen=True, eq=False, repr=False)
class TrackedFace(Face):
    """One face of a video's frame.

    Attributes:
        track: the person's number, from 1, the same in all frames.
        raw: the probabilities of this frame alone; ``label``, ``confidence`` and
            ``probabilities`` are smoothed.
    """

    track: int
    raw: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return {"track": self.track} | super().to_dict() | {"raw": ranked(self.raw)}

    def _shown(self) -> dict[str, object]:
        return {"track": self.track} | super()._shown()


def ranked(chances: Mapping[str, float]) -> dict[str, float]:
    """Probabilities to six digits, the likeliest first."""
    return {name: round(chances[name], 6) for name in sorted(chances, key=lambda n: -chances[n])}
