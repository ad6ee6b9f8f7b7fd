"""One file format a module, which declares it as ``FORMAT``; `registry` finds them."""
