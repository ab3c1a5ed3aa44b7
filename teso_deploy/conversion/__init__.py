"""From PyTorch models to bundles (needs the extra ``export``)."""
