"""One face, read by the ONNX file that tools/export_onnx.py writes; torch is not needed.

  pip install numpy pillow onnxruntime
  python onnx_face.py ferfacenet.onnx face.jpg

The picture is a face cropped as FER2013's are, from above the brows to below the chin. Pixels
go in as they are, in [0, 1]; the categories are in the file's metadata.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1])
categories = json.loads(session.get_modelmeta().custom_metadata_map["categories"])
photo = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
face = ImageOps.fit(photo.convert("F"), (48, 48), Image.Resampling.BILINEAR)  # F: unrounded gray
x = np.asarray(face, np.float32)[None, None] / 255
(row,) = session.run(None, {"faces": x})[0]
print(json.dumps(dict(zip(categories, row.tolist(), strict=True))))
