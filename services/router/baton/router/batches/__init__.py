"""Files and batches: requests that can wait, kept on disk, answered below all others."""
