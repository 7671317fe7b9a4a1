"""The gate: its settings, its rule as a pure function, its step, and switch control."""
