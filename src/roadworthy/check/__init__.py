"""Proof: alignment, accuracy, benchmarks, inspection and the report."""
