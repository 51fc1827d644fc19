"""Boxes and what is done with them: decoding network outputs, NMS, evaluation. Knows no file format and no graph."""
