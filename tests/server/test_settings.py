"""docs/settings.md says what the settings are. Written by `python tests/server/test_settings.py` from the repository's root."""

from pathlib import Path

from server.settings import Settings

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"
HEAD = """# Settings

Every flag of `turret-server` is also an environment variable, `TURRET_` and its name in capitals with underscores. Flags win.
Bytes are plain numbers; files and folders are paths.

| flag | default | what it is |
|---|---|---|
"""


def shown(value: object) -> str:
    """A default as a person writes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value is None or value == "" else str(value)


def document() -> str:
    """The whole page."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "the packaged MiniLM" if name == "backbone" else shown(field.default)
        rows.append(f"| `--{name.replace('_', '-')}` | {default} | {field.description} |")
    return HEAD + "\n".join(rows) + "\n"


def test_every_setting_is_documented() -> None:
    assert DOCUMENT.read_text() == document()


if __name__ == "__main__":
    DOCUMENT.write_text(document())
