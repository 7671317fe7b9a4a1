"""One ``generate()`` call: the processor that decides, and what feeds its decisions.

The processor sees a step's logits; the sampled tokens are known when ``generate()`` asks its
stopping criteria, and at the latest when it prepares the next forward pass, which is where the
mixtures go in. The three alternate, and a loop that does otherwise is stopped loudly. Nothing but
the list that ``generate()`` makes for itself refers to a run: it ends with the call, and while an
exception keeps it, nothing of it is on the model.
"""

import weakref
from collections.abc import Callable, Sequence
from enum import Enum
from functools import reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from transformers import LogitsProcessor

from tokenlens.core import Core, Request
from tokenlens.core.recorder import Recorder
from tokenlens.errors import ProtocolError, UnsupportedError
from tokenlens.hf.attachment import EMBEDDING, FORWARD, HEAD, PREPARE, attach, detach
from tokenlens.hf.calls import Call, calls, innermost
from tokenlens.hf.compiled import ONE_GRAPH, is_compiled, one_graph
from tokenlens.hf.embedding import HookedEmbedding, substitute
from tokenlens.hf.layers import Layers
from tokenlens.hf.prompts import prompts_of
from tokenlens.hf.streamers import follow
from tokenlens.hf.vectors import HFVectors
from tokenlens.hf.ways_in import takes_embeddings
from tokenlens.methods.door import active
from tokenlens.spec.needs import Need

READ_WITH_THE_PROMPT = Need.HIDDEN_STATE | Need.LAYER_STATES | Need.PROMPT_STATE | Need.PROMPT_ROWS


class Stage(Enum):
    """What happened last."""

    ATTACHED = "nothing yet"
    DECIDED = "logits were decided on"
    COMMITTED = "the sampled tokens were taken"
    PREPARED = "the next forward pass was prepared"
    DETACHED = "the run was taken off the model"


