"""Explain, explore, tune and evaluate."""
