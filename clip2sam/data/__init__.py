"""Images, labels, records, sources and files: what goes in and what is kept. No torch."""
