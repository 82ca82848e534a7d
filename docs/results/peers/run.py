"""Other packages on PublicTest: by their best call for a tight crop, and by their own detectors.

  python docs/results/peers/run.py --data fer2013.csv [--node FOLDER]

asks what is installed: fer (pip install --no-deps, with tensorflow and setuptools<81, since it
wants older versions than we do) and, of a node_modules FOLDER, @vladmandic/human and
@vladmandic/face-api, with @tensorflow/tfjs and @tensorflow/tfjs-backend-wasm. Of others peers.json
keeps what it has. Calls without a detector get all crops of 48x48, those with one every twelfth,
four times as large: as it is, and with a gray margin of half its size around. No answer is a wrong
one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2] / "tools"))

from _fer2013 import Faces, load  # noqa: E402
from _settings import make_parser  # noqa: E402
from benchmark import Images, make_fer  # noqa: E402
from evaluate import predict, write_json  # noqa: E402

from ferfacenet import __version__, load_pretrained, predict_faces  # noqa: E402
from ferfacenet.model import FER2013_CATEGORIES  # noqa: E402

#: Pictures (N, S, S) to a name for each, which begins as FER2013's does, or None.
Ask: TypeAlias = Callable[[Images], Iterable[str | None]]
CLASSES = {name[:2]: index for index, name in enumerate(FER2013_CATEGORIES)}


def ours(name: str, *, search: bool) -> Ask:
    model = load_pretrained(name)

    def ask(pictures: Images) -> Iterable[str | None]:
        for faces in predict_faces(model, map(Image.fromarray, pictures), precision="float32"):
            yield faces[0].label if faces else None

    if search:
        return ask
    return lambda crops: [
        FER2013_CATEGORIES[i] for i in predict(model, crops, "flip", name).argmax(1)
    ]


def fer(*, search: bool, **options: Any) -> Ask:
    if not search:
        reader = make_fer(**options)
        return lambda crops: [FER2013_CATEGORIES[np.argmax(scores)] for scores in reader(crops)]
    from fer.fer import FER

    package = FER()
    return lambda pictures: [package.top_emotion(np.stack([p] * 3, 2))[0] for p in pictures]


def node(call: str, folder: Path, *, search: bool) -> Ask:
    def ask(pictures: Images) -> Iterable[str | None]:
        told = [str(HERE / "run.mjs"), str(folder), call, str(search), str(pictures.shape[1])]
        done = subprocess.run(["node", *told], input=pictures.tobytes(), stdout=-1, check=True)
        return list(json.loads(done.stdout))

    return ask


def measure(ask: Ask, public: Faces, pictures: str) -> dict[str, Any]:
    part = public if pictures == "crop" else public.where(np.arange(len(public)) % 12 == 0)
    shown = part.where(part.varied())  # one is black
    images = shown.images
    if pictures != "crop":
        images = np.stack([np.array(Image.fromarray(i).resize((192, 192))) for i in images])
    if pictures == "margin":
        images = np.pad(images, ((0, 0), (96, 96), (96, 96)), constant_values=128)
    answers = np.array([CLASSES[name[:2].lower()] if name else -1 for name in ask(images)])
    right, answered = int((answers == shown.labels).sum()), int((answers >= 0).sum())
    return {"images": len(part), "answered": answered / len(part), "accuracy": right / len(part)}


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, ("data",))
    parser.add_argument(
        "--node", type=Path, default=Path("node_modules"), help="with npm's packages"
    )
    parser.add_argument("--only", help="a package; the others stay as they are")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of peers.json")
    options = parser.parse_args(arguments)

    def find_version(package: str) -> str:
        if package.startswith("@"):
            return str(json.loads((options.node / package / "package.json").read_text())["version"])
        return __version__ if package == "ferfacenet" else version(package)

    public, file = load(options.data).split("PublicTest"), options.out / "peers.json"
    kept = json.loads(file.read_text())["rows"] if file.is_file() else []
    human, face_api = (partial(node, name, options.node) for name in ("human", "face-api"))
    # The package, how it is called, whether that looks for the face, and what makes the call.
    calls: list[tuple[str, str, bool, Callable[..., Ask]]] = [
        ("ferfacenet", "predict_proba, fer2013", False, partial(ours, "fer2013")),
        ("ferfacenet", "predict_proba, fer2013-small", False, partial(ours, "fer2013-small")),
        ("ferfacenet", "predict_faces, fer2013", True, partial(ours, "fer2013")),
        ("ferfacenet", "predict_faces, fer2013-small", True, partial(ours, "fer2013-small")),
        ("fer", "FER(offsets=(0, 0)), box given", False, fer),
        ("fer", "FER(offsets=(0, 0), use_tflite=False)", False, partial(fer, use_tflite=False)),
        ("fer", "FER(), box given", False, partial(fer, offsets=(10, 10))),
        ("fer", "FER().top_emotion", True, fer),
        ("@vladmandic/human", "the network alone", False, human),
        ("@vladmandic/human", "detect", True, human),
        ("@vladmandic/face-api", "predictExpressions", False, face_api),
        ("@vladmandic/face-api", "detectSingleFace", True, face_api),
    ]
    rows = []
    for package, called, search, make in calls:
        for pictures in ("enlarged", "margin") if search else ("crop",):
            key = {"package": package, "called": called, "pictures": pictures}
            found = [row for row in kept if key.items() <= row.items()]
            if options.only in (None, package):
                try:
                    own = key | {"version": find_version(package)}
                    found = [own | measure(make(search=search), public, pictures)]
                except (ImportError, FileNotFoundError) as error:
                    print(f"{package} is not asked: {error}", file=sys.stderr)
            rows += found
    write_json(file, {"split": "PublicTest", "rows": rows})


if __name__ == "__main__":
    main()
