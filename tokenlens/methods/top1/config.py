"""Control: what a method gains over this one, it gains by mixing."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from tokenlens.spec.base import MethodBase, Recipe, Requires


class Top1(MethodBase):
    """Replace every mixture by its top entry: the same visible tokens, nothing latent."""

    requires: ClassVar[tuple[Requires, ...]] = (
        Requires("latent", "it replaces a mixture by its top entry"),
    )
    recipes: ClassVar[Mapping[str, Recipe]] = {
        "top1": Recipe(
            "control: every mixture replaced by its top entry",
            ({"method": "soft_thinking"}, {"method": "top1"}),
        )
    }

    method: Literal["top1"] = "top1"


CONFIG = Top1
