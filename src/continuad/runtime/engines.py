"""What runs programs: OpenVINO or ONNX Runtime, behind one call."""

from __future__ import annotations

import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from continuad.errors import ExportError
from continuad.runtime.folder import EXPORT_AGAIN, Target

Arrays = Mapping[str, NDArray[Any]]
Call = Callable[[Arrays], Arrays]
"""Runs a program: arrays by name in, arrays by name out. Any thread may call it; what it returns to a thread
is valid until that thread's next call."""


class Engine(ABC):
    """Compiles programs for this processor.

    Args:
        threads: that may work at a time, all told.
        callers: threads that will call programs at a time; each is served by its share of the threads.
    """

    def __init__(self, threads: int, callers: int) -> None:
        self.threads = threads
        self.callers = callers

    @abstractmethod
    def compile(self, files: Sequence[bytes]) -> Call:
        """Make a program from its files' contents ready to run.

        Raises:
            ExportError: they are no program that this engine can run.
        """


class OpenVINOEngine(Engine):
    """OpenVINO on the CPU, in float32."""

    def __init__(self, threads: int, callers: int) -> None:
        super().__init__(threads, callers)
        keep_private()
        import openvino

        self._core = openvino.Core()
        self._options = {
            "PERFORMANCE_HINT": "LATENCY" if callers == 1 else "THROUGHPUT",
            "NUM_STREAMS": str(callers),
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
        }

    def compile(self, files: Sequence[bytes]) -> Call:
        """Compile an .xml and its .bin."""
        graph, weights = files
        try:
            model = self._core.read_model(graph, weights)
            compiled = self._core.compile_model(model, "CPU", self._options)
        except RuntimeError as error:
            raise _unusable("OpenVINO", error) from error
        names = [output.any_name for output in compiled.outputs]
        own = threading.local()

        def call(arrays: Arrays) -> Arrays:
            if not hasattr(own, "request"):
                own.request = compiled.create_infer_request()
            found = own.request.infer(arrays, share_inputs=True, share_outputs=True)
            return dict(zip(names, found.values(), strict=True))

        return call


class ONNXRuntimeEngine(Engine):
    """ONNX Runtime on the CPU."""

    def compile(self, files: Sequence[bytes]) -> Call:
        """Compile an .onnx file."""
        keep_private()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(1, self.threads // self.callers)
        options.inter_op_num_threads = 1
        # programs take turns, and threads of one that wait busily would hold up the next
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(files[0], options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no base of their own
            raise _unusable("ONNX Runtime", error) from error
        names = [output.name for output in session.get_outputs()]

        def call(arrays: Arrays) -> Arrays:
            return dict(zip(names, session.run(names, dict(arrays)), strict=True))

        return call


def keep_private() -> None:
    """Keep OpenVINO, NNCF and ONNX Runtime from reporting their use over the network, as they do by default.

    To be called before they are imported. Whoever has set these switches otherwise keeps that.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


ENGINES: Mapping[Target, type[Engine]] = {"openvino": OpenVINOEngine, "onnx": ONNXRuntimeEngine}


def _unusable(engine: str, error: Exception) -> ExportError:
    first = str(error).strip().partition("\n")[0]
    return ExportError(f"{engine} cannot run this export ({first}).", EXPORT_AGAIN)
