"""From a float model to encodings, and between encodings and Q/DQ nodes."""
