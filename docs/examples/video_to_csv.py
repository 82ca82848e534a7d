"""A video's faces to a CSV file, a line for each face in each frame, and to an annotated video.

pip install "ferfacenet[faces]"
python video_to_csv.py talk.mp4 --csv talk.csv --video annotated.mp4
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

import cv2
import torch
from tqdm import tqdm

from ferfacenet import Face, detect_faces, load_pretrained, predict_proba
from ferfacenet.transforms import normalise


def annotate(frame: Any, face: Face, text: str) -> None:
    """Draw a face's box and the text above it into an (H, W, 3) BGR frame."""
    x0, y0, x1, y1 = (round(value) for value in face.box)
    cv2.rectangle(frame, (x0, y0), (x1, y1), (0, 200, 0), 2)
    place = (x0, max(y0 - 6, 14))
    cv2.putText(frame, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 200, 0), 2, cv2.LINE_AA)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="video file")
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--video", type=Path, required=True, help="annotated video, .mp4 or .avi")
    parser.add_argument("--weights", default="fer2013")
    options = parser.parse_args()
    model = load_pretrained(options.weights)
    names = model.categories or ()

    video = cv2.VideoCapture(options.source)
    fps = video.get(cv2.CAP_PROP_FPS) or 25.0
    size = tuple(int(video.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    if not video.isOpened() or not all(size):
        sys.exit(f"{options.source}: cannot be read as a video")
    codec = "MJPG" if options.video.suffix == ".avi" else "mp4v"
    fourcc = cv2.VideoWriter.fourcc(*codec)
    annotated = cv2.VideoWriter(str(options.video), fourcc, fps, size)
    if not annotated.isOpened():
        sys.exit(f"{options.video}: cannot be written as a video")

    count = max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))  # some containers do not know it
    with options.csv.open("w", newline="") as file, tqdm(total=count or None, unit="frame") as bar:
        table = csv.writer(file)
        table.writerow(["frame", "seconds", "x0", "y0", "x1", "y1", "label", *names])
        number = 0
        while True:
            more, frame = video.read()
            if not more:
                break
            faces = detect_faces(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            if faces:
                crops = normalise(torch.stack([f.crop for f in faces]), model.mean, model.std)
                for face, row in zip(faces, predict_proba(model, crops, tta="flip"), strict=True):
                    label = names[int(row.argmax())]
                    box = [round(value, 1) for value in face.box]
                    chances = [round(value, 4) for value in row.tolist()]
                    table.writerow([number, round(number / fps, 3), *box, label, *chances])
                    annotate(frame, face, f"{label} {float(row.max()):.0%}")
            annotated.write(frame)
            number += 1
            bar.update()
    annotated.release()


if __name__ == "__main__":
    main()
