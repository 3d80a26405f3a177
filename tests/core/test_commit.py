"""Which commit made a run: that of the code, not of whatever repository lies around it."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from scaleearth_pl.core import commit


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    return subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("tracked", [False, True])
def test_the_repository_around_an_installed_package_is_not_its_own(tmp_path: Path, tracked: bool) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text("" if tracked else "installed\n")
    (tmp_path / "installed").mkdir()
    copy = Path(shutil.copy(commit.__file__, tmp_path / "installed" / "commit.py"))
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "somebody's work")
    spec = importlib.util.spec_from_file_location("installed_commit", copy)
    assert spec is not None and spec.loader is not None
    installed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(installed)
    expected = git(tmp_path, "rev-parse", "--short=12", "HEAD") if tracked else "unknown"
    assert installed.current_commit() == expected
