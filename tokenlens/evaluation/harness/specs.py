"""A model's spec in lm-evaluation-harness: where it comes from, and what it cannot do."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tokenlens.spec import DecodingSpec, load_spec, parse_spec


def read(spec: str) -> DecodingSpec:
    """A spec from a preset's name or a file; nothing at all is the empty spec."""
    if not spec:
        return DecodingSpec()
    return load_spec(spec) if Path(spec).suffix in (".yaml", ".yml", ".json") else parse_spec(spec)


class Repeats:
    """How often each prompt was asked for in one call of lm-eval's.

    Its ``repeats`` are equal requests, one after another or in other batches: the n-th of them has
    the noise of an n-th sample, in every run of the same tasks.
    """

    def __init__(self) -> None:
        self._asked: Counter[tuple[int, ...]] = Counter()

    def spec(self, spec: DecodingSpec, ids: Sequence[int]) -> DecodingSpec:
        """The spec of the next request with this prompt."""
        prompt = tuple(ids)
        self._asked[prompt] += 1
        return of_prompt(spec, prompt, self._asked[prompt] - 1)


def of_prompt(spec: DecodingSpec, ids: Sequence[int], repeat: int = 0) -> DecodingSpec:
    """The spec with noise of the prompt's own, whatever batch the prompt is in.

    Parameters
    ----------
    repeat
        How many requests with this prompt came before.
    """
    text = ",".join(map(str, (spec.seed or 0, *ids)))
    text += f";{repeat}" if repeat else ""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    return spec.model_copy(update={"seed": seed})


def refuse_scoring(spec: DecodingSpec) -> None:
    """Tasks that score given texts generate nothing that a method could decide.

    Raises
    ------
    NotImplementedError
        The spec has methods.
    """
    if spec.methods:
        names = ", ".join(config.method for config in spec.methods)
        raise NotImplementedError(
            f"spec: got {names} with a loglikelihood task; allowed: tasks that generate"
            " (output_type: generate_until), or a spec without methods"
        )


def refuse_several(n: int) -> None:
    """Several answers to one request would be generated, and all but one thrown away.

    Raises
    ------
    ValueError
        There is more than one.
    """
    if n != 1:
        raise ValueError(
            f"n: got {n} answers to a request, of which lm-eval reads one; allowed: 1, and a task's"
            " repeats, which are independent samples"
        )
