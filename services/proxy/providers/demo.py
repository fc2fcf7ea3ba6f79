"""Kind `demo`: our own server, which stands in for others as long as nobody else serves their models."""

from __future__ import annotations

OWN = "demo"
"""The model that is the demo provider's own; every other name it only stands in for."""
KIND = "demo"
