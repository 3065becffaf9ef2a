"""What `baton bench` runs: each figure beside its peer or its physical floor, in one run on one machine."""
