"""What values of config.yaml may be: how they are read, and what is refused."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ..base.plain import LARGEST, shown

MOST = 255  # bytes of a name that file systems take


class Section(BaseModel):
    """A section of config.yaml, in which a key that is not known is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def size_in_bytes(value: Any) -> Any:
    """'64 MiB' or '64MB' or a number of bytes as an integer; anything else as it is."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9.]+)\s*([kKMGT]?)(i?)B?\s*", value)
        if match:
            base = 1024 if match[3] else 1000
            size = float(match[1]) * base ** " KMGT".index(match[2].upper() or " ")
            if not size < LARGEST:
                raise ValueError(f"{shown(value)} is more bytes than there are")
            return int(size)
    return value


def _folder(value: Any) -> Any:
    """A folder's name without `~` and `./`, fit for file patterns."""
    if isinstance(value, str):
        if not value or re.search(r"[{}*?\[\]]", value):
            raise ValueError(f"{shown(value)} can't be a folder here; give one without {{}}*?[]")
        value = os.path.normpath(os.path.expanduser(value))
        if not value.isprintable() or any(len(os.fsencode(n)) > MOST for n in value.split("/")):
            raise ValueError(f"{shown(value)} can't be a folder: a name in it is too long or odd")
        if os.path.exists(value) and not os.path.isdir(value):
            raise ValueError(f"{value} is a file, not a folder")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is no number")
    return value


def _section(value: Any) -> Any:
    """true as a section of defaults, false as none."""
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


OneOrMore = BeforeValidator(_listed)
Switch = BeforeValidator(_section)
Folder = Annotated[str, BeforeValidator(_folder)]
Bytes = Annotated[int, BeforeValidator(size_in_bytes), Field(ge=1024, le=2**40)]
Names = Annotated[list[str], OneOrMore, Field(min_length=1)]
Length = Annotated[int, BeforeValidator(_number), Field(ge=1, le=2**24)]
