"""The processes a benchmark runs in: one per model, one for the canary; both ends of the pipe between them.

A message is an 8-byte length and a pickle of plain values. The worker keeps the two ends of the pipe for itself
before anything else is loaded, so that what a runtime prints goes to a log instead of into the protocol. It ends when
its parent does: by the end of its input, and on Linux by a signal that the kernel sends.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import pickle
import selectors
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import roadworthy.errors
from roadworthy.errors import RoadworthyError

_LENGTH = struct.Struct("<Q")
# `kind` of a sample.
RUNTIME, END_TO_END = "runtime", "end_to_end"
SLICE_S = 0.5
"""So long is waited for a worker before signals are looked at again."""


class Worker:
    """The parent's end: starts a process, asks it for something, waits no longer than it must, ends it."""

    def __init__(self, title: str, environ: Mapping[str, str] | None = None) -> None:
        """title: what error messages call this worker.   environ: variables to set for it."""
        self.title = title
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main({os.getpid()})",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **(environ or {})},
            bufsize=0,
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, timeout_s: float, **message: Any) -> Any:
        """Send a message and return the reply.

        Raises RoadworthyError, or the subclass raised on the other side, when the worker reports a failure, dies,
        or has not answered after `timeout_s` seconds.
        """
        assert self._process.stdin is not None
        try:
            _write(self._process.stdin.fileno(), message)
            reply = self._receive(time.monotonic() + timeout_s)
        except (BrokenPipeError, EOFError):
            raise RoadworthyError(self._obituary()) from None
        except TimeoutError:
            doing = message.get("do", "work")
            raise RoadworthyError(f"{self.title} did not finish `{doing}` within {timeout_s:.0f} s") from None
        if "error" in reply:
            kind = getattr(roadworthy.errors, reply["kind"], RoadworthyError)
            raise kind(f"{self.title}: {reply['error']}")
        return reply["value"]

    def close(self) -> None:
        """End the process now and wait for it; safe to call twice."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                stream.close()

    def _receive(self, deadline: float) -> Any:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)

            def read(count: int) -> bytes:
                data = bytearray()
                while len(data) < count:
                    # In slices: a Ctrl-C that comes in the instant before the system call, or to another thread, does
                    # not end the wait; Python sees it only after it.
                    while not selector.select(min(max(deadline - time.monotonic(), 0.0), SLICE_S)):
                        if time.monotonic() >= deadline:
                            raise TimeoutError
                    chunk = os.read(descriptor, count - len(data))
                    if not chunk:
                        raise EOFError
                    data += chunk
                return bytes(data)

            return pickle.loads(read(*_LENGTH.unpack(read(_LENGTH.size))))

    def _obituary(self) -> str:
        code = self._process.wait()
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f"{self.title} died ({cause})" + (f": {lines[-1][:300]}" if lines else "")


def _write(descriptor: int, message: Any) -> None:
    data = pickle.dumps(message, protocol=5)
    for part in (_LENGTH.pack(len(data)), data):
        view = memoryview(part)
        while view:
            view = view[os.write(descriptor, view) :]


def _read(descriptor: int, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        chunk = os.read(descriptor, count - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)


def main(parent: int) -> None:
    """The worker's end: answer messages until the input ends.   parent: the process that asks."""
    _end_with_parent(parent)
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)  # prints go where complaints go
    bench = _Bench()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            message = pickle.loads(_read(source, *_LENGTH.unpack(_read(source, _LENGTH.size))))
            try:
                reply = {"value": getattr(bench, message.pop("do"))(**message)}
            except RoadworthyError as error:
                reply = {"error": str(error), "kind": type(error).__name__}
            except Exception as error:
                first = (str(error).strip().splitlines() or [""])[0][:300]
                reply = {"error": f"{type(error).__name__}: {first}", "kind": "RoadworthyError"}
            del message
            _write(sink, reply)
    os._exit(0)  # a runtime's threads or finalizers must not keep this process alive


def _end_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before: no signal will come, but its first message may wait in the pipe
        os._exit(0)


