"""Where what is made once is kept between runs."""

import os
from pathlib import Path


def make_cache_folder() -> Path:
    """Return where pre-trained weights and prepared data are kept between runs.

    Returns:
        ``$SAIOPT_CACHE``, or ``saiopt`` in the user's cache folder.
    """
    if "SAIOPT_CACHE" in os.environ:
        return Path(os.environ["SAIOPT_CACHE"])
    user = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
    return Path(user) / "saiopt"
