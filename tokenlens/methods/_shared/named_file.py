"""How a spec names a file of the operator's: by the name that it was allowed under. No torch."""

from typing import Annotated

from pydantic import Field

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

FileName = Annotated[
    str,
    Field(
        pattern=NAME,
        max_length=64,
        description="a file of the operator's, by the name it is allowed under (letters, digits,"
        " dots, dashes; never a path)",
    ),
]
