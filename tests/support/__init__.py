"""What tests of several services share; `tests/fakes` has the servers that stand in for others."""
