"""`baton doctor`: what a machine can do, what a model does there, and whether prefill and decode apart pay."""
