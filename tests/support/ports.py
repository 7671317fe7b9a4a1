"""Ports for servers that tests start."""

import random
import socket

CHOICE = range(20_000, 32_000)
"""Beneath the ports that systems give away by themselves: a server may need minutes to take its."""


def free_port():
    """A port that nobody listens on."""
    # Not the generator that some library seeds alike in every process.
    draw = random.SystemRandom()
    while True:
        port = draw.choice(CHOICE)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
