"""clip2sam: typed labels in, masks out."""
