"""What people ask for, as closed models: the bodies of HTTP requests, and the same from Python."""
