"""``saiopt noise phase``."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Phase:
    """Placeholder.

    Args:
        json: Print JSON only.
    """

    json: bool = False

    def __call__(self) -> None:
        """Nothing."""
