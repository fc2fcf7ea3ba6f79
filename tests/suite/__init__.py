"""The whole suite as real processes against the scripted provider: what its users see, and what stands on the books after."""
