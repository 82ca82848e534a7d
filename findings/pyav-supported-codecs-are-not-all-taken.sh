#!/usr/bin/env bash
# Guessed: a codec that `container.supported_codecs` lists for a container that is open for writing
# can be written into it.
# Found: for MOV it lists Opus and FLAC, and add_stream takes them; the header is refused when the
# encoding starts ("flac only supported in MP4", FFmpeg's log says). MP4 and Matroska take both. What
# a container takes is known only by trying.
# Seen with PyAV 18.1.0, whose wheel has FFmpeg 8.1.2.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place"
"$place/bin/pip" install -q av==18.1.0 numpy==2.3.4
"$place/bin/python" - <<'END' | tee "$place/said"
import io

import av

av.logging.set_level(None)
for form in ("mov", "mp4", "matroska", "webm"):
    for codec in ("aac", "flac", "libopus"):
        with av.open(io.BytesIO(), "w", format=form) as file:
            listed = codec.removeprefix("lib") in file.supported_codecs
            try:
                file.add_stream(codec, rate=48000, layout="stereo")
                file.start_encoding()
                taken = "taken"
            except (av.FFmpegError, ValueError) as error:
                taken = f"refused by {type(error).__name__}"
        print(f"{form} {codec}: {'listed' if listed else 'not listed'}, {taken}")
END
diff "$place/said" - <<'END'
mov aac: listed, taken
mov flac: listed, refused by ArgumentError
mov libopus: listed, refused by ArgumentError
mp4 aac: listed, taken
mp4 flac: listed, taken
mp4 libopus: listed, taken
matroska aac: listed, taken
matroska flac: listed, taken
matroska libopus: listed, taken
webm aac: not listed, refused by ValueError
webm flac: not listed, refused by ValueError
webm libopus: listed, taken
END
