"""A worker around an engine: the HTTP face, and the engine process with its loop over legs."""
