"""The libraries that run graphs: a protocol, a registry, and a module for each library. No torch."""
