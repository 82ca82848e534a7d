"""The page of docs/examples/browser as a static host serves it, in a real Chromium whose camera is
a file."""

from __future__ import annotations

import functools
import re
import shutil
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import PHOTO, PORTRAITS, ROOT, encoded, paste
from PIL import Image

from ferfacenet import load_pretrained, predict_faces

pytest.importorskip("onnxruntime", reason="needs the onnx extra")
if shutil.which("npm") is None:
    pytest.skip("needs npm: apt install npm", allow_module_level=True)

PAGE = ROOT / "docs" / "examples" / "browser"
MB = 1_000_000


@pytest.fixture(scope="module")
def site(app: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The static Space, which has all that build.py writes."""
    import export_onnx
    import publish

    out, files = tmp_path_factory.mktemp("site"), {p.name: p.read_bytes() for p in app.iterdir()}
    with pytest.MonkeyPatch.context() as patch:  # the same once more, sooner
        patch.setattr(export_onnx, "make_folder", lambda weights: files)
        static = publish.static_files()
    for name, data in static.items():
        (out / name).write_bytes(data)
    return out


class Handler(SimpleHTTPRequestHandler):
    """As python -m http.server, but that it says nothing and keeps what it has sent."""

    sent: ClassVar[list[tuple[str, int]]] = []

    def log_message(self, *_: object) -> None:
        pass

    def send_header(self, keyword: str, value: str) -> None:
        super().send_header(keyword, value)
        if keyword == "Content-Length":
            self.sent.append((self.path, int(value)))


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    handler = functools.partial(Handler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def page(browser: Any, address: str) -> Iterator[Any]:
    """Opened, with its models there; asks for nothing elsewhere, and does nothing that its
    Content-Security-Policy forbids."""
    page, asked, wrong = browser.new_page(), list[str](), list[str]()
    page.set_default_timeout(30_000)
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(address)
    page.get_by_text("The models are loading").wait_for(state="hidden")
    yield page
    assert len(asked) > 10  # those of the worker too
    assert [url for url in asked if not url.removeprefix("blob:").startswith(address)] == []
    assert wrong == []


def said(page: Any, pattern: str) -> str:
    """What the page says, as soon as it is like that."""
    status = page.get_by_role("status").filter(has_text=re.compile(pattern))
    status.wait_for()
    text: str = status.inner_text()
    return text


def shown(page: Any) -> list[dict[str, float]]:
    """Of each face the bars, by their names."""
    faces = page.get_by_role("region", name="Faces").get_by_role("listitem").all()
    rows = [
        [(row.locator("span").first, row.locator("meter")) for row in face.locator("label").all()]
        for face in faces
    ]
    return [
        {name.inner_text(): float(bar.get_attribute("value")) for name, bar in face}
        for face in rows
    ]


def test_a_visit_is_small(page: Any, site: Path) -> None:
    assert sum(dict(Handler.sent).values()) <= 25 * MB  # that of the fixture, by WASM
    assert sum(file.stat().st_size for file in site.iterdir()) <= 60 * MB
    assert len((PAGE / "faces.js").read_text().splitlines()) <= 300


@pytest.mark.parametrize("photo", [PORTRAITS, PHOTO], ids=lambda photo: photo.stem)
def test_a_photo_is_read_as_by_python(page: Any, photo: Path) -> None:
    faces = predict_faces(load_pretrained("photos"), photo)
    page.get_by_label("A photo").set_input_files(photo)
    labels = ", ".join(f"{index} {face.label}" for index, face in enumerate(faces, 1))
    assert said(page, f"^{len(faces)} face").endswith(f": {labels}.")
    for bars, face in zip(shown(page), faces, strict=True):
        assert bars == pytest.approx(face.probabilities, abs=0.02)
    assert page.get_by_role("img", name=f": {labels}.").is_visible()


def test_what_has_no_face_gives_a_message(page: Any, tmp_path: Path) -> None:
    broken, wall = tmp_path / "broken.jpg", tmp_path / "wall.png"
    broken.write_bytes(PHOTO.read_bytes()[:300])
    wall.write_bytes(encoded(Image.new("RGB", (120, 90), (90, 140, 220))))
    for path, message in ((wall, "no face in this photo"), (broken, "cannot be read as an image")):
        page.get_by_label("A photo").set_input_files(path)
        said(page, message)
        assert shown(page) == []


@pytest.mark.parametrize(("event", "photo", "count"), [("paste", PHOTO, 1), ("drop", PORTRAITS, 2)])
def test_a_photo_need_not_be_chosen(page: Any, event: str, photo: Path, count: int) -> None:
    paste(page, photo, event)
    said(page, f"^{count} face")
    assert len(shown(page)) == count


def test_the_webcam(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(address)
    for key in ("Tab", "Tab", "Enter"):
        page.keyboard.press(key)
    page.get_by_text("The models are loading").wait_for(state="hidden")
    ready = time.monotonic()
    page.get_by_role("heading", name="1 happiness").wait_for()
    assert time.monotonic() - ready < 2
    page.get_by_text("pictures a second by WASM").wait_for()
    page.locator("path[d*=L]").first.wait_for(state="attached")  # the course has begun
    assert len(shown(page)) == 1
    page.get_by_role("button", name="Stop the webcam").click()
    page.get_by_role("button", name="Start the webcam").wait_for()
    page.close()


def test_nothing_can_leave_the_origin(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(address)
    page.get_by_text("The models are loading").wait_for(state="hidden")
    (worker,) = page.workers
    other = address.replace("127.0.0.1", "localhost")
    code = "async (url) => fetch(url, { mode: 'no-cors' }).then(() => 'sent', String)"
    for place in (page, worker):
        assert place.evaluate(code, address) == "sent"
        assert "Failed to fetch" in place.evaluate(code, other)
    page.close()
