"""Fields of the filters that the concept weights pass; settings only, without torch."""

from typing import Annotated

from pydantic import Field

from tokenlens.spec.base import BELOW_ONE, MAX_ENTRIES, SMALLEST

TopK = Annotated[int, Field(ge=0, le=MAX_ENTRIES, description="0 = off")]

TopP = Annotated[
    float,
    Field(
        ge=SMALLEST,
        le=1,
        description="nucleus: the most probable tokens that together reach this probability",
    ),
]

MinP = Annotated[
    float, Field(ge=0, le=BELOW_ONE, description="relative to the largest probability")
]

Entries = Annotated[int, Field(ge=1, le=MAX_ENTRIES, description="entries of a concept token")]
