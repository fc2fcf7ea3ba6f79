"""What takes a real Docker engine and minutes: run by hand, `python -m tests.compose.kills`, not by pytest."""
