"""What learned rows in a prompt can be asked for (SoftCoT++, arXiv 2505.11484)."""

from typing import ClassVar, Literal

from pydantic import Field

from tokenlens.methods._shared.gate.fields import Token
from tokenlens.methods._shared.named_file import FileName
from tokenlens.spec.base import MethodBase, Needs
from tokenlens.spec.needs import Need


class SoftCotPP(MethodBase):
    """Places of the prompt are fed learned rows of a file in place of their tokens.

    SoftCoT++ has several sets of rows for one prompt, and votes; ConciseHint-T (arXiv 2506.18810)
    has one, in its hint.
    """

    family: ClassVar[tuple[str, ...]] = ("prompt_rows",)

    method: Literal["softcotpp"] = "softcotpp"
    file: FileName = "softcotpp"
    placeholder: Token = Field(
        "<|placeholder|>",
        description="token of the prompt that rows stand for, as often as the file has rows",
    )
    variant: int = Field(0, ge=0, le=1023, description="which set of rows, where there are several")

    def needs(self) -> Needs:
        return {Need.PROMPT_ROWS: ("method", self.method, "a prompt in words")}


CONFIG = SoftCotPP
