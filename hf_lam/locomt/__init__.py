"""Tools for attention views (LoCoMT): choosing them, and changing those of a model."""
