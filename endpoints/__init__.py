"""Ways in: the blueprint, the Flask extension, the command line, and what they share. Nothing runs at import time."""
