"""Where psi_fast keeps what it can make again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$PSI_FAST_CACHE, or psi_fast in the user's cache folder."""
    given = os.environ.get("PSI_FAST_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "psi_fast"
