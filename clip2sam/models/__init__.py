"""Presets, verified files, and loading."""
