"""Benchmarks: cases, peers and one command per kind of machine. Not part of the installed package."""
