"""Parsers of answers: one file a way to write thoughts or calls, families by name in `reasoning_forms` and `tool_forms`."""
