"""Counter-based noise: Philox4x32-10 in plain torch, bit-equal to Triton's ``tl.rand``.

Noise is a function of (seed, position, index, stream) and of nothing else: no generator state, no
batch, no order of evaluation. A row draws the same numbers alone, in a batch, after a preemption,
in a CUDA graph replay and in another engine.

The 64-bit seed is the Philox key; the 64-bit offset fills the first two of the four counter words,
the other two are zero. One evaluation yields four 32-bit words. This module does not know what the
numbers are used for beyond the table of streams below.

Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

# Streams keep the draws of one (seed, position, index) apart. A stream is a number below 128; a new
# use of noise takes a free one here, so that two uses can never share their draws by accident.
GUMBEL = 0  # the Gumbel noise on concept weights
GATE = 1  # coin flips that decide between latent and discrete
NORMAL = 2  # words 0 and 1 give one standard normal
SAMPLE = 3  # draws of visible tokens made outside the engine's own sampler
SAMPLE_SEED = 4  # derives the seeds of the second and later samples of one request
SCHEDULE = 6  # coin flips that decide whether a scheduled text is forced
REPLACE = 7  # draws that decide whether a token would be sampled which a method replaces
GAMMA_BOOST = 15  # the uniform that takes a Gamma(a + 1) draw to Gamma(a) for a < 1
GAMMA_FIRST_TRY = 16  # try number n of the rejection loop takes stream 16 + n: 16 to 23
GAMMA_TRIES = 8

MAX_POSITION = 2**31
MAX_STREAM = 128
MAX_INDEX = 2**24

_MASK = 0xFFFFFFFF
ROUNDS = 10
MULTIPLIER_A, MULTIPLIER_B = 0xD2511F53, 0xCD9E8D57
WEYL_A, WEYL_B = 0x9E3779B9, 0xBB67AE85
# The factor that Triton multiplies a 31-bit integer by; its largest product is still below one.
_UNIFORM_SCALE = 4.6566127342e-10
# The smallest uniform that counts as above zero and the largest float32 below one.
UNIFORM_FLOOR, UNIFORM_CEILING = 2.0**-32, 1.0 - 2.0**-24


def offset(position: Tensor | int, index: Tensor | int, stream: Tensor | int = 0) -> Tensor:
    """Counter of one draw: ``position << 32 | stream << 24 | index``.

    Parameters
    ----------
    position : int64 tensor or int
        Position of the token in its sequence, in [0, 2**31).
    index : int64 tensor or int
        What is drawn at that position, usually a token id, in [0, 2**24).
    stream : int64 tensor or int
        One of the stream constants of this module, in [0, 128).

    Returns
    -------
    int64 tensor
        The arguments broadcast against each other. Values are not checked: they live on the device.
    """
    high = torch.as_tensor(position, dtype=torch.int64) << 32
    low = torch.as_tensor(index, dtype=torch.int64) | (
        stream << 24 if isinstance(stream, int) else stream.to(torch.int64) << 24
    )
    return high | low


def words(seed: Tensor | int, offset: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All four 32-bit output words of Philox4x32-10 for the key ``seed`` and counter ``offset``.

    Returns
    -------
    tuple of four int64 tensors
        Each in [0, 2**32), in the broadcast shape of ``seed`` and ``offset``.
    """
    offset = offset.to(torch.int64)
    return philox_4x32(
        (
            offset & _MASK,
            (offset >> 32) & _MASK,
            torch.zeros_like(offset),
            torch.zeros_like(offset),
        ),
        torch.as_tensor(seed, dtype=torch.int64, device=offset.device),
    )


def philox_4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds on four int64 tensors that hold 32-bit words; ``seed`` holds the 64-bit key."""
    c0, c1, c2, c3, _ = torch.broadcast_tensors(*counter, seed)  # type: ignore[no-untyped-call]
    if _is_traced():
        return _rounds(c0, c1, c2, c3, seed)
    shape = c0.shape
    # Seeds are often one a row: their round keys are made before they are broadcast.
    seed = seed.view((1,) * (len(shape) - seed.dim()) + tuple(seed.shape))
    # The two halves of the state live in one tensor of two lanes, and the lanes trade places every
    # round instead of being copied: even rounds hold (c0, c2), odd rounds (c2, c0).
    first_lane = torch.arange(2, device=seed.device).view((2,) + (1,) * len(shape)) == 0
    multiplier = torch.where(first_lane, MULTIPLIER_A, MULTIPLIER_B)
    # Round 0 makes (c2, c0), so its keys come in the order (k1, k0).
    key = torch.stack((seed >> 32, seed))
    weyl = torch.where(first_lane, WEYL_B, WEYL_A)
    by_parity = ((multiplier, key, weyl), (multiplier.flip(0), key.flip(0), weyl.flip(0)))
    multiplied = torch.stack((c0, c2))
    carried = torch.stack((c3, c1))
    for i in range(ROUNDS):
        multiplier, key, weyl = by_parity[i % 2]
        # int64 products wrap modulo 2**64, which keeps both 32-bit halves right; only what is
        # multiplied next has to be cut to 32 bits, so the low half and the keys travel on uncut.
        product = multiplied * multiplier
        multiplied = product >> 32
        multiplied ^= carried
        multiplied ^= torch.add(key, weyl, alpha=i)
        multiplied &= _MASK
        carried = product.flip(0)
    # After an even number of rounds the lanes are back in order: (c0, c2) and (c3, c1).
    carried = carried & _MASK
    return multiplied[0], carried[1], multiplied[1], carried[0]


def _is_traced() -> bool:
    """Whether what is computed becomes a graph for a compiler."""
    tracer = sys.modules.get("torch.fx.experimental.proxy_tensor")
    return torch.compiler.is_compiling() or (
        tracer is not None and tracer.get_proxy_mode() is not None
    )


def _rounds(
    c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, seed: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same word by word: more calls, and nothing that a compiler cannot fuse."""
    low, high = seed & _MASK, (seed >> 32) & _MASK
    for i in range(ROUNDS):
        a, b = c0 * MULTIPLIER_A, c2 * MULTIPLIER_B
        key_a, key_b = (low + i * WEYL_A) & _MASK, (high + i * WEYL_B) & _MASK
        c0, c1 = ((b >> 32) & _MASK) ^ c1 ^ key_a, b & _MASK
        c2, c3 = ((a >> 32) & _MASK) ^ c3 ^ key_b, a & _MASK
    return c0, c1, c2, c3


