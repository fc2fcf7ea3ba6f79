"""The tests: by the part they test, `suite/` for the whole, `fakes/` for what stands in for the world outside."""
