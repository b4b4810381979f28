"""The parts that hold weights: autoencoder, language model, position queries, flow head."""
