"""Which code made this."""

import subprocess
from pathlib import Path


def current_commit() -> str:
    """Commit of the code that runs, with `-dirty` where files differ; 'unknown' outside a git checkout of its own."""
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # fails where the checkout is somebody else's
        return _git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    return done.stdout.strip()
