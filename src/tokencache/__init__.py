"""tokencache: tokenize once, train many."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .base.version import __version__

if TYPE_CHECKING:
    from .caches.view import open_cache
    from .errors import UserError
    from .training.collate import Collator
    from .workflow.load import load

__all__ = ["Collator", "UserError", "__version__", "load", "open_cache"]

# Imported when they are asked for: jobs need none of them.
_HOMES = {
    "Collator": ".training.collate",
    "UserError": ".errors",
    "load": ".workflow.load",
    "open_cache": ".caches.view",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
