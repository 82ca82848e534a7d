"""Puts bundled weights, or the page to try them on, on the Hugging Face Hub.

  python tools/publish.py fer2013 --dry-run
  python tools/publish.py space --dry-run
  python tools/publish.py space --static --dry-run

creates the repository, uploads the folder of the registered name, or docs/examples/webcam_app.py
with the package, or what docs/examples/browser/build.py writes, in one commit, tags it and prints
the commit to pin; --dry-run shows what it would do and asks nothing of the Hub. It uses the token
of ``hf auth login`` or HF_TOKEN.
"""

from __future__ import annotations

import hashlib
import runpy
import sys
import tempfile
from importlib.metadata import requires
from pathlib import Path
from typing import TypeAlias

import _pages
from _cards import card
from _settings import make_parser
from huggingface_hub import CommitOperationAdd, HfApi, constants

import ferfacenet
from ferfacenet import list_pretrained, load_pretrained
from ferfacenet.hub import repo_id
from ferfacenet.weights import CONFIG_FILE, WEIGHTS_FILE

CARD_FILE = "README.md"

SPACE, STATIC_SPACE = "ferfacenet/ferfacenet", "ferfacenet/browser"
SPACE_CARD = """\
---
title: ferfacenet
emoji: 🙂
sdk: {sdk}
app_file: {file}
license: mit
short_description: The expressions of all faces in a photo or a webcam
---

[ferfacenet](https://github.com/ferfacenet/ferfacenet) on a page of its own.
"""
# A Space without a GPU needs no CUDA, which is 3 GB.
CPU_INDEX = "--extra-index-url https://download.pytorch.org/whl/cpu"


Files: TypeAlias = dict[str, Path | bytes]  # what is sent, by its name there


def weights_files(name: str) -> Files:
    """The folder of the registered ``name``.

    Raises:
        ValueError: the folder is not fit to be published.
        WeightsError: its files are not those that are registered.
    """
    if name not in list_pretrained():
        raise ValueError(f"{name!r} is not registered; bundle it with tools/release.py")
    folder = _pages.ROOT / "ferfacenet" / "weights" / name
    load_pretrained(name)  # checks both files against the registry
    files = sorted(path.name for path in folder.iterdir())
    if files != sorted([CARD_FILE, CONFIG_FILE, WEIGHTS_FILE]):
        raise ValueError(
            f"{folder} holds {', '.join(files)}; it has to hold {CARD_FILE}, {CONFIG_FILE} and "
            f"{WEIGHTS_FILE}, and nothing else"
        )
    if (folder / CARD_FILE).read_text() != card(name):
        raise ValueError(f"{folder / CARD_FILE} is stale; write it with: python tools/release.py")
    return {file: folder / file for file in files}


def space_files() -> Files:
    """The page as a Space that needs nothing but these files and PyPI: the package is in it."""
    package = Path(ferfacenet.__file__).parent
    needs = [line for line in requires("ferfacenet") or [] if "extra ==" not in line]
    return {
        CARD_FILE: SPACE_CARD.format(sdk="gradio", file="app.py").encode(),
        "app.py": _pages.ROOT / "docs" / "examples" / "webcam_app.py",
        "requirements.txt": "\n".join([CPU_INDEX, *needs, "scipy", ""]).encode(),
        **{f"photos/{path.name}": path for path in _pages.ROOT.glob("docs/photos/*.jpg")},
        **{
            path.relative_to(package.parent).as_posix(): path
            for path in sorted(package.rglob("*"))
            if path.is_file() and path.suffix != ".pyc"
        },
    }


def static_files() -> Files:
    """The page that finds and reads faces in the browser, with all that it loads."""
    example = runpy.run_path(str(_pages.ROOT / "docs" / "examples" / "browser" / "build.py"))
    with tempfile.TemporaryDirectory() as folder:
        example["build"]("photos", Path(folder))
        files: Files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    return {CARD_FILE: SPACE_CARD.format(sdk="static", file="index.html").encode(), **files}


def send(repo: str, files: Files, sdk: str | None, tag: str, dry_run: bool) -> None:
    """Put files on the Hub as one commit, of a model or of a Space by that SDK, and tag it; prints
    what is done.

    Raises:
        ValueError: the tag is taken.
    """
    message = f"ferfacenet {ferfacenet.__version__}"
    print(f'{repo} on {constants.ENDPOINT}, commit "{message}", tag {tag}:')
    for name, source in files.items():
        data = source if isinstance(source, bytes) else source.read_bytes()
        print(f"  {name:<20} {len(data):>12,} bytes  sha256 {hashlib.sha256(data).hexdigest()}")
    if dry_run:
        print("dry run: nothing was sent")
        return
    hub, kind = HfApi(), "space" if sdk else "model"
    hub.create_repo(repo, repo_type=kind, space_sdk=sdk, exist_ok=True)
    if any(ref.name == tag for ref in hub.list_repo_refs(repo, repo_type=kind).tags):
        raise ValueError(f"{repo} has a tag {tag} already; name another with --tag")
    adds = [CommitOperationAdd(name, source) for name, source in files.items()]
    commit = hub.create_commit(repo, adds, commit_message=message, repo_type=kind).oid
    hub.create_tag(repo, tag=tag, revision=commit, repo_type=kind)
    print(f"published as {commit}")
    if not sdk:
        print(f'pin it with "revision": "{commit}" in weights/registry.json')


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("name", help='registered name, or "space"')
    parser.add_argument("--tag", default=f"v{ferfacenet.__version__}", help="(%(default)s)")
    parser.add_argument("--static", action="store_true", help="the space that runs in browsers")
    parser.add_argument("--dry-run", action="store_true", help="only show what would be sent")
    options = parser.parse_args(arguments)
    try:
        if options.name != "space":
            repo, files, sdk = repo_id(options.name), weights_files(options.name), None
        elif options.static:
            repo, files, sdk = STATIC_SPACE, static_files(), "static"
        else:
            repo, files, sdk = SPACE, space_files(), "gradio"
        send(repo, files, sdk, options.tag, options.dry_run)
    except (ValueError, RuntimeError, OSError) as error:  # the client's own are of these
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        sys.exit(f"publish.py: {error}{cause}")


if __name__ == "__main__":
    main()
