"""Seeds for rows whose spec leaves its seed open, out of torch's generators."""

from hashlib import blake2b

import torch

from tokenlens.spec.seeds import find_seed


def torch_seed(device: torch.device, samples: bool) -> int:
    """A seed that ``torch.manual_seed`` repeats, and that the next call does not get.

    Parameters
    ----------
    device
        Where the logits are.
    samples
        Whether ``generate()`` samples. It then moves the generator on itself, which is read here
        and left alone, so that rows beside these draw what they would draw without us. A greedy
        call moves nothing, and the seed is drawn.
    """
    if not samples:
        return find_seed(int(torch.randint(1 << 62, (1,), device="cpu")))
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state())
    digest = blake2b(digest_size=8)
    for state in states:
        digest.update(state.numpy().tobytes())
    return find_seed(int.from_bytes(digest.digest(), "big"))
