"""What `baton bench kernels` runs: one file an operation, each beside torch and the libraries that are installed."""
