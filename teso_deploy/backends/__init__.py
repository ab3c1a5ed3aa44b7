"""One :class:`Engine` protocol, a module for each library that runs graphs; no torch."""
