"""The benchmark: `make bench`. Nothing of it is a test; what it finds stands in the README."""
