"""The bundled demo model: its checkpoint and its examination. What made it is in `demo/` of the repository."""
