"""The packages, found in the tree; everything else about the distribution is in pyproject.toml."""

from setuptools import find_packages, setup

FOLDERS = ("engine", "kernels", "producer", "worker")

setup(
    packages=[
        f"tokenbus.{name}"
        for folder in FOLDERS
        for name in (folder, *(f"{folder}.{part}" for part in find_packages(folder)))
    ]
)
