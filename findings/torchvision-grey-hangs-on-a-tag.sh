#!/usr/bin/env bash
# Guessed: torchvision's decode_image in mode "GRAY" weighs red, green and blue as Pillow's convert("L")
# does, to within 1 of 255, whatever else a PNG holds.
# Found: so it is for a PNG that is not tagged. With an sRGB or a gAMA chunk, which many programs write
# and which leave the pixels of mode "RGB" alone, grey is computed in linear light: pure red is 147
# where it was 76, pure blue 95 where it was 29; a face's skin moves little, its lips by 14. So pictures
# of one data set that came by two programs are two kinds of grey.
# Source: torchvision calls libpng's png_set_rgb_to_gray, which heeds the gamma that the file names.
# Seen with torchvision 0.29.1 and Pillow 12.3.0.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place"
"$place/bin/pip" install -q torch==2.14.1 torchvision==0.29.1 pillow==12.3.0 numpy==2.3.4
"$place/bin/python" - <<'END' | tee "$place/said"
import io

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torchvision.io import decode_image

tags = {"no tag": {}, "sRGB": {b"sRGB": b"\0"}, "gAMA": {b"gAMA": (45455).to_bytes(4, "big")}}
colours = {"skin": (224, 172, 140), "lips": (150, 50, 60), "red": (255, 0, 0), "blue": (0, 0, 255)}
for name, colour in colours.items():
    picture = Image.new("RGB", (8, 8), colour)
    said = [f"Pillow {picture.convert('L').getpixel((0, 0))}"]
    for tag, chunks in tags.items():
        info, file = PngInfo(), io.BytesIO()
        for kind, data in chunks.items():
            info.add(kind, data)
        picture.save(file, "PNG", pnginfo=info)
        data = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
        assert decode_image(data, "RGB")[:, 0, 0].tolist() == list(colour)
        said.append(f"{tag} {decode_image(data, 'GRAY')[0, 0, 0]}")
    print(f"{name}: {', '.join(said)}")
END
diff "$place/said" - <<'END'
skin: Pillow 184, no tag 183, sRGB 186, gAMA 186
lips: Pillow 81, no tag 81, sRGB 95, gAMA 95
red: Pillow 76, no tag 76, sRGB 147, gAMA 147
blue: Pillow 29, no tag 29, sRGB 95, gAMA 95
END
