"""Where what is made once is kept between runs."""

import os
from pathlib import Path


def make_cache_folder() -> Path:
    """Make the folder in which pre-trained weights and prepared data are kept.

    Returns:
        ``$SAIOPT_CACHE``, or ``saiopt`` in the user's cache folder.
    """
    user = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
    folder = Path(os.environ.get("SAIOPT_CACHE", Path(user) / "saiopt"))
    # The optimizer keeps its kernel there too, and trusts no folder that others write.
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
