"""Puts bundled weights on the Hugging Face Hub.

  python tools/publish.py fer2013 --dry-run

creates the repository, uploads the folder of the registered name in one commit, tags it and prints
the commit to pin; --dry-run shows what it would do and asks no network. It uses the token of
``hf auth login`` or HF_TOKEN.
"""

from __future__ import annotations

import argparse
import hashlib
import sys

import _pages
from _cards import card
from huggingface_hub import HfApi, constants

import ferfacenet
from ferfacenet import list_pretrained, load_pretrained
from ferfacenet.hub import repo_id
from ferfacenet.weights import CONFIG_FILE, WEIGHTS_FILE

CARD_FILE = "README.md"


def upload(name: str, tag: str, dry_run: bool) -> None:
    """Put the folder of the registered ``name`` on the Hub; prints what is done.

    Raises:
        ValueError: the folder is not fit to be published, or the tag is taken.
        WeightsError: its files are not those that are registered.
    """
    if name not in list_pretrained():
        raise ValueError(f"{name!r} is not registered; bundle it with tools/release.py")
    folder, repo = _pages.ROOT / "ferfacenet" / "weights" / name, repo_id(name)
    load_pretrained(name)  # checks both files against the registry
    files = sorted(path.name for path in folder.iterdir())
    if files != sorted([CARD_FILE, CONFIG_FILE, WEIGHTS_FILE]):
        raise ValueError(
            f"{folder} holds {', '.join(files)}; it has to hold {CARD_FILE}, {CONFIG_FILE} and "
            f"{WEIGHTS_FILE}, and nothing else"
        )
    if (folder / CARD_FILE).read_text() != card(name):
        raise ValueError(f"{folder / CARD_FILE} is stale; write it with: python tools/release.py")
    message = f"ferfacenet {ferfacenet.__version__}"
    print(f'{repo} on {constants.ENDPOINT}, commit "{message}", tag {tag}:')
    for file in files:
        data = (folder / file).read_bytes()
        print(f"  {file:<20} {len(data):>12,} bytes  sha256 {hashlib.sha256(data).hexdigest()}")
    if dry_run:
        print("dry run: nothing was sent")
        return
    hub = HfApi()
    hub.create_repo(repo, exist_ok=True)
    if any(ref.name == tag for ref in hub.list_repo_refs(repo).tags):
        raise ValueError(f"{repo} has a tag {tag} already; name another with --tag")
    commit = hub.upload_folder(
        repo_id=repo, folder_path=folder, allow_patterns=files, commit_message=message
    ).oid
    hub.create_tag(repo, tag=tag, revision=commit)
    print(f'published as {commit}; pin it with "revision": "{commit}" in weights/registry.json')


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="registered name")
    parser.add_argument("--tag", default=f"v{ferfacenet.__version__}", help="(%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="only show what would be sent")
    options = parser.parse_args(arguments)
    try:
        upload(options.name, options.tag, options.dry_run)
    except (ValueError, RuntimeError, OSError) as error:  # the client's own are of these
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        sys.exit(f"publish.py: {error}{cause}")


if __name__ == "__main__":
    main()
