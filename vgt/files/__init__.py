"""Model files: every format in, one out, and the downloads of the published ones."""
