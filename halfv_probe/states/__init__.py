"""Measured on hidden states alone, without a model: spectra, entropies, geometry, increments."""
