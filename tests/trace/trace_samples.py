"""Traces made up for tests: many steps, each kind of fact at least once."""

import math

from tokenlens.spec import ColdStop, DecodingSpec, SoftThinking, TraceConfig
from tokenlens.trace import Recording, Trace, TraceCounts, TraceStep

SPEC = DecodingSpec(
    methods=(SoftThinking(cold_stop=ColdStop(entropy_threshold=0.2, patience=64)),),
    trace=TraceConfig(level="full", max_steps=20_000, max_entries=4),
)
WORDS = ["wait", " so", " the", " answer", " is", " 7", "\n", " prime", " <b>", "&amp;"]


def step(index, *, shift=0):
    thinking = index % 1000 < 800
    latent = thinking and index % 7 != 3
    token = (index * 3 + shift) % len(WORDS)
    entries = ((token, 0.7), ((token + 1) % len(WORDS), 0.2), ((token + 2) % len(WORDS), 0.1))
    return TraceStep(
        position=10 + index,
        phase="thinking" if thinking else "answer",
        token=token,
        latent=latent,
        forced=latent,
        valid=index != 5,
        entropy=1.2 + math.sin(index / 9) if latent else 0.1,
        max_probability=0.7,
        entries=entries if latent else (),
        edits={"cyclic_reflex": round(math.sin(index / 60), 4)} if index % 2 == 0 else None,
        switch={0: "to_discrete", 1: "to_latent"}.get(index % 7 - 3) if thinking else None,
    )


def trace(length=60, *, engine="hf", shift=0):
    steps = tuple(step(index, shift=shift) for index in range(length))
    return Trace(
        engine=engine,
        spec=SPEC,
        final_phase=steps[-1].phase if steps else "prompt",
        counts=TraceCounts(
            tokens=length,
            thinking_tokens=sum(s.phase == "thinking" for s in steps),
            latent_steps=sum(s.latent for s in steps),
            forced_steps=sum(s.forced for s in steps),
            invalid_steps=sum(not s.valid for s in steps),
            cold_stops=1,
        ),
        steps=steps,
    )


def recording(length=60, *, engine="hf", shift=0):
    return Recording(
        trace=trace(length, engine=engine, shift=shift),
        model="made-up",
        prompt="How many primes are below 60?",
        texts=dict(enumerate(WORDS)),
    )
