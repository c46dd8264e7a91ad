"""Presets, verified weight files, and loading.

presets        which CLIP and which SAM belong together, and with which settings (no torch)
files          where the weight files are, and whether they are the right ones (no torch)
download       missing files, from the network (no torch but for open_clip's own downloader)
checkpoints    from a file to a model; only tensors are read
locators       the ways to find labels that have a name (no torch)
loading        from a preset, or from your own models, to a segmenter
"""
