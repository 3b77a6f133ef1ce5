"""What runs inside the sandbox's processes: the standard library alone, imported without the rest of sparsepo."""
