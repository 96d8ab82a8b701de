"""Models, in the forms that people have them, as files that the program reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Union

from ._errors import UsageError

#: A file or a folder; the bytes of a file; or an ``onnx.ModelProto``.
Model = Union[str, os.PathLike, bytes, Any]

#: A protocol buffer holds no more bytes.
MOST = 2**31 - 1


def path_of(model: Model, folder: str, name: str) -> str:
    """Where a model lies; one that lies nowhere is written into ``folder``."""
    if isinstance(model, (str, os.PathLike)):
        return os.fspath(model)
    path = Path(folder) / name
    if isinstance(model, (bytes, bytearray, memoryview)):
        path.write_bytes(model)
    elif hasattr(model, "SerializeToString"):
        import onnx

        is_large = model.ByteSize() > MOST
        # Saving with data in another file would take them out of the caller's model.
        copy = model if not is_large else onnx.ModelProto.FromString(b"")
        if is_large:
            copy.CopyFrom(model)
        onnx.save(copy, path, save_as_external_data=is_large)
    else:
        raise UsageError(f"a model is a path, bytes or an onnx.ModelProto, and not {type(model).__name__}")
    return os.fspath(path)


def like(model: Model, path: str) -> Any:
    """The model at ``path`` in the form of another: bytes, or an ``onnx.ModelProto``."""
    if isinstance(model, (bytes, bytearray, memoryview)):
        return Path(path).read_bytes()
    import onnx

    return onnx.load(path)
