"""COCO: RLE, polygons, documents, and their validation. No torch."""
