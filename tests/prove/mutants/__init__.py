"""Tests of the tests: each guard of the product is broken once, in a copy, and the tests that watch it must turn red."""
