"""Records into files of other tools. No torch."""
