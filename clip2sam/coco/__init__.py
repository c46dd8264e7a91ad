"""The COCO format: RLE, polygons, documents, checked files. No torch."""
