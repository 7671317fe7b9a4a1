"""A Hugging Face model's vectors, for methods that need more than concept tokens."""

import torch
from tokenlens_kernels import dense_mixture
from torch import Tensor, nn

from tokenlens.core import NextInputs
from tokenlens.core.engine_vectors import alignment_matrix, mean_norm, root_mean_square
from tokenlens.errors import ProtocolError
from tokenlens.hf.embedding import HookedEmbedding
from tokenlens.spec.needs import Need


class HFVectors:
    """Vectors of one model: dense mixtures, last hidden states, noise on what is fed.

    Parameters
    ----------
    embedding
        Probed. Where it is no plain table (LoRA, quantised, offloaded), only concept tokens are
        hosted.
    head
        The output embedding; its input is the last hidden state.
    """

    def __init__(self, embedding: HookedEmbedding, head: nn.Module | None, vocab_size: int) -> None:
        self._embedding, self._head, self._vocab_size = embedding, head, vocab_size
        hosts = Need.NOTHING
        if embedding.is_table:
            hosts |= Need.DENSE_MIXTURE | Need.EMBEDDING_NOISE
            if isinstance(getattr(head, "weight", None), Tensor):
                hosts |= Need.HIDDEN_STATE
        self.hosts = hosts
        self.hidden_size = embedding.table.shape[1] if embedding.is_table else 0
        self._hidden: Tensor | None = None
        # By whether it was made in float32
        self._alignments: dict[bool, tuple[Tensor, Tensor]] = {}
        self._rms: Tensor | None = None

    def dense(self, logits: Tensor, active: Tensor, inverse_temperature: Tensor) -> Tensor:
        """The mixture of the whole vocabulary."""
        table = self._embedding.table
        return dense_mixture(
            logits.to(table.device),
            table,
            active=active.to(table.device),
            inverse_temperature=inverse_temperature.to(table.device),
            vocab_size=self._vocab_size,
            scale=self._embedding.scale,
            out_dtype=torch.float32,
        ).to(logits.device)

    def capture(self, head_input: Tensor) -> None:
        """Keep the last hidden state of a forward pass, ``[rows, tokens, hidden]``."""
        self._hidden = head_input[:, -1]

    def hidden(self) -> Tensor:
        """The hidden state behind this step's logits; asked for once a step."""
        if self._hidden is None:
            raise ProtocolError(
                "hidden states: got a forward pass that did not call the model's output embedding"
                " as a module; allowed: one that does. A compiled forward"
                " (cache_implementation='static') does not call hooks: leave cache_implementation"
                " unset."
            )
        hidden, self._hidden = self._hidden, None
        return hidden.float()

    @torch.no_grad()
    def alignment(self, *, single: bool = False) -> tuple[Tensor, Tensor]:
        """LatentMAS's matrix, computed once; ``single``: in float32."""
        if single not in self._alignments:
            assert self._head is not None
            head = self._head.weight
            assert isinstance(head, Tensor)
            table, scale = self._embedding.table, self._embedding.scale
            dtype = torch.float32 if single else torch.float64
            found = alignment_matrix(table, head.to(table.device), dtype) * scale
            self._alignments[single] = found, mean_norm(table) * scale
        return self._alignments[single]

    @torch.no_grad()
    def rms(self) -> Tensor:
        """Root mean square of the embedding's coordinates."""
        if self._rms is None:
            self._rms = root_mean_square(self._embedding.table) * self._embedding.scale
        return self._rms

    def add(self, mixture: Tensor, feed: NextInputs, noisy: bool) -> Tensor:
        """Concept mixtures with the engine's vectors and the noise, ``[num_rows, hidden]``."""
        assert feed.base is not None
        assert feed.base_weight is not None
        rows = len(mixture)
        device = mixture.device
        total = mixture + (feed.base[:rows] * feed.base_weight[:rows, None]).to(device)
        if noisy:
            noise = feed.noise(rows, self.hidden_size).to(device)
            total = total + noise * self.rms().to(device)
        return total
