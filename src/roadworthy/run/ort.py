"""ONNX Runtime on the CPU."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from roadworthy.errors import UnsupportedError


def with_outputs(model: bytes, names: Sequence[str]) -> bytes:
    """The same model with further values exposed as outputs. Raises KeyError for a name that no node produces."""
    import onnx

    proto = onnx.load_model_from_string(model)
    produced = {o for node in proto.graph.node for o in node.output}
    present = {o.name for o in proto.graph.output}
    for name in names:
        if name in present:
            continue
        if name not in produced:
            raise KeyError(name)
        proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
        present.add(name)
    return proto.SerializeToString()


def with_weights_as_inputs(model: bytes, names: Sequence[str]) -> bytes:
    """The same model, in which other arrays may be fed in place of the named initializers."""
    import onnx

    proto = onnx.load_model_from_string(model)
    for tensor in proto.graph.initializer:
        if tensor.name in set(names):
            proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return proto.SerializeToString()


class OrtRunner:
    """A session of ONNX Runtime; taps are read by exposing them as outputs of a second session, made once per set."""

    def __init__(self, model: bytes, threads: int = 0, optimize: bool = True) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._options = options
        self._model = model
        self._session = self._load(model)
        self.input_names = tuple(i.name for i in self._session.get_inputs())
        self.output_names = tuple(o.name for o in self._session.get_outputs())
        self._taps: dict[frozenset[str], Any] = {}

    def _load(self, model: bytes) -> Any:
        return _session(model, self._options)

    def run(self, feeds: Mapping[str, NDArray], taps: Sequence[str] = ()) -> dict[str, NDArray]:
        wanted = [t for t in taps if t not in feeds]
        session = self._session
        if wanted:
            key = frozenset(wanted)
            if key not in self._taps:
                # One tapped session at a time: callers walk a graph with one set of taps, then with another.
                self._taps = {key: self._load(with_outputs(self._model, sorted(key)))}
            session = self._taps[key]
        try:
            values = session.run(None, dict(feeds))
        except Exception as error:
            raise UnsupportedError(f"ONNX Runtime cannot run the model: {_first_line(error)}") from error
        found = dict(zip((o.name for o in session.get_outputs()), values))
        result = {name: found[name] for name in self.output_names}
        result.update({t: feeds[t] if t in feeds else found[t] for t in taps})
        return result


class TapReader:
    """Reads many values of a network again and again, each time into the same memory.

    Handing out fresh arrays costs more than computing them: for every image the system would have to clear hundreds
    of megabytes. shapes: value name -> shape of every value to read (float32).
    """

    def __init__(self, model: bytes, shapes: Mapping[str, tuple[int, ...]], pool: NDArray, threads: int = 0) -> None:
        """pool: float32 memory of at least the summed sizes of `shapes`; readers used in turn may share one."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        # Threads that wait for work by spinning would take the cores from those that read the values.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = _session(with_outputs(model, sorted(shapes)), options)
        self._input = self._session.get_inputs()[0].name
        self._binding = self._session.io_binding()
        self._values: dict[str, NDArray] = {}
        start = 0
        for output in self._session.get_outputs():
            shape = shapes.get(output.name)
            if shape is None:
                self._binding.bind_output(output.name)
                continue
            size = math.prod(shape)
            array = pool[start : start + size].reshape(shape)
            start += size
            self._binding.bind_output(output.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            self._values[output.name] = array

    def read(self, tensor: NDArray) -> dict[str, NDArray]:
        """The values for one input tensor; the arrays are overwritten by the next call."""
        try:
            self._binding.bind_cpu_input(self._input, tensor)
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise UnsupportedError(f"ONNX Runtime cannot run the model: {_first_line(error)}") from error
        return self._values


def load(model: bytes, threads: int = 0) -> OrtRunner:
    """Load a serialized ONNX model. Raises UnsupportedError where ONNX Runtime refuses it."""
    return OrtRunner(model, threads)


def _session(model: bytes, options: Any) -> Any:
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UnsupportedError(f"ONNX Runtime cannot load the model: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
