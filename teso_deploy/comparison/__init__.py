"""How fast, against whom: one harness for ``teso-deploy bench`` and the scripts in ``benchmarks/``."""
