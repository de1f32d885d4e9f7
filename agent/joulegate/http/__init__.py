"""What is served over HTTP: ``create_app`` over the parts, ``serve`` on a socket."""
