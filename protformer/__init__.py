"""Protein sequence models on the Performer (FAVOR+ linear attention), with exact attention beside it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protformer.model import Performer

__version__ = "0.1.0"
__all__ = ["Performer", "__version__"]


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds; `protformer --help` and the version do not need it.
    if name == "Performer":
        from protformer.model import Performer

        return Performer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
