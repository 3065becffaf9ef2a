"""Ways for the bytes of blocks to reach another worker."""
