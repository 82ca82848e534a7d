"""An HTTP service: upload a photo, get the expressions of its faces as JSON.

  pip install ".[examples]"
  uvicorn fastapi_service:app --app-dir docs/examples
  curl -F photo=@docs/images/astronaut.jpg http://127.0.0.1:8000/faces

http://127.0.0.1:8000/docs shows it in the browser. It keeps no photo. What FERFACENET_WEIGHTS
names, if it is set, is loaded in place of the bundled weights.
"""

import os
from typing import Any

import torch
from fastapi import FastAPI, HTTPException, UploadFile

from ferfacenet import detect_faces, load_pretrained, predict_proba

MAX_BYTES = 20 * 2**20

app = FastAPI(title="ferfacenet")
model = load_pretrained(os.environ.get("FERFACENET_WEIGHTS", "fer2013"))


# A plain def, not async: FastAPI then runs each request in a thread, and one photo does not
# hold up the next. The model and the detector may be used from several threads.
@app.post("/faces")
def faces(photo: UploadFile) -> dict[str, Any]:
    """Every face in the photo, the largest first: box (x0, y0, x1, y1) in pixels, the likeliest
    expression, and all probabilities."""
    data = photo.file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise HTTPException(413, f"the photo is larger than {MAX_BYTES >> 20} MiB")
    try:
        found = detect_faces(data)
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
    if not found:
        return {"faces": []}
    answers = []
    rows = predict_proba(model, torch.stack([face.crop for face in found]))
    for face, row in zip(found, rows.tolist(), strict=True):
        chances = dict(zip(model.categories, row, strict=True))
        label = max(chances, key=chances.__getitem__)
        answers.append({"box": face.box, "label": label, "probabilities": chances})
    return {"faces": answers}
