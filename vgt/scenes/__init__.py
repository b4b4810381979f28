"""The generated world: scenes with captions, and the detector that tells what a picture shows."""
