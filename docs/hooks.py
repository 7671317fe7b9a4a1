"""What `make docs` does to a page before it is built."""

import re
from pathlib import PurePosixPath
from posixpath import normpath
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\.?/[^)#\s]+)(#[^)]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that leave the folder of pages become the names of the files that they lead to."""
    folder = PurePosixPath(page.file.src_uri).parent

    def name_it(match: re.Match[str]) -> str:
        text, target = match[1], normpath(str(folder / match[2]))
        if not target.startswith("../"):
            return match[0]
        return f"{text} (`{target.removeprefix('../')}` in the repository)"

    return LINK.sub(name_it, markdown)
