"""A page in the browser: a photo or the webcam, with a box around each face.

  pip install ".[examples]"
  python docs/examples/webcam_app.py

Then open http://127.0.0.1:7860. python tools/publish.py space makes a Hugging Face Space of it.
Photos stay on the machine that runs it, for ten minutes.
"""

import time
from functools import cache
from pathlib import Path

import gradio as gr

from ferfacenet import FaceTracker, draw_faces, list_pretrained, load_pretrained, predict_faces

load = cache(load_pretrained)

HERE = Path(__file__).parent
# A Space has the photos beside this file.
PHOTOS = sorted([*HERE.glob("../photos/*.jpg"), *HERE.glob("photos/*.jpg")])
PASTE = """() => document.addEventListener("paste", ({ clipboardData: { files } }) => {
  const input = document.querySelector("input[type=file]");
  if (!input || !files.length) return;
  input.files = files;
  input.dispatchEvent(new Event("change"));
})"""


def read_largest(faces):
    """The probabilities of the largest face; None if there is none."""
    largest = max(faces, key=lambda face: face.box[3] - face.box[1], default=None)
    return largest and largest.probabilities


def read_photo(file, weights):
    if file is None:
        return None, None, []
    try:
        data = Path(file).read_bytes()
        faces = predict_faces(load(weights), data)
    except (ValueError, OSError) as error:
        raise gr.Error(f"This file cannot be used: {error}", print_exception=False) from None
    if not faces:
        gr.Info("There is no face in this photo.")
    return draw_faces(data, faces), read_largest(faces), faces


def read_clicked(faces, click: gr.SelectData):
    x, y = click.index
    found = [f for f in faces if f.box[0] <= x <= f.box[2] and f.box[1] <= y <= f.box[3]]
    return read_largest(found) or gr.skip()


def read_frame(picture, tracker, weights):
    """Each visitor has a tracker."""
    if picture is None:
        return None, None, tracker
    tracker = tracker or FaceTracker(load(weights))
    faces = tracker.update(picture, time.monotonic())
    return draw_faces(picture, faces), read_largest(faces), tracker


NAMES = [name for name, info in list_pretrained().items() if info.bundled]

with gr.Blocks(title="ferfacenet", analytics_enabled=False, delete_cache=(60, 600)) as page:
    gr.Markdown("# ferfacenet\nReads expressions, not feelings. Photos are deleted in ten minutes.")
    names = gr.Dropdown(NAMES, value="fer2013", label="Weights")
    with gr.Tab("Photo"), gr.Row():
        with gr.Column():
            photo = gr.File(label="Choose, drop or paste a photo", file_types=["image"])
            examples = gr.Dataset(
                components=["image"], samples=[[str(path)] for path in PHOTOS], label="Examples"
            )
        drawn = gr.Image(show_label=False, interactive=False, scale=2)
        chances = gr.Label(label="The largest face, or the one that you click")
    with gr.Tab("Webcam"), gr.Row():
        camera = gr.Image(label="You", sources=["webcam"], streaming=True)
        seen = gr.Image(show_label=False, interactive=False, scale=2)
        now = gr.Label(label="The largest face")
    file, faces, tracker = gr.State(), gr.State([]), gr.State()
    # The box for photos is empty again at once, and so takes the next.
    photo.upload(lambda file: (file, None), photo, [file, photo])
    examples.click(lambda row: row[0], examples, file)
    gr.on([file.change, names.change], read_photo, [file, names], [drawn, chances, faces])
    drawn.select(read_clicked, faces, chances)
    page.load(None, js=PASTE)
    names.change(lambda: None, None, tracker)
    camera.stream(
        read_frame,
        [camera, tracker, names],
        [seen, now, tracker],
        stream_every=0.2,
        show_progress="hidden",
    )

if __name__ == "__main__":
    page.launch(max_file_size="20mb", run_history=False)
