"""The embedded models, the scenes that they were trained on, and the demo."""
