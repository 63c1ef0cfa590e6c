"""Generators: task embeddings -> raw outputs, one a file."""

from hnetcl.hnets.generators.generator import Generator

__all__ = ["Generator"]
