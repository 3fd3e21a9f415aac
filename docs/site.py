"""For the site: what pages say of files beside docs/ stays text, as the site has none of them."""

import re

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]+\)")


def on_page_markdown(markdown: str, **_: object) -> str:
    return OUTSIDE.sub(r"`\1`", markdown)
