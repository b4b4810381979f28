"""Everything that touches ComfyUI's own modules."""
