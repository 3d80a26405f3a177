"""Which code made this."""

import subprocess
from pathlib import Path


def current_commit() -> str:
    """Commit of the code that runs, with `-dirty` where files differ; 'unknown' outside a git checkout."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
