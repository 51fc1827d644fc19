"""Roadworthy's own engine: `lower` makes a plan of a model, `NativeRunner` runs it (docs/engine.md)."""
