"""Fuzzing: bytes that nobody meant, and what the product says to them. docs/fuzzing.md."""
