"""Speed comparisons: one harness for ``teso-deploy bench`` and the scripts in ``benchmarks/``."""
