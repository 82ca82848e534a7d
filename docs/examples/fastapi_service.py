"""An HTTP service: upload a photo, get the expressions of its faces as JSON.

  pip install ".[examples]"
  uvicorn fastapi_service:app --app-dir docs/examples
  curl -F photo=@docs/images/astronaut.jpg http://127.0.0.1:8000/faces

http://127.0.0.1:8000/docs shows it in the browser. It keeps no photo. What FERFACENET_WEIGHTS
names, if it is set, is loaded in place of the bundled weights.
"""

import os
from typing import Any

from fastapi import FastAPI, HTTPException, UploadFile

from ferfacenet import load_pretrained, predict_faces

MAX_BYTES = 20 * 2**20

app = FastAPI(title="ferfacenet")
model = load_pretrained(os.environ.get("FERFACENET_WEIGHTS", "fer2013"))


# A plain def, not async: FastAPI then runs each request in a thread, and one photo does not
# hold up the next. The model and the detector may be used from several threads.
@app.post("/faces")
def faces(photo: UploadFile) -> dict[str, Any]:
    """Every face in the photo: box (x0, y0, x1, y1) in pixels, the likeliest expression, and all
    probabilities."""
    data = photo.file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise HTTPException(413, f"the photo is larger than {MAX_BYTES >> 20} MiB")
    try:
        found = predict_faces(model, data)
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
    names = ("box", "score", "label", "confidence", "probabilities")
    return {"faces": [{name: getattr(face, name) for name in names} for face in found]}