class _Bench:
    """What a worker can be asked to do; one method per message."""

    def start(self, target: str, threads: int, nothing: bytes, nothing_feeds: dict) -> dict[str, float]:
        """Load the runtime and run a model of one node, so that `load` times and weighs the model alone."""
        self._factory = factory(target)
        self._threads = threads
        runner = self._factory(nothing, threads)
        runner.run(nothing_feeds)
        del runner
        gc.collect()
        return {"base_mb": peak_mb()}

    def load(self, model: bytes, feeds: dict, frames: tuple, preprocess: Any, decode: Any) -> dict[str, float]:
        """Load and warm up; returns load_ms and frame_ms, the quickest warm frame."""
        start = time.perf_counter()
        self._runner = self._factory(model, self._threads)
        load_ms = (time.perf_counter() - start) * 1e3
        self._feeds = feeds
        self._next = 0
        self._end_to_end = None
        if frames:
            import cv2

            cv2.setNumThreads(self._threads)
            (name,) = feeds
            self._feeds = {name: preprocess(frames[0])[0]}
            whole = getattr(self._runner, "from_image", lambda: None)()
            if whole is None:
                self._end_to_end = _stages(self._runner, name, frames, preprocess, decode)
            else:
                self._end_to_end = _one_call(whole, frames)
        warm: list[float] = []
        begin = time.perf_counter()
        while len(warm) < 2 or (len(warm) < 30 and time.perf_counter() - begin < 0.15):
            warm += self._time(RUNTIME, 1)[0]
        if frames:
            self._time(END_TO_END, 2)
        settle()
        return {"load_ms": load_ms, "frame_ms": min(warm)}

    def frames(self, kind: str, count: int) -> dict[str, Any]:
        """Time `count` frames after one that is not counted (it wakes threads and warms caches)."""
        self._time(kind, 1)
        waited, begun = waited_s(), time.perf_counter()
        frames_ms, stages_ms = self._time(kind, count)
        waited = (waited_s() - waited) / (time.perf_counter() - begun)
        return {"frames_ms": frames_ms, "stages_ms": stages_ms, "waited": waited, "settled": settle()}

    def memory(self) -> dict[str, float]:
        return {"peak_mb": peak_mb()}

    def canary_start(self, threads: int) -> None:
        from roadworthy.check.canary import Canary

        self._canary = Canary(threads)
        for _ in range(8):
            self._canary.level()

    def canary(self) -> float:
        return self._canary.level()

    def _time(self, kind: str, count: int) -> tuple[list[float], list[tuple[float, float, float]]]:
        """(milliseconds per frame, and for end to end those of preprocess, run and decode)."""
        frames_ns, stages_ns = [], []
        clock = time.perf_counter_ns
        gc.collect()
        gc.disable()
        try:
            for _ in range(count):
                if kind == RUNTIME:
                    start = clock()
                    self._runner.run(self._feeds)
                    frames_ns.append(clock() - start)
                else:
                    assert self._end_to_end is not None
                    start, tensor, outputs, end = self._end_to_end(self._next)
                    frames_ns.append(end - start)
                    stages_ns.append((tensor - start, outputs - tensor, end - outputs))
                    self._next += 1
        finally:
            gc.enable()
        return [ns / 1e6 for ns in frames_ns], [(a / 1e6, b / 1e6, c / 1e6) for a, b, c in stages_ns]


def _stages(runner: Any, name: str, frames: tuple, preprocess: Any, decode: Any) -> Callable[[int], tuple]:
    """A function of the frame's number: image -> tensor -> outputs -> detections, with the clock (ns) at each step."""
    finish: Callable[[Any, Any], Any] = lambda outputs, geometry: outputs  # noqa: E731
    if decode is not None and decode.kind == "classify":
        from roadworthy.detect.decode import classify

        finish = lambda outputs, geometry: classify(outputs, decode)  # noqa: E731
    elif decode is not None and decode.kind != "raw":
        from roadworthy.detect.decode import detect

        finish = lambda outputs, geometry: detect(outputs, decode, to_image=geometry.to_image)  # noqa: E731
    clock = time.perf_counter_ns

    def frame(number: int) -> tuple[int, int, int, int]:
        image = frames[number % len(frames)]
        begun = clock()
        tensor, geometry = preprocess(image)
        prepared = clock()
        outputs = runner.run({name: tensor})
        computed = clock()
        finish(outputs, geometry)
        return begun, prepared, computed, clock()

    return frame


def _one_call(whole: Callable[[Any], Any], frames: tuple) -> Callable[[int], tuple]:
    """Like `_stages`, for a runtime that goes from image to result by itself: all of it counts as run."""
    clock = time.perf_counter_ns

    def frame(number: int) -> tuple[int, int, int, int]:
        begun = clock()
        whole(frames[number % len(frames)])
        done = clock()
        return begun, begun, done, done

    return frame


def factory(target: str) -> Callable[[bytes, int], Any]:
    """The function (model bytes, threads) -> runner of a target: a key of TARGETS, or `package.module:function`."""
    module, colon, name = target.partition(":")
    if colon:
        return getattr(importlib.import_module(module), name)
    from roadworthy.run.targets import TARGETS

    return TARGETS[target].runner


def settle(window_s: float = 0.012, limit_s: float = 0.5) -> bool:
    """Wait until this process's threads sleep; False where they still spin after `limit_s`.

    Runtimes let their threads spin after a run (ONNX Runtime for some 40 ms) in the hope of the next one. That would
    take a core away from whoever is measured next, so this worker answers only when it is idle. The window is longer
    than a scheduler tick, because the CPU time of threads that run elsewhere is accounted tick by tick.
    """
    deadline = time.monotonic() + limit_s
    before = time.process_time()
    while time.monotonic() < deadline:
        time.sleep(window_s)
        now = time.process_time()
        if now - before < 0.1 * window_s:
            return True
        before = now
    return False


def waited_s() -> float:
    """Seconds that the threads of this process stood ready without a core so far; 0 where the system does not tell."""
    total_ns = 0
    for thread in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, IndexError, ValueError):  # a thread may end while it is being read
            total_ns += int(thread.read_text().split()[1])
    return total_ns / 1e9


def peak_mb() -> float:
    """The largest resident size this program had, in MB (10^6 bytes).

    Linux: VmHWM. ru_maxrss would start at the size of the process that started this one, because fork and exec hand
    it on.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
