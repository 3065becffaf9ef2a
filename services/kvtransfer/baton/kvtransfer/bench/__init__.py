"""What `baton bench transfer` runs."""
