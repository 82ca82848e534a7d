"""A video's faces to a CSV file, a line for each face in each frame, and to an annotated video.

pip install ".[examples]"
python video_to_csv.py talk.mp4 --csv talk.csv --video annotated.mp4
"""

import argparse
import csv
import sys
from pathlib import Path

import cv2
from tqdm import tqdm

from ferfacenet import load_pretrained, predict_faces

GREEN = (0, 200, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="video file")
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--video", type=Path, required=True, help="annotated video, .mp4 or .avi")
    parser.add_argument("--weights", default="fer2013")
    options = parser.parse_args()
    model = load_pretrained(options.weights)

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
        table.writerow(["frame", "seconds", "x0", "y0", "x1", "y1", "label", *model.categories])
        while (read := video.read())[0]:
            frame = read[1]
            for face in predict_faces(model, frame[..., ::-1]):  # OpenCV's pictures are BGR
                box = [round(x) for x in face.box]
                chances = [round(value, 4) for value in face.probabilities.values()]
                table.writerow([bar.n, round(bar.n / fps, 3), *box, face.label, *chances])
                cv2.rectangle(frame, box[:2], box[2:], GREEN, 2)
                place, text = (box[0], max(box[1] - 6, 14)), f"{face.label} {face.confidence:.0%}"
                cv2.putText(frame, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, GREEN, 2)
            annotated.write(frame)
            bar.update()
    annotated.release()


if __name__ == "__main__":
    main()
