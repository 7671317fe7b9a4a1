"""tokenlens beside one model runner: core, history of concept tokens, embedding, request table.

An engine's adapter describes its runner as a :class:`RunnerFacts` once the model is loaded, and
calls :class:`EngineRuntime` from the functions of the engine that it wraps. Knows no engine.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenlens.core import Core, Request
from tokenlens.core.layer_access import ModelShape
from tokenlens.errors import EmbeddingError, UnsupportedError
from tokenlens.methods.door import active
from tokenlens.serving.batch import REWIND_STEPS, Batch
from tokenlens.serving.binding import Binder
from tokenlens.serving.drafts import DraftedBatch, rewind_steps
from tokenlens.serving.embedding import (
    EmbeddingLayout,
    InputEmbedding,
    find_input_embedding,
    per_layer_embeddings,
)
from tokenlens.serving.engine_vectors import HeadWatch, ServedVectors
from tokenlens.serving.layer_files import check_files, reads_layers, seated_layers
from tokenlens.serving.layer_shifts import Completed, LayerShifts, as_returned, decoder_layers
from tokenlens.serving.layer_tap import LayerTap
from tokenlens.serving.refusals import (
    allows_latent,
    allows_prompt_states,
    allows_vectors,
    vectors_of,
)
from tokenlens.serving.report import PendingReport, report_of
from tokenlens.serving.served_layers import ServedLayers
from tokenlens.serving.settings import Settings
from tokenlens.serving.store import ConceptStore
from tokenlens.serving.vectors import VectorStore
from tokenlens.serving.warming import warm
from tokenlens.spec.needs import Need

SPARE_SLOTS = 8
"""Slots beside the running requests: a preempted one keeps its slot while there are some."""


@dataclass(frozen=True)
class RunnerFacts:
    """What the runtime has to know of an engine's model runner.

    Attributes
    ----------
    engine
        Name of the engine, for refusals.
    binder
        Resolves the specs of requests for this model.
    layout
        How the engine embeds tokens; asked for only where a latent method is allowed.
    max_requests
        Requests that run at once.
    max_request_tokens
        The longest request, in tokens.
    max_pass_tokens
        The most tokens of one forward pass.
    shape, dtype
        The model's, for files of vectors; without a shape its layers have no seats.
    completed
        How the engine's decoder layers leave their output.
    check_layers
        Refuses those that are to have seats, where it is not known what they leave.
    leaves_sums
        Whether it is known of a model that what a layer leaves is the sum of both that it returns.
    drafts
        The most drafts of a request in one step; 0 where the engine does not speculate. A latent
        request has none; none is fed more than concept tokens beside them, and none needs layers.
    """

    engine: str
    settings: Settings
    binder: Binder
    model: nn.Module
    layout: EmbeddingLayout
    device: torch.device
    max_requests: int
    max_request_tokens: int
    max_pass_tokens: int
    logger: logging.Logger
    shape: ModelShape | None = None
    dtype: torch.dtype = torch.float32
    completed: Completed = as_returned
    check_layers: Callable[[Sequence[nn.Module]], None] = lambda layers: None
    leaves_sums: Callable[[nn.Module], bool] = lambda model: False
    drafts: int = 0


class EngineRuntime:
    """Everything that tokenlens keeps for one model runner, for as long as the runner lives.

    Attributes
    ----------
    batch
        The requests with a spec: slots, rows, entries.
    """

    def __init__(self, facts: RunnerFacts) -> None:
        settings, binder = facts.settings, facts.binder
        self.settings, self.bind = settings, binder
        slots = facts.max_requests + SPARE_SLOTS
        latent = allows_latent(settings)
        # Beside drafts no request needs vectors or layers: the front end refuses it.
        lends_vectors = allows_vectors(settings) and not facts.drafts
        probes = allows_prompt_states(settings) and not facts.drafts
        seats = facts.shape is not None and not facts.drafts
        shape = facts.shape if seats and seated_layers(settings) else None
        reads = seats and reads_layers(settings)
        has_history = latent or shape is not None
        store = ConceptStore(
            slots,
            # Where nothing is mixed, an entry is a token.
            settings.width(binder.vocab_size) if latent else 1,
            int(settings.history_mib * 2**20) if has_history else 1,
            facts.max_request_tokens,
            facts.device,
        )
        embedding = vectors = head = None
        if (latent and lends_vectors) or probes or reads:
            head = _head(facts)
        if latent:
            vectors = _vectors(facts, store, head) if lends_vectors else None
            embedding = InputEmbedding(
                facts.model, facts.layout, store, facts.max_pass_tokens, vectors
            )
        shifts = None
        if shape is not None:
            check_files(settings, shape)
            shifts = LayerShifts(
                _layers(facts),
                settings,
                facts.dtype,
                facts.device,
                entries=len(store.ids),
                max_slots=slots,
                max_tokens=facts.max_pass_tokens,
                check=facts.check_layers,
                completed=facts.completed,
            )
        layers, tap = None, _tap(facts, head, slots) if reads else None
        if shifts is not None or tap is not None or probes:
            layers = ServedLayers(shifts, head, tap)
        core = Core(
            methods=active(),
            max_slots=slots,
            vocab_size=binder.vocab_size,
            holes=binder.holes,
            device=facts.device,
            rewind_steps=rewind_steps(facts.drafts) if facts.drafts else REWIND_STEPS,
            engine_vectors=None if vectors is None else vectors.source,
            layers=layers,
            engine=facts.engine,
            max_markers=binder.max_markers,
            history=(store.weights, store.ids) if has_history else None,
        )
        self._max_tokens = facts.max_request_tokens
        if facts.drafts:
            self.batch: Batch = DraftedBatch(core, store, embedding, facts.drafts)
        else:
            self.batch = Batch(core, store, embedding, vectors, layers)
        warm(core, binder, settings.allow, facts.logger)
        facts.logger.info(
            "tokenlens: %d slots; history: %s; vectors: %s; shifts: %s; layers: %s; methods: %s",
            slots,
            store.describe() if has_history else "none, no request needs one",
            vectors.describe() if vectors else "none, no method that feeds any is allowed",
            shifts.describe() if shifts else "none, no file with a vector is allowed",
            tap.describe() if tap else "not read, no file with a predictor is allowed",
            "all" if settings.allow is None else ", ".join(settings.allow),
        )

    def admit(
        self, req_id: str, params: Any, prompt: Sequence[int], most_tokens: int | None = None
    ) -> Request | None:
        """Admit a request of the engine's; ``None`` if it has no spec, or one without methods.

        Parameters
        ----------
        most_tokens
            The most tokens that it asks for; ``None``: as many as the model can.

        Raises
        ------
        SpecError
            What the spec asks for cannot be done with this model.
        """
        request = self.bind(params)
        if request is None or not request.methods:
            return None
        if self.batch.shifts is not None:
            self.batch.shifts.check(request)
        wanted = 0
        if self.batch.vectors is not None and request.needs & Need.OF_ENGINE:
            self.batch.vectors.source.prepare(request)
            left = self._max_tokens - len(prompt)
            wanted = vectors_of(request, min(most_tokens or left, left))
        self.batch.admit(req_id, request, list(prompt), len(prompt), wanted)
        return request

    def commit(self, sampled: Tensor) -> PendingReport | None:
        """Take a step's tokens, ``[num_rows]``; returns its report, on its way to the host."""
        rows = self.batch.advanced()
        step = self.batch.commit(sampled)
        return report_of(self.batch, step, rows, self.settings.max_trace_steps)

    def commit_rows(self, sampled: Tensor, num_sampled: Tensor) -> PendingReport | None:
        """The same beside drafts: ``[num_rows, offsets]`` tokens, of which some count."""
        assert isinstance(self.batch, DraftedBatch)
        rows = self.batch.advanced()
        step = self.batch.commit_rows(sampled, num_sampled)
        return report_of(self.batch, step, rows, self.settings.max_trace_steps)


