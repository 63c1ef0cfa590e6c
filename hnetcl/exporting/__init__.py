"""A task's network as files that need no hnetcl: a torch program, ONNX, a state dict with its code."""

from hnetcl.exporting.write import Export, File, export

__all__ = ["Export", "File", "export"]
