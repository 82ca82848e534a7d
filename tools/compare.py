"""Compares weights with different classes: on two sets of labels for one test, and on CK+.

  python tools/compare.py --data fer2013.csv --votes fer2013new.csv --ckplus CK+48

asks the bundled weights for FER2013 and FER+, by centre and mirror, and writes
docs/results/compare/compare.json. PrivateTest is measured by FER2013's labels and by FER+'s, CK+
where it shows one of the six expressions that all know. An answer that is no class of the labels is
wrong; of_six leaves all answers but the six out; fear is the share of faces labelled so by FER2013
that are read so. None of the weights was trained on these rows, but in_training of the images occur
in Training too, byte for byte. The page has what robustness.py says of degraded ones beside.
"""

from __future__ import annotations

import _ckplus
import _pages
import numpy as np
from _fer2013 import FERPLUS_CATEGORIES, load, load_votes, relabel
from _settings import make_parser
from evaluate import choose, measured_by, predict, record_command, write_json

from ferfacenet import list_pretrained, load_pretrained
from ferfacenet.model import FER2013_CATEGORIES

SIX = tuple(sorted(set(FER2013_CATEGORIES) - {"neutral"}))


def main(arguments: list[str] | None = None) -> None:
    options = make_parser(__doc__, ("data", "votes", "ckplus")).parse_args(arguments)
    faces = load(options.data)
    private, fresh = choose(faces, "PrivateTest")
    agreed, _ = relabel(private, load_votes(options.votes, private))
    frames = _ckplus.load(options.ckplus)
    labels = np.array(_ckplus.CATEGORIES)[frames.labels]
    posed, wanted = frames.images[np.isin(labels, SIX)], labels[np.isin(labels, SIX)]
    by_fer2013 = np.array(FER2013_CATEGORIES)[private.labels]
    by_ferplus = np.array(FERPLUS_CATEGORIES)[agreed.labels]

    rows = []
    for name in list_pretrained():
        model = load_pretrained(name)
        if model.categories not in (FER2013_CATEGORIES, FERPLUS_CATEGORIES):
            continue
        names, six = np.array(model.categories), np.isin(model.categories, SIX)
        answers = predict(model, private.images, "flip", name).numpy()
        of_private = names[answers.argmax(1)]
        of_agreed = of_private[np.isin(private.rows, agreed.rows)]
        upset = np.isin(of_agreed[by_ferplus == "neutral"], ("anger", "sadness"))
        answers = predict(model, posed, "flip", name).numpy()
        of_posed = names[answers.argmax(1)]
        rows.append({
            "weights": name,
            "fer2013": float((of_private == by_fer2013).mean()),
            "ferplus": float((of_agreed == by_ferplus).mean()),
            "neutral_as_anger_or_sadness": float(upset.mean()),
            "fear": float((of_private[by_fer2013 == "fear"] == "fear").mean()),
            "ckplus": float((of_posed == wanted).mean()),
            "ckplus_as_neutral": float((of_posed == "neutral").mean()),
            "ckplus_of_six": float((names[six][answers[:, six].argmax(1)] == wanted).mean()),
        })  # fmt: skip
    counts = {"fer2013": len(private), "ferplus": len(agreed), "ckplus": len(posed)}
    counts["neutral"] = int((by_ferplus == "neutral").sum())
    counts["in_training"] = int((~fresh).sum())
    result = {"images": counts, "rows": rows} | measured_by()
    result["command"] = record_command("compare.py", arguments)
    write_json(_pages.ROOT / "docs" / "results" / "compare" / "compare.json", result)
    print(_pages.compare())


if __name__ == "__main__":
    main()
