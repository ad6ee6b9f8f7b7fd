"""One file format a module, each with `read` and, where it makes sense, `write`."""
