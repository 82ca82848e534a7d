"""The page of docs/examples/webcam_app.py as the Space that tools/publish.py makes of it, in a real
Chromium whose camera is a file."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PHOTO, PORTRAITS, encoded, paste
from PIL import Image

pytest.importorskip("gradio", reason="needs the examples extra")
pytest.importorskip("scipy", reason="needs the video extra")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the page, which runs from nothing but the Space's files."""
    import publish

    space = tmp_path_factory.mktemp("space")
    for name, source in publish.space_files().items():
        (space / name).parent.mkdir(parents=True, exist_ok=True)
        (space / name).write_bytes(source if isinstance(source, bytes) else source.read_bytes())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    own = {"GRADIO_SERVER_PORT": port, "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONUNBUFFERED": "1"}
    own |= {"GRADIO_TEMP_DIR": str(space / "cache"), "HF_HUB_OFFLINE": "1"}
    with (space / "log").open("wb") as log, subprocess.Popen(
        [sys.executable, "app.py"], cwd=space, env=os.environ | own, text=True,
        stdout=subprocess.PIPE, stderr=log,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        said = process.stdout.readline()
        assert port in said, (space / "log").read_text()
        yield f"http://127.0.0.1:{port}"
        process.terminate()
    assert "Traceback" not in (space / "log").read_text()


def shown(page: Any) -> np.ndarray[Any, Any]:
    """The picture with boxes on the tab that is open, as RGB."""
    element = page.locator("img[src$=webp]:visible")
    element.wait_for()
    data = page.request.get(element.get_attribute("src")).body()
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_one_photo_after_another(page: Any) -> None:
    """Chosen, pasted and of the examples; the bars are of the face that is clicked."""
    page.set_input_files("input[type=file]", PHOTO)
    page.get_by_role("heading", name="happiness").wait_for()
    with Image.open(PHOTO) as photo:
        difference = np.abs(shown(page) - np.asarray(photo.convert("RGB"))).max(2) > 60
    rows, columns = difference.any(1).nonzero()[0], difference.any(0).nonzero()[0]
    # The box around the face, and the label above it.
    assert 20 < rows[0] < 70 < 170 < rows[-1] < 200
    assert 150 < columns[0] < 190 < 260 < columns[-1] < 330
    paste(page, PORTRAITS)
    page.get_by_role("heading", name="neutral").wait_for()
    assert shown(page).shape == (512, 967, 3)
    picture = page.locator("img[src$=webp]:visible")
    size = picture.bounding_box()
    for x, y, label in ((0.24, 0.24, "happiness"), (0.5, 0.9, "happiness"), (0.77, 0.3, "neutral")):
        picture.click(position={"x": x * size["width"], "y": y * size["height"]})
        page.get_by_role("heading", name=label).wait_for()
    page.locator(".gallery-item").first.click()
    page.get_by_role("heading", name="happiness").wait_for()


def test_what_is_no_picture_gives_a_message(page: Any, tmp_path: Path) -> None:
    broken, wall = tmp_path / "broken.jpg", tmp_path / "wall.png"
    broken.write_bytes(PHOTO.read_bytes()[:2000])
    wall.write_bytes(encoded(Image.new("RGB", (120, 90), (90, 140, 220))))
    for path, said in ((broken, "cannot be used: .*truncated"), (wall, "no face in this photo")):
        page.set_input_files("input[type=file]", path)
        page.locator(".toast-body").filter(has_text=re.compile(said)).wait_for()
    assert "Traceback" not in page.content()


def test_the_webcam(page: Any) -> None:
    page.get_by_role("tab", name="Webcam").click()
    page.get_by_text("Click to Access Webcam").click()
    page.get_by_label("capture photo").click()
    page.get_by_role("heading", name="happiness").wait_for()
    assert shown(page).shape == (480, 640, 3)
