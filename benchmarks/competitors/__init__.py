"""What a user would pick instead: each in a virtual environment of its own, started and asked by the harness."""
