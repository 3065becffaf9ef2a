"""Hold the operations that a model is made of, one a file: formula, plain-torch reference (the CPU path), Triton kernel."""
