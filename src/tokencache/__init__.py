"""tokencache: tokenize once, train many."""

__version__ = "0.1.0"
