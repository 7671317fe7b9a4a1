"""Seeds for rows whose spec leaves its seed open, out of torch's generators."""

import threading
import weakref
from hashlib import blake2b

import torch

from tokenlens.spec.seeds import find_seed

_LOCK = threading.Lock()
# Of calls that are under way: the thread, the seed
_UNDER_WAY: list[tuple["weakref.ref[object]", int, int]] = []


def torch_seed(device: torch.device, samples: bool, call: object) -> int:
    """A seed that ``torch.manual_seed`` repeats, and that the next call does not get.

    Parameters
    ----------
    device
        Where the logits are.
    samples
        Whether ``generate()`` samples. It then moves the generator on itself, which is read here
        and left alone, so that rows beside these draw what they would draw without us. A greedy
        call moves nothing, and the seed is drawn.
    call
        Lives as long as the call. Calls of several threads may find the generator where it was:
        those that are under way together have different seeds.
    """
    if not samples:
        return find_seed(int(torch.randint(1 << 62, (1,), device="cpu")))
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state())
    digest = blake2b(digest_size=8)
    for state in states:
        digest.update(state.numpy().tobytes())
    return _alone(find_seed(int.from_bytes(digest.digest(), "big")), call)


def _alone(seed: int, call: object) -> int:
    """A seed that no call of another thread has that is under way."""
    here = threading.get_ident()
    with _LOCK:
        _UNDER_WAY[:] = [one for one in _UNDER_WAY if one[0]() is not None]
        taken = {used for _, thread, used in _UNDER_WAY if thread != here}
        while seed in taken:
            # No seed of another row of that call
            digest = blake2b(f"call:{seed}".encode(), digest_size=8).digest()
            seed = find_seed(int.from_bytes(digest, "big"))
        _UNDER_WAY.append((weakref.ref(call), here, seed))
    return seed
