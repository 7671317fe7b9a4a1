"""One trace's forward passes: everything that was fed once more, and what the core makes of it.

Knows no verdict: :mod:`tokenlens.hf.verify` compares what comes out with what was recorded.
"""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

from tokenlens.core import Core, bind
from tokenlens.core.recorder import Recorder
from tokenlens.core.request import possible_ends
from tokenlens.errors import ProtocolError, UnsupportedError
from tokenlens.hf.embedding import HookedEmbedding
from tokenlens.hf.given import ids_of
from tokenlens.hf.ways_in import resting
from tokenlens.methods.door import active
from tokenlens.spec.texts import holes, vocabulary_size
from tokenlens.trace import Trace, TraceStep

LOGIT_BYTES = 1 << 28
"""Logits that are held at a time; more steps than that take several passes."""

Entries = Sequence[tuple[int, float]]
"""Ids and weights of one concept token."""

PLACEHOLDER = re.compile(r"(image|video|audio|vision)_.*(token_id|token_index)$")
"""Fields of a configuration with the tokens in whose place a forward pass puts what is seen."""


class Replay:
    """Forward passes over one trace, and what the core makes of their logits."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        trace: Trace,
        prompt: Sequence[int],
        inputs: Mapping[str, Any] | None,
        processors: Sequence[LogitsProcessor],
    ) -> None:
        self._model, self._trace, self._prompt = model, trace, list(prompt)
        self._inputs = dict(inputs or {})
        self._edits: list[Any] = list(processors)
        config = model.config.get_text_config()
        width = int(config.vocab_size)
        self._tokens = [step.token for step in trace.steps]
        fed = (token for step in trace.steps for token, _ in step.entries)
        wrong = [one for one in (*prompt, *self._tokens, *fed) if not 0 <= one < width]
        if wrong:
            raise UnsupportedError(
                f"trace: got token {wrong[0]}; allowed: 0 to {width - 1} with this model. Give the"
                " model that the trace was recorded with"
            )
        self._vocab_size = vocabulary_size(tokenizer, width)
        self._holes = holes(tokenizer, self._vocab_size)
        ends = [
            getattr(one, "eos_token_id", None)
            for one in (getattr(model, "generation_config", None), config)
        ]
        turns = possible_ends([i for found in ends for i in ids_of(found)], self._vocab_size)
        # What the trace goes on behind did not end its text.
        eos = [token for token in turns if token not in self._tokens[:-1]]
        self._request = bind(
            trace.spec,
            methods=active(),
            tokenizer=tokenizer,
            vocab_size=self._vocab_size,
            eos_ids=eos,
            turn_ends=turns,
        ).sample(trace.sample)
        self._embedding = HookedEmbedding.of(model)
        self._embedding.probe()
        self._seen = self._placeholders(config) if inputs else frozenset()

    @torch.no_grad()
    def run(self, mixed: Mapping[int, Entries]) -> list[TraceStep]:
        """What the core records if these positions are fed mixtures, and all others tokens."""
        core: Core | None = None
        ids = torch.tensor([[*self._prompt, *self._tokens]], device=self._device)
        for place, logits in enumerate(self._logits(*self._fed(ids[:, :-1], mixed))):
            scores = logits[None].float()
            for edit in self._edits:
                scores = edit(ids[:, : len(self._prompt) + place], scores)
            if core is None:
                core = Core(
                    methods=active(),
                    max_slots=1,
                    vocab_size=self._vocab_size,
                    holes=self._holes,
                    device=scores.device,
                    engine="a replay",
                )
                core.add(0, self._request, self._prompt, len(self._prompt))
                slots = torch.zeros(1, dtype=torch.int64, device=scores.device)
                going = torch.ones(1, dtype=torch.bool, device=scores.device)
                recorder = Recorder(core, [self._request], "replay")
            core.step(scores, slots)
            token = ids[0, len(self._prompt) + place].to(scores.device)
            recorder.append(core.commit(token[None], slots, going))
        found = recorder.traces()[0]
        assert found is not None
        return list(found.steps)

    def _placeholders(self, text_config: Any) -> frozenset[int]:
        configs = (self._model.config, text_config)
        found = {
            value
            for config in configs
            for name, value in config.to_dict().items()
            if isinstance(value, int) and PLACEHOLDER.match(name)
        }
        return frozenset(found)

    def _fed(
        self, ids: Tensor, mixed: Mapping[int, Entries]
    ) -> tuple[Tensor, Mapping[int, Entries]]:
        """The same, with another token where one was written that stands for an image in a prompt.

        In a decoding step it is a token like others. In a pass over all of them it would be taken
        for a place of an image: it is fed as a mixture of one.
        """
        first = len(self._prompt)
        written = {
            place: token
            for place, token in enumerate(self._tokens[:-1], first)
            if token in self._seen
        }
        if not written:
            return ids, mixed
        other = next(token for token in range(self._vocab_size) if token not in self._seen)
        ids = ids.clone()
        ids[:, list(written)] = other
        alone = {place: ((token, 1.0),) for place, token in written.items()}
        return ids, {**alone, **mixed}

    @property
    def _device(self) -> torch.device:
        weight = getattr(self._embedding.module, "weight", None)
        if isinstance(weight, Tensor) and not weight.is_meta:
            return weight.device
        found: torch.device = self._model.device
        return found

    def _logits(self, ids: Tensor, mixed: Mapping[int, Entries]) -> Iterator[Tensor]:
        """``[vocab]`` logits behind the prompt's last token and behind each that follows."""
        first, last = len(self._prompt) - 1, ids.shape[1]
        width = int(self._model.config.get_text_config().vocab_size)
        keeps = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        size = max(1, LOGIT_BYTES // (4 * width)) if keeps else last
        for start in range(first, last, size):
            keep = torch.arange(start, min(start + size, last), device=ids.device)
            kept = {"logits_to_keep": keep} if keeps else {}
            with resting(self._model), self._feeding(mixed, last):
                out = self._model(input_ids=ids, use_cache=False, **self._inputs, **kept).logits[0]
            yield from out if keeps else out[first:]

    @contextmanager
    def _feeding(self, mixed: Mapping[int, Entries], length: int) -> Iterator[None]:
        """Put mixtures into the next look-up of all tokens, in every table that they reach."""
        tables = [self._embedding, *self._embedding.beside]
        rows = {one.module: self._mixtures(mixed, one) for one in tables}
        fed = set()

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            # Other calls ask for a placeholder's row.
            whole = isinstance(output, Tensor) and output.shape[:2] == (1, length)
            if module in fed or not whole:
                return None
            fed.add(module)
            mixtures = rows[module]
            if mixtures is None:
                return None
            place = torch.tensor(list(mixed), device=output.device)
            return output.index_copy(1, place, mixtures.to(output.device, output.dtype)[None])

        handles = [one.module.register_forward_hook(hook) for one in tables]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        if self._embedding.module not in fed:
            raise ProtocolError(
                "the forward pass did not look its tokens up in the model's input embedding, so"
                " that nothing could be fed to it. Give the model as transformers loads it."
            )

    def _mixtures(self, mixed: Mapping[int, Entries], table: HookedEmbedding) -> Tensor | None:
        """``[mixtures, hidden]``."""
        if not mixed:
            return None
        width = max(map(len, mixed.values()))
        ids = torch.zeros(len(mixed), width, dtype=torch.int64, device=self._device)
        weights = torch.zeros(len(mixed), width, device=self._device)
        for row, entries in enumerate(mixed.values()):
            ids[row] = entries[0][0]
            ids[row, : len(entries)] = torch.tensor([token for token, _ in entries])
            weights[row, : len(entries)] = torch.tensor([weight for _, weight in entries])
        # As `core.next_input` writes them.
        return table.mix(ids, weights / weights.sum(dim=1, keepdim=True))
