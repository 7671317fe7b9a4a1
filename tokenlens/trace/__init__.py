"""What happened at each step of a request, as data. Knows no engine and no tensors."""

from tokenlens.trace.records import PHASE_NAMES, SCHEMA_VERSION, Trace, TraceCounts, TraceStep

__all__ = ["PHASE_NAMES", "SCHEMA_VERSION", "Trace", "TraceCounts", "TraceStep"]
