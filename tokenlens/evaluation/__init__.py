"""Tasks with answers that can be checked, scoring, controls and tables."""
