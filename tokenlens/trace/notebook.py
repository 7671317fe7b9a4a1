"""What a notebook shows of a trace: the viewer. Put on the records here, which know no viewer."""

from tokenlens.trace.lines import Recording
from tokenlens.trace.records import Trace
from tokenlens.trace.viewer import frame


def show_trace(trace: Trace) -> str:
    """The viewer, with ids for texts; `record` adds the texts."""
    return frame(Recording(trace=trace))


Recording._repr_html_ = frame  # type: ignore[attr-defined]
Trace._repr_html_ = show_trace  # type: ignore[attr-defined]
