"""The parts of `tools/reproduce.py`: each measures rows into a JSON file, and writes pages from such a file."""
