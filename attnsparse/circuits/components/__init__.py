"""Circuits of component edges, nodes and neurons; patching of activations and paths."""
