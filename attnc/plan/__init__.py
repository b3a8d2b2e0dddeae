"""What will run: target-neutral, frozen, printable."""
