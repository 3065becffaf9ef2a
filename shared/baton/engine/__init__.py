"""The engine: a library that turns prompts into tokens and calls nobody."""
