"""The test suite, the demo image and the benchmark. A leaf: nothing imports it, nothing installs it."""
