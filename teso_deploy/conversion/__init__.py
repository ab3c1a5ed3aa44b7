"""Conversion of PyTorch models to bundles (needs the extra ``export``)."""
