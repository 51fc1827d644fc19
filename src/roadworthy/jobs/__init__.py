"""Whole jobs, as the commands run them: compress, eval, align, bench, inspect, and the embedded sample."""
