"""The programs that run in the contenders' environments. They share `protocol.py` and `padding.py`, and nothing of Turret's."""
