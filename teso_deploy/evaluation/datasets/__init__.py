"""Public data sets of audio-visual segmentation, one module for each, and folders of media for composing scenes.

No module here needs torch. Start with :mod:`teso_deploy.evaluation.datasets.reading`.
"""
