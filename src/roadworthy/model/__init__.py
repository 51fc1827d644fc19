"""The ONNX graph, its encodings and its task contract."""