def _head(facts: RunnerFacts) -> HeadWatch | None:
    """What watches the model's head, made once; ``None`` where nothing can."""
    if facts.layout.total is None:
        return None
    try:
        _, module = find_input_embedding(facts.model, facts.layout)
    except EmbeddingError:
        # Whoever mixes says so; a method that reads a prompt's state is refused by name.
        return None
    return facts.layout.head_of(facts.model, module)


def _layers(facts: RunnerFacts) -> list[nn.Module]:
    assert facts.shape is not None
    return decoder_layers(facts.model, facts.shape.num_layers, facts.layout.table)


def _tap(facts: RunnerFacts, head: HeadWatch | None, slots: int) -> LayerTap:
    """Seats that keep what layers leave.

    Raises
    ------
    UnsupportedError
        A model of which it is not known what they leave.
    """
    assert facts.shape is not None
    if head is None or not facts.leaves_sums(facts.model):
        raise UnsupportedError(
            f"model: got {type(facts.model).__name__}, of which it is not known what its decoder"
            " layers leave; allowed: one that its engine can speculate with by EAGLE-3, where files"
            " are allowed whose method reads layers. Leave them out of the setting files."
        )
    layers = _layers(facts)
    facts.check_layers(layers)
    return LayerTap(
        layers,
        facts.shape,
        head,
        facts.dtype,
        facts.device,
        max_rows=facts.max_requests,
        max_slots=slots,
        completed=facts.completed,
    )


def _vectors(facts: RunnerFacts, store: ConceptStore, head: HeadWatch | None) -> VectorStore | None:
    """The engine's vectors; ``None`` where it lends none."""
    layout = facts.layout
    if layout.total is None:
        return None
    _, module = find_input_embedding(facts.model, layout)
    source = ServedVectors(
        module,
        layout.total,
        head,
        layout.scale_of(facts.model, module),
        facts.binder.vocab_size,
        alone=not per_layer_embeddings(facts.model, layout),
    )
    return VectorStore(source, store, facts.settings.vectors(source.hidden_size))
