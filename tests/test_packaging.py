"""What setup.py installs is what the repository has: no folder of code is left out of the package."""

import pathlib

from setuptools import find_packages

ROOT = pathlib.Path(__file__).parent.parent


def test_every_folder_of_code_is_a_package():
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "lmjax").rglob("*.py")}
    assert folders == set(find_packages(str(ROOT), include=["lmjax", "lmjax.*"]))
