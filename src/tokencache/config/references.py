"""References in config.yaml: to what lies in a file or a folder, or on a hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ..base.plain import shown
from ..errors import UserError

COMMIT = re.compile(r"[0-9a-f]{40}")


class Reference(BaseModel):
    """What `tokenizer:`, `weights:` and `hub:` point to: a path, or a hub id at a commit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | None = None
    hub: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return self.path or f"{self.hub}@{self.revision}"


def reference(text: str, key: str) -> Reference:
    """Read `folder/`, `file` or `owner/name@commit`. A path that exists is a path."""
    name, _, revision = text.partition("@")
    if os.path.exists(text) or text.startswith((".", "/", "~")):
        path = os.path.expanduser(text)
        if path.startswith("~") and not os.path.exists(path):
            raise UserError(f"{key}: {shown(text)}: there is no user of that name; correct it")
        return Reference(path=str(Path(path)))
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise UserError(f"{key}: there is no file or folder {shown(text)}, and it is no hub id")
    if not COMMIT.fullmatch(revision):
        said = f"revision {revision!r} can move" if revision else "a hub id needs a revision"
        raise UserError(
            f"{key}: there is no file or folder {shown(text)}; if it is a hub id: {said}; "
            f"write {name}@COMMIT with the 40 digits of a commit"
        )
    return Reference(hub=name, revision=revision)