def _to_uniform(word: Tensor) -> Tensor:
    # [0, 2**31) folds onto itself and [2**31, 2**32) onto its mirror image, as tl.rand does it.
    folded = torch.where(word >= 2**31, _MASK - word, word)
    return folded.to(torch.float32) * _UNIFORM_SCALE


def uniform(seed: Tensor | int, offset: Tensor) -> Tensor:
    """Uniform float32 draws in [0, 1), bit-equal to ``tl.rand(seed, offset)``."""
    return _to_uniform(words(seed, offset)[0])


def _open_uniform(word: Tensor) -> Tensor:
    return _to_uniform(word).clamp(UNIFORM_FLOOR, UNIFORM_CEILING)


def gumbel(seed: Tensor | int, offset: Tensor) -> Tensor:
    """Standard Gumbel float32 draws, always finite (from -3.1 to 16.7)."""
    return gumbel_of(words(seed, offset)[0])


def gumbel_of(word: Tensor) -> Tensor:
    """The Gumbel draw that a 32-bit word stands for."""
    return -torch.log(-torch.log(_open_uniform(word)))


def _normal_from(first: Tensor, second: Tensor) -> Tensor:
    radius = torch.sqrt(-2.0 * torch.log(_open_uniform(first)))
    return radius * torch.cos((2.0 * math.pi) * _to_uniform(second))


def normal(seed: Tensor | int, offset: Tensor) -> Tensor:
    """Standard normal float32 draws (Box and Muller, on words 0 and 1 of one evaluation).

    Give the offset the stream ``NORMAL`` unless a method owns another one.
    """
    first, second, _, _ = words(seed, offset)
    return _normal_from(first, second)


def gamma(
    concentration: Tensor, seed: Tensor | int, position: Tensor | int, index: Tensor | int
) -> Tensor:
    """Logarithm of Gamma(concentration, 1) draws, exact in distribution for any concentration.

    A draw for a concentration below 1e-6 underflows every float format, its logarithm does not;
    subtract ``logsumexp`` of a row to get the logarithm of a Dirichlet draw.

    Parameters
    ----------
    concentration : float tensor
        Not negative; 0 gives -inf.
    seed, position, index
        As in `offset`; all arguments broadcast. The streams ``GAMMA_BOOST`` and
        ``GAMMA_FIRST_TRY`` to ``GAMMA_FIRST_TRY + GAMMA_TRIES - 1`` are taken.

    Returns
    -------
    float32 tensor
        ``GAMMA_TRIES`` tries are made side by side and the first accepted one wins; each is
        accepted with a probability above 0.95, so all fail once in 10**10 draws, which then give
        the mode.

    Source: Marsaglia and Tsang, "A Simple Method for Generating Gamma Variables" (2000).
    """
    concentration = concentration.to(torch.float32)
    device = concentration.device
    streams = torch.arange(GAMMA_FIRST_TRY - 1, GAMMA_FIRST_TRY + GAMMA_TRIES, device=device)
    counter = torch.broadcast_to(offset(position, index), concentration.shape).to(device)
    lane = (-1,) + (1,) * concentration.dim()
    first, second, third, _ = words(seed, counter | (streams.view(lane) << 24))
    boost = torch.log(_open_uniform(first[0]))

    small = concentration < 1.0
    shape = torch.where(small, concentration + 1.0, concentration) - 1.0 / 3.0
    tilt = torch.rsqrt(9.0 * shape) * _normal_from(first[1:], second[1:])
    inside = tilt > -1.0
    log_cube = 3.0 * torch.log1p(torch.where(inside, tilt, 0.0))
    # d (1 - v + ln v) written with v - 1 = t (3 + 3 t + t^2), which does not cancel for large d.
    bound = shape * (log_cube - tilt * (3.0 + tilt * (3.0 + tilt)))
    square = 9.0 * shape * tilt * tilt
    accepted = inside & (torch.log(_open_uniform(third[1:])) < 0.5 * square + bound)
    log_draw = torch.zeros_like(shape)
    for i in reversed(range(GAMMA_TRIES)):
        log_draw = torch.where(accepted[i], log_cube[i], log_draw)
    log_draw = torch.log(shape) + log_draw
    log_draw = torch.where(small, log_draw + boost / concentration, log_draw)
    return torch.where(concentration > 0.0, log_draw, -torch.inf)


def sample_seed(seed: Tensor | int, sample_index: Tensor | int) -> Tensor:
    """Seed of the n-th sample of one request; index 0 gives ``seed`` itself.

    Returns
    -------
    int64 tensor
        The arguments broadcast against each other.
    """
    seed = torch.as_tensor(seed, dtype=torch.int64)
    sample_index = torch.as_tensor(sample_index, dtype=torch.int64, device=seed.device)
    low, high, _, _ = words(seed, offset(sample_index, 0, SAMPLE_SEED))
    return torch.where(sample_index == 0, seed, low | (high << 32))
