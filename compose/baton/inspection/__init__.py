"""`baton inspect`: what a checkpoint is, whether Baton serves it, and how much of it fits a device."""
