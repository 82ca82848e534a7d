"""An HTTP service: upload a photo, get the expressions of its faces as JSON.

  pip install ".[examples]"
  uvicorn fastapi_service:app --app-dir docs/examples
  curl -F photo=@docs/photos/astronaut.jpg http://127.0.0.1:8000/faces

http://127.0.0.1:8000/docs shows it in the browser. It keeps no photo. What FERFACENET_WEIGHTS
names, if it is set, is loaded in place of the bundled weights.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI, HTTPException, UploadFile

from ferfacenet import Face, load_pretrained, predict_faces

MAX_BYTES = 20 * 2**20

app = FastAPI(title="ferfacenet")
model = load_pretrained(os.environ.get("FERFACENET_WEIGHTS", "fer2013"))
# So many photos are in work at a time, and others wait: a small file may hold 48 Mi pixels, which
# take about 300 MB. The same few threads, since each keeps some of the memory that it has used.
readers = ThreadPoolExecutor(2)


def read(photo: UploadFile) -> list[Face]:
    data = photo.file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise HTTPException(413, f"the photo is larger than {MAX_BYTES >> 20} MiB")
    try:
        return predict_faces(model, data)
    except ValueError as error:
        raise HTTPException(400, str(error)) from error


# A plain def, not async: FastAPI then runs it in a thread, where waiting holds up nobody. The model
# and the detector may be used from several threads.
@app.post("/faces")
def faces(photo: UploadFile) -> dict[str, Any]:
    """Every face in the photo: box (x0, y0, x1, y1) in pixels, the likeliest expression, and all
    probabilities."""
    return {"faces": [face.to_dict() for face in readers.submit(read, photo).result()]}
