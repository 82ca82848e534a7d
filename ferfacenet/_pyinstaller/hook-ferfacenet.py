"""The weights go into a frozen app, and the modules that are imported by name."""

from PyInstaller.utils.hooks import collect_data_files, collect_submodules

datas = collect_data_files("ferfacenet")
hiddenimports = collect_submodules("ferfacenet")
