"""Finding fast configurations: by what compilers make of them, and by measuring."""
