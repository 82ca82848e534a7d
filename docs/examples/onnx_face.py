"""One face, read by the ONNX file that tools/export_onnx.py writes; torch is not needed.

  pip install numpy pillow onnxruntime
  python onnx_face.py ferfacenet.onnx face.jpg

The picture is a face cropped as FER2013's are, from above the brows to below the chin. All that
the network wants to know is in the file's metadata: categories, mean, std, size, temperature
(already inside) and tta, the views of the face that are averaged inside.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1])
about = session.get_modelmeta().custom_metadata_map
size = (int(about["size"]), int(about["size"]))
photo = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
face = ImageOps.fit(photo.convert("F"), size, Image.Resampling.BILINEAR)  # F: unrounded gray
x = (np.asarray(face) / 255 - float(about["mean"])) / float(about["std"])
(row,) = session.run(None, {"faces": x[None, None].astype(np.float32)})[0]
print(json.dumps(dict(zip(json.loads(about["categories"]), row.tolist(), strict=True))))