class Run(LogitsProcessor):
    """The state of one ``generate()`` call.

    Parameters
    ----------
    call
        The ``generate()`` call.
    model
        The model whose ``generate()`` runs.
    requests_for
        Requests of a batch of so many rows, whose logits are on a device.
    vocab_size
        Ids up to the tokenizer's largest.
    on_begin
        Is given the run's recorder once the first logits are there.
    needs
        What some request needs of the engine. Hidden states are looked at from the prompt on.
    holes
        Ids below ``vocab_size`` that are no token.
    committed
        Our criterion shows each step's tokens, after every other criterion.
    prompt_ids
        Tokens of each prompt, where they come as embeddings.
    in_place
        Nobody else keeps the logits that we are handed: they are edited where they lie.
    """

    supports_continuous_batching = False

    def __init__(
        self,
        call: Call,
        model: nn.Module,
        requests_for: Callable[[int, torch.device], Sequence[Request]],
        vocab_size: int,
        on_begin: Callable[[Recorder], None],
        *,
        needs: Need = Need.NOTHING,
        holes: Sequence[int] = (),
        committed: bool = False,
        prompt_ids: Sequence[Sequence[int]] | None = None,
        in_place: bool = False,
    ) -> None:
        self.model = model
        self._requests_for = requests_for
        self._vocab_size, self._holes = vocab_size, holes
        self._on_begin = on_begin
        self._call: int | None = call.key
        self._asked = call.prompts
        config = call.arguments.get("generation_config")
        self._chunked = getattr(config, "prefill_chunk_size", None) is not None
        self._streams = call.arguments.get("streamer") is not None
        self._committed, self._prompt_ids = committed, prompt_ids
        self._in_place = in_place
        self._stage = Stage.ATTACHED
        self._length = 0
        # [num_rows] bool: no criterion has stopped the row
        self._going = torch.ones(0, dtype=torch.bool)
        self._core: Core | None = None
        self._recorder: Recorder | None = None
        self._embedding: HookedEmbedding | None = None
        self._engine_vectors: HFVectors | None = None
        self._noisy = False
        self._one_graph: str | None = None
        # [num_rows, hidden]: behind the logits that are decided on next
        self._head_input: Tensor | None = None
        self._head: nn.Module | None = None
        self._layers: Layers | None = None
        if needs & Need.OF_LAYERS:
            self._layers = Layers(model, needs)
            weakref.finalize(self, self._layers.disarm).atexit = False
        self._requests: Sequence[Request] | None = None
        self._places_rows = Need.PROMPT_ROWS in needs
        if self._places_rows and self._chunked:
            raise UnsupportedError(
                "prefill_chunk_size: got a prompt in chunks; allowed: None with softcotpp, whose"
                " rows stand at places of the prompt"
            )
        self._attachment = attach(self)
        if Need.HIDDEN_STATE in needs:
            self._head = model.get_output_embeddings()  # type: ignore[operator]
        if needs & READ_WITH_THE_PROMPT:
            self._attachment.wrap(self, PREPARE)

    # What generate() calls, in the order in which it does.

    def prepare(self, bound: Any, *args: Any, **kwargs: Any) -> Any:
        """Prepare a forward pass; from the second on it is fed what the last step decided."""
        if not self.is_innermost():
            # Another generate() on this model: inside ours (a router), or after ours while a
            # traceback keeps this run alive.
            if self._is_over():
                self._take_off()
            return bound(*args, **kwargs)
        input_ids = args[0] if args else kwargs["input_ids"]
        if self._stage is Stage.ATTACHED:
            if not self._chunked:
                self._attachment.drop(id(self), PREPARE)
            inputs = bound(*args, **kwargs)
            if self._layers is not None and self._places_rows:
                self._layers.place(
                    self._requests_of(len(input_ids), input_ids), inputs["input_ids"]
                )
            self._sit_at_layers(kwargs)
            self._follow_forward()
            return inputs
        self._attachment.drop(id(self), PREPARE)
        if self._stage is Stage.DECIDED and self._continues(input_ids):
            self.commit(input_ids)
        if self._stage is not Stage.COMMITTED or input_ids.shape[1] != self._length:
            # Not how generate() goes on; the processor is called again and says so.
            return bound(*args, **kwargs)
        self._stage = Stage.PREPARED
        inputs = bound(*args, **kwargs)
        core = self._core
        is_static = self._sit_at_layers(kwargs)
        if core is None or not core.may_be_latent:
            if self._head is not None or (self._layers is not None and not is_static):
                self._follow_forward()
            return inputs
        return self._feed(core, inputs, is_static)

    def forwarded(self) -> None:
        """A forward pass of the calling thread's is over, however it ended."""
        self._attachment.drop(id(self), FORWARD, EMBEDDING, HEAD)
        if self._layers is not None:
            self._layers.disarm()

    def embedded(self, module: nn.Module, output: Any) -> Any:
        """Forward hook of the input embedding."""
        if self._embedding is None or not self.is_innermost():
            return None
        return self._embedding.hook(module, output)

    def head_input(self, hidden: Any) -> None:
        """Forward pre-hook of the output embedding."""
        if isinstance(hidden, Tensor) and hidden.ndim == 3 and self.is_innermost():
            if self._engine_vectors is None:
                # The first logits come before the requests are admitted.
                self._head_input = hidden
            else:
                self._engine_vectors.capture(hidden)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._layers is not None:
            self._layers.disarm()
        if self._stage is Stage.ATTACHED:
            self._begin(input_ids, scores)
        elif self._stage is not Stage.PREPARED:
            raise ProtocolError(
                f"loop: got logits for a new step, but what happened last is: {self._stage.value};"
                " allowed: one step at a time. This loop"
                " does not prepare, run and decide one step at a time as generate() does (assisted"
                " decoding, beam search, a loop of its own), so that mixtures would be lost."
            )
        if self._embedding is not None and self._embedding.is_armed:
            raise ProtocolError(
                "forward pass: got none that looked up the model's input embedding; allowed: one"
                " that does, because the mixtures were not fed. A forward that was compiled before"
                " does not call hooks: use cache_implementation='static', which generate() compiles"
                " itself."
            )
        self._attachment.drop(id(self), PREPARE)
        core = self._core
        assert core is not None
        if input_ids.shape[0] != self._num_rows:
            raise ProtocolError(
                f"rows: got {input_ids.shape[0]}; allowed: the {self._num_rows} of the first step"
            )
        self._length = input_ids.shape[1]
        self._stage = Stage.DECIDED
        decided = core.step(scores, self._slots, in_place=self._in_place)
        if not self._committed:
            # Nobody comes by between here and the next forward pass.
            self._attachment.wrap(self, PREPARE)
        return decided

    def commit(self, input_ids: Tensor, stopped: Tensor | None = None) -> None:
        """Take the tokens that were sampled for the logits decided last; once a step.

        Parameters
        ----------
        stopped
            ``[num_rows]`` bool, rows whose last token this is; later ones are padding. ``None``
            where it is not known.
        """
        if self._stage is not Stage.DECIDED:
            return
        is_last = self._streams and self._ends(stopped)
        if self._committed and not is_last and not (self._streams and follow(self._await_next)):
            self._await_next()
        if not self._continues(input_ids):
            return
        assert self._core is not None
        assert self._recorder is not None
        self._length = input_ids.shape[1]
        self._stage = Stage.COMMITTED
        sampled = input_ids[:, -1].to(self._slots.device)
        self._recorder.append(self._core.commit(sampled, self._slots, self._going))
        if stopped is not None:
            self._going = self._going & ~stopped.to(self._slots.device)

    # Their parts.

    def _ends(self, stopped: Tensor | None) -> bool:
        """Whether no step follows, so that a streamer's end() finds the model as it was.

        Asked for with a streamer only, for which every step waits for its tokens anyway. With
        several processes the loop may go on for another one's sake.
        """
        if stopped is None or (dist.is_available() and dist.is_initialized()):
            return False
        return not bool((self._going & ~stopped.to(self._going.device)).any())

    def is_innermost(self) -> bool:
        """Whether the innermost ``generate()`` call of the calling thread is this run's."""
        return self._call == innermost()

    def _is_over(self) -> bool:
        return self._call is not None and self._call not in calls()

    def _await_next(self) -> None:
        self._attachment.wrap(self, PREPARE)

    def _follow_forward(self) -> None:
        """Be told of the end of the next forward pass, and see the head's input if it is needed."""
        if self._head is not None:
            self._attachment.watch_head(self, self._head)
        if not is_compiled(self.model):
            self._attachment.wrap(self, FORWARD)

    def _sit_at_layers(self, prepared: dict[str, Any]) -> bool:
        """Be at the layers in the next forward pass; returns whether its cache is static.

        With such a cache the pass may be a compiled graph, in which nothing can be wrapped.
        """
        # Its name before and since transformers 5.24
        cache = prepared.get("cache")
        cache = prepared.get("past_key_values") if cache is None else cache
        is_static = bool(getattr(cache, "is_compileable", False))
        if self._layers is not None:
            method = weakref.WeakMethod(self.is_innermost)
            unwatched = is_static or is_compiled(self.model)
            self._layers.arm(self._core, (lambda: _holds(method)) if unwatched else None)
        return is_static

    def _continues(self, input_ids: Tensor) -> bool:
        return input_ids.shape == (self._num_rows, self._length + 1)

    def _requests_of(self, num_rows: int, like: Tensor) -> Sequence[Request]:
        """The requests of the rows, made once: seeds are drawn for them."""
        if self._requests is None or len(self._requests) != num_rows:
            self._requests = self._requests_for(num_rows, like.device)
        return self._requests

    def _begin(self, input_ids: Tensor, scores: Tensor) -> None:
        if self._call not in calls():
            # Whoever put the list together has returned: the loop is another function's.
            self._call = innermost()
        num_rows, width = scores.shape
        if width < self._vocab_size:
            raise ProtocolError(
                f"logits: got {width} columns; allowed: at least the tokenizer's {self._vocab_size}"
            )
        requests = self._requests_of(num_rows, scores)
        latent = any(Need.LATENT in request.needs for request in requests)
        needs = reduce(or_, (request.needs for request in requests), Need.NOTHING) & Need.OF_ENGINE
        if latent:
            self._embedding = HookedEmbedding.of(self.model)
            self._embedding.probe()
        if needs and self._embedding is not None:
            head = self.model.get_output_embeddings()  # type: ignore[operator]
            self._engine_vectors = HFVectors(self._embedding, head, self._vocab_size)
            self._noisy = Need.EMBEDDING_NOISE in needs
            if self._head_input is not None:
                self._engine_vectors.capture(self._head_input)
                self._head_input = None
        core = Core(
            methods=active(),
            max_slots=num_rows,
            vocab_size=self._vocab_size,
            holes=self._holes,
            device=scores.device,
            engine_vectors=self._engine_vectors,
            layers=self._layers,
            engine="generate() with this model",
        )
        if self._layers is not None:
            self._layers.begin(requests, scores.device)
        prompts = prompts_of(self._asked, input_ids, self._prompt_ids)
        for row, (request, (ids, length)) in enumerate(zip(requests, prompts)):
            core.add(row, request, ids, length)
        self._core = core
        self._num_rows = num_rows
        self._slots = torch.arange(num_rows, device=scores.device)
        self._going = torch.ones(num_rows, dtype=torch.bool, device=scores.device)
        self._recorder = Recorder(core, requests, "hf", [ids for ids, _ in prompts])
        self._on_begin(self._recorder)

    def _feed(self, core: Core, inputs: dict[str, Any], is_static: bool) -> dict[str, Any]:
        assert self._embedding is not None
        ids = inputs.get("input_ids")
        if ids is None or ids.shape != (self._num_rows, 1):
            raise ProtocolError(
                f"the next forward pass: got input_ids of shape"
                f" {None if ids is None else tuple(ids.shape)}; allowed:"
                f" {(self._num_rows, 1)}. Without a cache (use_cache=False) every step embeds"
                " all tokens again, and the mixtures fed before would turn back into tokens."
            )
        latent = core.next_input.latent[: self._num_rows]
        if self._engine_vectors is None:
            mixture = self._embedding.mixture(core.next_input, self._num_rows)
        else:
            mixture = self._embedding.mixture(core.next_input, self._num_rows, torch.float32)
            mixture = self._engine_vectors.add(mixture, core.next_input, self._noisy)
        if not is_static:
            if self._one_graph is None:
                self._one_graph = one_graph(self.model, self._embedding.module) or ""
            if self._one_graph:
                raise ProtocolError(ONE_GRAPH.format(self._one_graph))
            self._follow_forward()
            modules = [one.module for one in (self._embedding, *self._embedding.beside)]
            self._attachment.hook(*modules)
            self._embedding.arm(latent, mixture)
            self._embedding.arm_beside(core.next_input, self._num_rows)
            return inputs
        if not takes_embeddings(self.model, self._embedding, ids.device):
            model_type = self.model.config.get_text_config().model_type  # type: ignore[operator, union-attr]
            raise UnsupportedError(
                f"cache_implementation: got a static cache with {model_type}; allowed: a dynamic"
                " one (leave cache_implementation unset), because its forward pass needs token ids,"
                " and a compiled one could be fed mixtures only in place of them"
            )
        # Outside the compiled graph: hooks inside it are ignored silently.
        embeddings = substitute(self._embedding.look_up(ids), latent, mixture)
        return {**inputs, "input_ids": None, "inputs_embeds": embeddings}

    def _take_off(self) -> None:
        self._stage = Stage.DETACHED
        if self._embedding is not None:
            self._embedding.disarm()
        if self._layers is not None:
            self._layers.disarm()
        detach(self, self._attachment)


def _holds(method: "weakref.WeakMethod[Callable[[], bool]]") -> bool:
    """What a method of an object that may be gone says."""
    found = method()
    return found is not None and found()
