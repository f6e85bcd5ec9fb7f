"""The one place that knows the client's version; pyproject.toml reads it from here."""

__version__ = "0.1.0"
USER_AGENT = f"turret-client/{__version__}"
