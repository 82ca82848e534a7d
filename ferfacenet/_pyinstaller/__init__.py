"""Where PyInstaller finds the hook by which a frozen app has the weights."""

from pathlib import Path


def get_hook_dirs() -> list[str]:
    return [str(Path(__file__).parent)]
