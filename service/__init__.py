"""Fovea's gateway: image bytes in, calibrated classes out."""

__version__ = "0.1.0"
