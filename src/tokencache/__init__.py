"""tokencache: tokenize once, train many."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import UserError
    from .loading import load

__version__ = "0.1.0"
__all__ = ["UserError", "load"]


def __getattr__(name: str) -> Any:
    """`load` and `UserError`, imported when they are asked for: jobs need neither of them."""
    if name == "load":
        from .loading import load

        return load
    if name == "UserError":
        from .errors import UserError

        return UserError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
