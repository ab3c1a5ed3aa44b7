"""Visual foundations: one module for each; the registry is :mod:`teso_deploy.architectures`."""
