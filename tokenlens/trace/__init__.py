"""What happened at each step of a request, as data. Knows no engine and no tensors."""

from tokenlens.errors import TraceFileError
from tokenlens.trace.compare import Difference, differences
from tokenlens.trace.lines import Recording
from tokenlens.trace.notebook import show_trace
from tokenlens.trace.reader import (
    Summarized,
    TraceFile,
    read_summaries,
    read_traces,
    read_what_is_there,
)
from tokenlens.trace.records import PHASE_NAMES, SCHEMA_VERSION, Trace, TraceCounts, TraceStep
from tokenlens.trace.summary import Summary, summarize
from tokenlens.trace.writer import TraceWriter, record, write_traces

__all__ = [
    "PHASE_NAMES",
    "SCHEMA_VERSION",
    "Difference",
    "Recording",
    "Summarized",
    "Summary",
    "Trace",
    "TraceCounts",
    "TraceFile",
    "TraceFileError",
    "TraceStep",
    "TraceWriter",
    "differences",
    "read_summaries",
    "read_traces",
    "read_what_is_there",
    "record",
    "show_trace",
    "summarize",
    "write_traces",
]
