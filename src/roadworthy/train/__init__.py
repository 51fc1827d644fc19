"""Training: what a student is trained towards, and the loop that does it. Needs PyTorch, the extra `[train]`."""
