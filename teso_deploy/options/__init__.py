"""Options as dataclasses, shared by the Python API, the command line and the tests; each is validated here."""
