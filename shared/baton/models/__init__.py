"""Baton's own model definitions, and the loading of their weights from safetensors."""
