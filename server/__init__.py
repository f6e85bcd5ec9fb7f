"""The server: many tasks through one frozen backbone. `app.py` wires it; docs/architecture.md tells a request's life."""
