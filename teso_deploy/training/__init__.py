"""Training on composed scenes (needs the extra ``train``)."""
